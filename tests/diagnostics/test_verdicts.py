"""Verdicts of ranking and scale, ranges of the mean preference, and rewards that are none."""

import json

import numpy as np
import pytest

from irm_fast.diagnostics import Diagnosis, diagnose
from irm_fast.diagnostics.sensitivity import with_misclicks
from tests.diagnostics.made import ROWS, failed, make, sigmoid, unordered


def test_labels_and_known_propensities_alone_fix_the_scale():
    made = make(0)
    labels = np.where(made.rng.random(ROWS) < 0.1, made.pleased, -1).astype(int)
    free = made.diagnose(preference=labels)
    fixed = made.diagnose(preference=labels, labels_ignorable=True)
    assert (free.ranking, free.scale) == ("conditional", "conditional")
    assert (fixed.ranking, fixed.scale, fixed.kind) == ("identified",) * 3
    assert free.sensitivity.mean_g_range is not None
    assert fixed.sensitivity.mean_g_range is None
    assert f"mean preference {fixed.sensitivity.mean_g:.2f}\n" in str(fixed)
    assert "the mean preference is a range" in free.verdict
    assert "only if all that is assumed holds" in str(free)


WORLDS = {
    "clean": lambda made, u: made.act(),
    "activity of sd 1": lambda made, u: made.act(sigmoid(made.propensity + u[:, None])),
    "activity of sd 2": lambda made, u: made.act(sigmoid(made.propensity + 2 * u[:, None])),
    "users easier to please": lambda made, u: made.act(pleased=made.rng.random(ROWS) < sigmoid(made.reward + 1.5 * u)),
    "5% misclicks": lambda made, u: made.act(pleased=made.pleased[:, None] | (made.rng.random((ROWS, 2)) < 0.05)),
}


@pytest.mark.parametrize("known", [(), ("users", "sessions", "times")])
@pytest.mark.parametrize("world", WORLDS)
def test_range_holds_the_truth(world, known):
    for seed in range(3):
        made = make(seed)
        WORLDS[world](made, made.rng.normal(size=made.users.max() + 1)[made.users])
        made.fit()
        found = made.diagnose(*known)
        low, high = found.sensitivity.mean_g_range
        assert low < 0.5 < high
        assert low <= found.sensitivity.mean_g <= high
        if known and world == "clean":
            made.given = {"segments": {"platform": made.rng.integers(0, 3, ROWS)}, "acted_at": unordered(made)}
            low, high = made.diagnose(*known, **made.given).sensitivity.mean_g_range
            assert low < 0.5 < high < low + 0.4


def test_range_starts_from_the_uncorrected_fit():
    """A correction that goes too far does not move the range along."""
    made = make(0)
    made.act(sigmoid(made.propensity + 1.5 * made.rng.normal(size=made.users.max() + 1)[made.users, None]))
    made.fit()
    acted_at = unordered(made)
    plain = made.diagnose(acted_at=acted_at)
    uncorrected = plain.sensitivity.mean_g
    g, m = sigmoid(made.reward), sigmoid(made.propensity)
    raised = sigmoid(made.reward + 1.2)
    made.reward = made.reward + 1.2
    made.propensity = np.log((g[:, None] * m / raised[:, None]) / (1 - g[:, None] * m / raised[:, None]))
    twice = made.diagnose(acted_at=acted_at)
    once = made.diagnose(acted_at=acted_at, uncorrected_mean=uncorrected)
    assert twice.sensitivity.mean_g_range[0] > plain.sensitivity.mean_g_range[0] + 0.1
    assert once.sensitivity.mean_g_range[0] == pytest.approx(plain.sensitivity.mean_g_range[0], abs=0.03)
    assert once.sensitivity.mean_g_range[1] == pytest.approx(plain.sensitivity.mean_g_range[1], abs=0.03)


def test_misclick_rates_are_undone():
    """From the truth to what a fit without misclicks would see, and back."""
    rng = np.random.default_rng(0)
    g, m = rng.uniform(0.2, 0.95, 500), rng.uniform(0.2, 0.6, (2, 500))
    for e in (0.01, 0.05):
        c = g + e * (1 - g)
        seen = (m[0] * c) * (m[1] * c) / (m[0] * m[1] * (g + e**2 * (1 - g)))
        assert seen.mean() > g.mean() + 0.8 * e * (1 - g).mean()
        assert with_misclicks(seen, (0.0, 0.0), (e, e)) == pytest.approx(g.mean())
        assert with_misclicks(g, (e, e), (0.0, 0.0)) == pytest.approx(seen.mean())
        assert with_misclicks(g, (e, e), (e, e)) == pytest.approx(g.mean())
    a, b = 0.3, 0.02  # a rate each
    seen = (g + a * (1 - g)) * (g + b * (1 - g)) / (g + a * b * (1 - g))
    assert with_misclicks(seen, (0.0, 0.0), (a, b)) == pytest.approx(g.mean())
    assert with_misclicks(g, (a, b), (0.0, 0.0)) == pytest.approx(seen.mean())


def test_misclick_lines_are_the_callers_or_of_first_order():
    made = make(0)
    found = made.diagnose()
    assert [entry.rate for entry in found.sensitivity.misclick] == [0, 0.01, 0.05]
    assert found.sensitivity.misclick[0].mean_g == pytest.approx(found.sensitivity.mean_g, abs=0.01)
    assert found.sensitivity.misclick[2].mean_g < found.sensitivity.mean_g - 0.03
    given = made.diagnose(misclick_sensitivity=[(0.0, 0.5), (0.02, 0.41)])
    assert given.sensitivity.misclick[1].mean_g == 0.41
    assert "by misclick rate: mean preference 0.50 at 0, 0.41 at 0.02" in str(given)
    low = made.diagnose(misclick_sensitivity=[(0.05, 0.21)], mean_error=0.0).sensitivity.mean_g_range[0]
    assert low == pytest.approx(0.21)


def test_displeasure_mirrors_the_range():
    made = make(0)
    pleasure = made.diagnose().sensitivity
    made.reward = -made.reward
    displeasure = made.diagnose(polarity=(-1, -1)).sensitivity
    assert displeasure.mean_g_range == pytest.approx((1 - pleasure.mean_g_range[1], 1 - pleasure.mean_g_range[0]))


def test_wrong_polarity_is_contradicted_with_the_remedy():
    made = make(0)
    down = ~made.pleased & (made.rng.random(ROWS) < 0.4)
    made.feedback[:, 1] = down
    remedy = "If one of the two shows displeasure, declare its polarity -1"
    for design in ("constant", "hidden"):
        found = diagnose(made.feedback, propensity_design=design)
        assert found.kind == found.ranking == found.scale == "contradicted"
        assert "act together" in found.verdict
        assert "together in 0 rows" in str(found)
        assert remedy in " ".join(found.remedies)
        logits = {"reward_logits": np.tile([0.5, -0.5], ROWS // 2), "propensity_logits": np.zeros((ROWS, 2))}
        assert "act together" in failed(diagnose(made.feedback, propensity_design=design, **logits))
    assert diagnose(made.feedback, propensity_design="hidden", polarity=(1, -1)).kind == "not identified"


def test_impossible_known_propensities_are_contradicted():
    made = make(0)
    known = sigmoid(made.propensity)
    assert diagnose(made.feedback, propensity_design="known", propensity=known).kind == "identified"
    tiny = diagnose(made.feedback, propensity_design="known", propensity=np.full(known.shape, 1e-30))
    assert tiny.kind == "contradicted"
    assert "known propensities" in tiny.verdict
    assert "Correct the known propensities" in tiny.remedies[0]
    made.propensity = np.full(known.shape, -69.0)
    logits = {"reward_logits": made.reward, "propensity_logits": made.propensity}
    assert diagnose(made.feedback, propensity_design="known", **logits).kind == "contradicted"

    pleased = np.ones(ROWS, bool)
    made.act(known, pleased)
    a_tenth = known.copy()
    order = np.argsort(known[:, 0])[: ROWS // 10]
    a_tenth[order, 0] *= 0.5
    more = np.argsort(known[:, 0])[ROWS // 2 :]
    a_tenth[more, 0] = np.minimum(1, 2 * a_tenth[more, 0])  # too low in one decile, overall too high
    found = diagnose(made.feedback, propensity_design="known", propensity=a_tenth)
    assert "in decile 1;" in next(test for test in found.tests if test.name == "known propensities").text
    assert found.kind == "contradicted"
    assert diagnose(made.feedback, propensity_design="known", propensity=known).kind == "identified"


def test_constant_reward_is_contradicted():
    made = make(0)
    made.reward = np.full(ROWS, 0.3)
    found = made.diagnose()
    assert found.kind == "contradicted"
    assert "reward varies" in found.verdict
    assert "are all embeddings equal?" in found.remedies[0]
    known = {"propensity_design": "known", "reward_logits": made.reward, "propensity_logits": made.propensity}
    assert diagnose(made.feedback, **known).kind == "contradicted"


def test_what_foretells_no_better_than_constant_rates_is_not_learned():
    made = make(0)
    learned = made.diagnose()
    noise = made.rng.normal(size=ROWS)
    made.propensity = np.full_like(made.propensity, -0.5)
    made.reward = noise
    found = made.diagnose()
    assert learned.ranking == "conditional"
    assert found.kind == found.ranking == "not learned"
    assert found.scale == "conditional"
    assert found.verdict.startswith("not learned: ")
    assert "Do not use this reward" in found.remedies[0]
    worse, better = (next(t for t in d.tests if t.name == "better than constant rates") for d in (found, learned))
    assert worse.statistic < 0 < better.statistic
    alone = diagnose(made.feedback, propensity_design="hidden")
    assert next(t for t in alone.tests if t.name == "better than constant rates").result == "not testable"


def test_saved_diagnoses_of_older_versions_are_read():
    made = make(0)
    found = made.diagnose("users", "sessions", "times")
    late = made.times > np.median(made.times)
    made.feedback[late, 0] = 0  # the details of a failure are saved too
    found = made.diagnose("users", "sessions", "times")
    assert "broken button" in failed(found)
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    again = Diagnosis.from_dict(content)
    assert (again.kind, again.ranking, again.scale) == (found.kind, found.ranking, found.scale)
    assert again.sensitivity == found.sensitivity
    del content["ranking"], content["scale"], content["sensitivity"]["misclick"]
    old = Diagnosis.from_dict(content)
    assert (old.ranking, old.scale, old.sensitivity.misclick) == ("contradicted", "contradicted", ())
    assert "mean preference" in str(old)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sessions": ["a"]}, "sessions: got 1; expected 3"),
        ({"segments": {"platform": ["ios"]}}, r"segments\['platform'\]: got 1; expected 3"),
        ({"times": np.zeros(2)}, r"times: got shape \(2,\); expected \(3,\)"),
        ({"acted_at": np.zeros(3)}, r"acted_at: got shape \(3,\); expected \(3, 2\)"),
        ({"context": ("weather",)}, "context: got 'weather'; expected names among user, session, time, place"),
        ({"propensity": np.full((3, 2), 1.5)}, r"propensity: got 1.5; expected probabilities in \(0, 1\]"),
    ],
)
def test_refused(change, message):
    with pytest.raises(ValueError, match=message):
        diagnose(np.zeros((3, 2), int), propensity_design="known", **change)


def test_unknown_names_and_times_are_no_error():
    made = make(0, rows=600)
    nothing = [None] * 600
    found = diagnose(
        made.feedback,
        propensity_design="hidden",
        users=nothing,
        sessions=nothing,
        times=np.full(600, np.nan),
        acted_at=np.full((600, 2), np.nan),
        segments={"platform": nothing},
    )
    assert found.kind == "conditional"
    half = np.where(np.arange(600) % 2, made.times, np.nan)
    assert made.diagnose("users", "sessions", times=half).kind == "conditional"
