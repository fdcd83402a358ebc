"""Verdicts over redraws of logs whose truth is known, and what a diagnosis says."""

import dataclasses
import json
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np
import pytest

from irm_fast.diagnostics import Check, diagnose

ROWS, REDRAWS = 8_000, 10


def sigmoid(value):
    return 1 / (1 + np.exp(-value))


@dataclass
class Made:
    """A made log: x (N, D), the fit's logits (N,) and (N, K), feedback (N, K), users (N,)."""

    x: np.ndarray
    reward: np.ndarray
    propensity: np.ndarray
    feedback: np.ndarray
    users: np.ndarray

    def diagnose(self, design="hidden", users=False, **options):
        options = {"users": self.users.tolist()} if users else {} | options
        return diagnose(
            self.feedback,
            propensity_design=design,
            reward_logits=self.reward,
            propensity_logits=self.propensity,
            **options,
        )


def make(seed, *, rows=ROWS, signals=2, base=-0.5, slope=0.5, activity=0.0, per_user=1, g_base=0.0, missed=0.4) -> Made:
    """Independent signals, but for an activity of each user; the fit misses a part of the truth that is not linear."""
    rng = np.random.default_rng(seed)
    users = np.arange(rows) // per_user
    x = rng.normal(size=(rows, 4))
    reward = g_base + x[:, 0] - x[:, 1]
    propensity = base + slope * x @ rng.normal(size=(4, signals)) / 2
    missed = missed * x[:, 2] * x[:, 3]
    active = sigmoid(propensity + 0.5 * missed[:, None] + activity * rng.normal(size=users[-1] + 1)[users, None])
    pleased = rng.random(rows) < sigmoid(reward + missed)
    feedback = pleased[:, None] & (rng.random(active.shape) < active)
    return Made(x, reward, propensity, feedback.astype(np.int8), users)


def nested(made, rng):
    made.feedback[:, 1] = made.feedback[:, 0] & (rng.random(len(made.x)) < 0.5)


def nested_but_for_errors(made, rng):
    nested(made, rng)
    made.feedback[:, 0] &= ~((made.feedback[:, 1] == 1) & (rng.random(len(made.x)) < 0.005))


def logged_twice(made, rng):
    made.feedback[:, 1] = made.feedback[:, 0]


def exclusive(made, rng):
    made.feedback[made.feedback[:, 0] == 1, 1] = 0


def two_of_three_tied(made, rng):
    active = sigmoid(made.propensity[:, :2] + 2 * rng.normal(size=len(made.x))[:, None])
    pleased = rng.random(len(made.x)) < sigmoid(made.reward)
    made.feedback[:, :2] = pleased[:, None] & (rng.random(active.shape) < active)
    made.feedback[:, 2] = pleased & (rng.random(len(made.x)) < sigmoid(made.propensity[:, 2]))


def missing(made, rng):
    made.feedback[rng.random(made.feedback.shape) < 0.3] = -1


def untouched(made, rng):
    pass


BROKEN = {
    "nested": (nested, {}, "nesting"),
    "nested, logging errors": (nested_but_for_errors, {}, "nesting"),
    "logged twice": (logged_twice, {}, "nesting"),
    "exclusive": (exclusive, {}, "inequality"),
    "two of three tied": (two_of_three_tied, {"signals": 3}, "pairwise agreement"),
    "three share an activity": (untouched, {"signals": 3, "activity": 2.0, "rows": 20_000}, "third signal"),
    "users share an activity": (untouched, {"activity": 2.0, "per_user": 10}, "users alike"),
}
HOLDING = {
    "two signals": (untouched, {}),
    "three signals": (untouched, {"signals": 3}),
    "missing entries": (missing, {"signals": 3}),
    "high propensities": (untouched, {"signals": 3, "base": 2.8, "slope": 0.3}),
    "high preference": (untouched, {"g_base": 4.0}),
    "rare actions": (untouched, {"signals": 3, "base": -3.5, "per_user": 10, "rows": 2_000}),
    "users": (untouched, {"signals": 3, "per_user": 10}),
    "a poor fit of many rows": (untouched, {"signals": 3, "missed": 0.8, "slope": 1.0, "rows": 30_000}),
}


def redraws(change, settings, **options):
    for seed in range(REDRAWS):
        made = make(seed, **settings)
        change(made, np.random.default_rng(1000 + seed))
        yield made.diagnose(users=settings.get("per_user", 1) > 1, **options)


@pytest.mark.parametrize("case", BROKEN)
def test_broken_independence_is_found(case):
    change, settings, name = BROKEN[case]
    for found in redraws(change, settings):
        assert found.kind == "contradicted"
        assert name in found.verdict
        failed = next(test for test in found.tests if test.name == name)
        assert failed.result == "failed"
        assert failed.p_value < 0.003
        assert found.remedies


@pytest.mark.parametrize("case", HOLDING)
def test_what_holds_is_not_contradicted(case):
    """Though the predictions miss a part of the truth."""
    found = list(redraws(*HOLDING[case]))
    expected = {"conditional", "not identified"} if case == "rare actions" else {"conditional"}
    assert {d.kind for d in found} <= expected
    assert all("nan" not in str(d) for d in found)


def test_nested_signals_need_no_predictions():
    made = make(0)
    nested(made, np.random.default_rng(0))
    alone = diagnose(made.feedback, propensity_design="hidden", signals=("click", "copy"))
    assert alone.kind == "contradicted"
    assert "copy acts only where click acts" in str(alone)
    twice = diagnose(made.feedback[:, [0, 0]], propensity_design="hidden", signals=("click", "copy"))
    assert "act in the same rows" in str(twice)
    few = diagnose(made.feedback[:200], propensity_design="hidden")
    assert few.kind == "conditional"
    assert few.tests[1].result == "too few data"
    assert few.remedies[0].startswith("signal 2 hardly acts but where signal 1 does (") and "only follow" in str(few)


def test_high_known_propensity_is_no_nesting():
    made = make(0, base=4.5, slope=0.0)
    assert made.diagnose("hidden").kind == "contradicted"  # nearly every pleased user acts: not believed
    assert made.diagnose("known").kind == "identified"  # unless it is known
    nested(made, np.random.default_rng(0))
    made.propensity = np.full_like(made.propensity, 0.5)
    assert made.diagnose("known").kind == "contradicted"


def test_few_actions_together():
    made = make(0)
    made.feedback[np.flatnonzero(made.feedback.all(axis=1))[9:], 1] = 0
    found = made.diagnose()
    assert found.kind == "contradicted"  # though that few where so many are expected is a finding of its own
    rare = make(1, base=-6.0).diagnose()
    assert rare.kind == "not identified"
    assert "fewer than 10 rows" in rare.verdict
    apart = make(2)
    apart.feedback[: ROWS // 2, 0] = -1
    apart.feedback[ROWS // 2 :, 1] = -1
    assert apart.diagnose().kind == "not identified"
    assert "recorded in the same rows" in str(apart.diagnose())


def test_recorded_only_after_the_other_acted_tells_nothing():
    made = make(0)
    made.feedback[made.feedback[:, 0] == 0, 1] = -1
    found = made.diagnose()
    assert found.kind == "not identified"
    assert "recorded only where the other acts" in str(found)


@pytest.mark.parametrize(
    ("design", "words"),
    [("constant", "is the same for every response"), ("hidden", "any other split"), ("features", "device, hour only")],
)
def test_one_signal_is_never_identified(design, words):
    made = make(0, signals=1)
    found = made.diagnose(design, feature_names=("device", "hour"))
    assert found.kind == "not identified"
    assert found.verdict.startswith("not identified without assuming")
    assert words in diagnose(made.feedback, propensity_design=design, feature_names=("device", "hour")).verdict
    low, high = found.sensitivity.mean_g_range
    assert low == pytest.approx((sigmoid(made.reward) * sigmoid(made.propensity[:, 0])).mean())
    assert high == 1
    assert 0 < found.sensitivity.rank_with_action_rate < 1
    assert "second" in str(found) or "one more action" in str(found)


def test_identified_only_by_known_propensities_or_ignorable_labels():
    made = make(0, signals=1)
    labels = np.full(ROWS, -1)
    labels[np.flatnonzero(made.feedback[:, 0] == 0)[:50]] = 0
    labels[np.flatnonzero(made.feedback[:, 0])[:50]] = 1
    assert made.diagnose("known").kind == "identified"
    assert diagnose(made.feedback, propensity_design="hidden", preference=labels).kind == "not identified"
    assert (
        diagnose(made.feedback, propensity_design="hidden", preference=labels, labels_ignorable=True).kind
        == "identified"
    )
    few = np.where(np.cumsum(labels == 0) < 8, labels, -1)
    assert (
        diagnose(made.feedback, propensity_design="hidden", preference=few, labels_ignorable=True).kind
        == "not identified"
    )
    two = make(0)
    mixed = diagnose(two.feedback, propensity_design=("known", "hidden"))
    assert mixed.kind == "conditional"
    nothing = np.empty((ROWS, 0), np.int8)
    assert diagnose(nothing, propensity_design="constant", preference=labels).kind == "not identified"
    only = {"reward_logits": np.where(labels == 1, 1.0, -1.0), "propensity_logits": np.empty((ROWS, 0))}
    assert (
        diagnose(nothing, propensity_design="constant", preference=labels, labels_ignorable=True, **only).kind
        == "identified"
    )


def opposite(seed, misclick):
    rng = np.random.default_rng(seed)
    made = make(seed)
    pleased = rng.random(ROWS) < sigmoid(made.reward)
    side = np.column_stack([pleased, ~pleased]) | (rng.random((ROWS, 2)) < misclick)
    made.feedback = (side & (rng.random((ROWS, 2)) < sigmoid(made.propensity))).astype(np.int8)
    return made


def test_signals_of_opposite_polarity():
    given = {"polarity": (1, -1), "propensity_design": "hidden"}
    for seed in range(REDRAWS):
        made = opposite(seed, 0.02)
        logits = {"reward_logits": made.reward, "propensity_logits": made.propensity}
        said = diagnose(made.feedback, misclick_rate=(0.02, 0.02), **given, **logits)
        assert said.kind == "not identified"  # one signal of each side
        assert diagnose(made.feedback, **given, **logits).kind == "contradicted"
        careless = opposite(seed, 0.2).feedback
        assert diagnose(careless, misclick_rate=(0.02, 0.02), **given).kind == "contradicted"
    assert diagnose(opposite(0, 0.0).feedback, **given).kind == "not identified"


def test_a_poor_fit_contradicts_nothing():
    made = make(0, signals=3)
    made.reward = made.reward - 1
    found = made.diagnose()
    assert {test.name: test.result for test in found.tests}["fit: calibration"] == "failed"
    assert found.kind == "conditional"
    flat = make(0, signals=3, slope=2.0)
    flat.propensity = np.full_like(flat.propensity, -0.5)
    assert flat.diagnose("hidden").kind == "contradicted"
    assert flat.diagnose("constant").kind == "conditional"  # it is the constant propensity that does not hold


def test_rows_without_weight_or_prediction_do_not_count():
    made = make(0)
    other = make(1)
    nested(other, np.random.default_rng(0))
    both = np.concatenate([made.feedback, other.feedback])
    weight = np.repeat([1.0, 0.0], ROWS)
    assert diagnose(both, propensity_design="hidden").kind == "conditional"
    assert diagnose(both, propensity_design="hidden", weight=1 - weight).kind == "contradicted"
    logits = {
        "reward_logits": np.where(weight > 0, np.concatenate([made.reward, made.reward]), np.nan),
        "propensity_logits": np.concatenate([made.propensity, made.propensity]),
    }
    found, alone = diagnose(both, propensity_design="hidden", **logits), made.diagnose()
    for name in ("inequality", "fit: calibration"):
        one, two = (next(t for t in d.tests if t.name == name) for d in (found, alone))
        assert one.statistic == pytest.approx(two.statistic)
    assert found.sensitivity == alone.sensitivity


def test_range_of_the_mean_under_shared_activity():
    """From below what users who act differently leave of it to above what they would at most."""
    truth, made = 0.5, make(3, rows=20_000, activity=1.5, per_user=10)
    p_12 = made.feedback.all(axis=1).mean()
    made.reward = np.full(20_000, np.log(r := made.feedback.mean(axis=0).prod() / p_12) - np.log(1 - r))
    made.propensity = np.tile(np.log(m := made.feedback.mean(axis=0) / r) - np.log(1 - m), (20_000, 1))
    found = made.diagnose(users=True).sensitivity
    assert found.mean_g_range[0] < 0.42
    assert truth < found.shared_activity[-1].mean_g < truth + 0.25
    assert found.mean_g_range[1] > 0.99  # two signals may be one of two stages


def test_what_is_stored_and_printed():
    made = make(0, signals=3, activity=2.0, per_user=10)
    refits = np.stack([made.reward, made.reward + 0.1 * made.x[:, 2]])
    found = made.diagnose(users=True)
    refitted = diagnose(made.feedback, propensity_design="hidden", fold_rewards=refits)
    assert 0.9 < refitted.sensitivity.refit_agreement < 1
    assert "not prove" in str(refitted)
    stored = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert stored["kind"] == "contradicted"
    assert np.shape(stored["cross_row"]["rho"]) == (3, 3)
    assert len(stored["sensitivity"]["shared_activity"]) == 3
    strata = next(test for test in stored["tests"] if test["name"] == "inequality")["details"]
    assert len(strata) == 3 * 6
    assert {len(entry["interval"]) for entry in strata} == {2}
    assert max(map(len, str(found).splitlines())) <= 110
    assert len(found.summary().splitlines()) < len(str(found).splitlines())
    assert "users alike" in found.summary()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feedback": np.zeros(3, int)}, r"feedback: got \(3,\); expected \(N, K\)"),
        ({"feedback": np.full((3, 2), 2)}, "feedback: got other values"),
        ({"propensity_design": "auto"}, "propensity_design: got 'auto'; expected one of constant"),
        ({"propensity_design": ("hidden",)}, "or 2 of them"),
        ({"polarity": (1,)}, r"polarity: got shape \(1,\); expected \(2,\)"),
        ({"users": ["a"]}, "users: got 1; expected 3"),
        ({"reward_logits": np.zeros(3)}, "expected both or none"),
    ],
)
def test_refused(change, message):
    arguments = {"feedback": np.zeros((3, 2), int), "propensity_design": "hidden"} | change
    with pytest.raises(ValueError, match=message):
        diagnose(arguments.pop("feedback"), **arguments)


def test_notebooks_show_html_in_which_nothing_is_markup():
    feedback = np.random.default_rng(0).integers(0, 2, (1000, 1))
    found = diagnose(feedback, propensity_design="constant", signals=['<b>copy</b> & "so"'])
    failed = dataclasses.replace(found, tests=(dataclasses.replace(found.tests[0], result="failed"), *found.tests[1:]))
    page = failed._repr_html_()
    parsed = ElementTree.fromstring(page)  # what is opened is closed
    assert {element.tag for element in parsed.iter()} == {"div", "p", "b", "ul", "li", "table", "tr", "th", "td"}
    assert [element.text for element in parsed.iter("b")] == [f"The reward is {found.verdict}."]
    rows = [["".join(cell.itertext()) for cell in row] for row in parsed.iter("tr")]
    assert rows == [[test.name, test.result, test.text] for test in failed.tests]
    grounds = [row[1].attrib["style"].split(";")[0] for row in parsed.iter("tr")]
    assert grounds[0] == "background:#f8d0cd" and grounds[0] not in grounds[1:]
    items = ["".join(item.itertext()) for item in parsed.iter("li")]
    assert items == [*found.assumed, *found.remedies] and found.remedies
    assert "<b>copy" not in page


def test_html_of_hostile_text():
    check = Check("<script>", "passed", "</td><script>alert('x')</script>")
    page = dataclasses.replace(diagnose(np.zeros((9, 1), int), propensity_design="constant"), tests=(check,))
    assert "<script>" not in page._repr_html_() and "&lt;script&gt;" in page._repr_html_()
