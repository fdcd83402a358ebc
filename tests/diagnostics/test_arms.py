"""Arms beside each other: means, intervals over groups, what drives the reward, and agreement with an outcome."""

from __future__ import annotations

import numpy as np
import pytest

from irm_fast.diagnostics.arms import Comparison, compare_arms


def compared(rows: int = 3000, seed: int = 0, shift: float = 0.5, **more) -> Comparison:
    rng = np.random.default_rng(seed)
    arm = rng.integers(0, 2, rows)
    length = rng.normal(size=rows)
    reward = shift * arm + 0.7 * length + rng.normal(size=rows)
    groups = rng.integers(0, rows // 5, rows)
    features = np.stack([3 + 10 * length, np.full(rows, 2.0)], 1)
    names = [("old", "new")[a] for a in arm]
    return compare_arms(reward, -1.0, names, groups, features, ("length", "lists"), **more)


def test_differences_and_drivers() -> None:
    found = compared(randomised=True, outcome={"new": 0.12, "old": 0.10})
    assert [arm.name for arm in found.arms] == ["new", "old"] and found.agreement == 1
    new, old = found.arms
    assert found.reference == max(found.arms, key=lambda arm: arm.rows).name
    gap = new.reward - old.reward
    assert gap == pytest.approx(0.5, abs=0.15) and new.differs is not old.differs
    assert new.preference_low < new.preference < new.preference_high < 1
    [length] = found.drivers  # the other mark does not vary
    assert length.mark == "length" and length.correlation == pytest.approx(0.7 / np.sqrt(1.49 + 1 / 16), abs=0.03)
    assert length.correlation_low < 0.7 / np.sqrt(1.49 + 1 / 16) < length.correlation_high
    assert length.covariance == pytest.approx(0.7, abs=0.05) and "covariance +0.7" in str(found)
    assert [text[:31] for text in found.cautions] == [
        "Of 2 arms chance alone gives th",
        "Few prompts have several answer",
    ]


def test_intervals_hold_as_often_as_they_say() -> None:
    """The difference of two arms, 200 logs: nominal 90%."""
    covered = 0
    for seed in range(200):
        found = compared(400, seed)
        [other] = [arm for arm in found.arms if arm.name != found.reference]
        truth = 0.5 if other.name == "new" else -0.5
        covered += other.difference_low < truth < other.difference_high
    assert 0.83 < covered / 200 < 0.96


def test_intervals_are_of_groups() -> None:
    """Rows that repeat each other make no interval narrower."""
    rng = np.random.default_rng(0)
    reward, arm, groups = rng.normal(size=300), rng.integers(0, 2, 300), np.arange(300)
    widths = []
    for times in (1, 20):
        names = ["ab"[a] for a in np.repeat(arm, times)]
        features = np.zeros((300 * times, 1))
        found = compare_arms(np.repeat(reward, times), 0.0, names, np.repeat(groups, times), features, ("none",))
        [other] = [a for a in found.arms if a.name != found.reference]
        widths.append(other.difference_high - other.difference_low)
    assert widths[0] == pytest.approx(widths[1], rel=1e-6)


def test_weights_count_as_often_repeated_rows_do() -> None:
    """Of users: a row of weight 3 is a row that is there three times, and one of weight 0 is not there."""
    rng = np.random.default_rng(0)
    reward, arm, groups = rng.normal(size=400), rng.integers(0, 2, 400), rng.integers(0, 90, 400)
    marks, weight = rng.normal(size=(400, 1)) + reward[:, None], rng.integers(0, 4, 400)
    names = ["ab"[a] for a in arm]
    weighed = compare_arms(reward, 0.3, names, groups, marks, ("mark",), weight=weight)
    again = np.repeat(np.arange(400), weight)
    repeated = compare_arms(reward[again], 0.3, [names[i] for i in again], groups[again], marks[again], ("mark",))
    plain = compare_arms(reward, 0.3, names, groups, marks, ("mark",))
    assert {arm.name: arm.rows for arm in weighed.arms} == {
        name: int((weight[arm == k] > 0).sum()) for k, name in enumerate("ab")
    }
    for one, other, bare in zip(
        *(sorted(c.arms, key=lambda a: a.name) for c in (weighed, repeated, plain)), strict=True
    ):
        for field in ("preference", "preference_low", "preference_high", "reward"):
            assert getattr(one, field) == pytest.approx(getattr(other, field), rel=1e-9), field
        assert abs(one.reward - bare.reward) > 1e-3
    [one], [other] = weighed.drivers, repeated.drivers
    assert (one.correlation, one.correlation_low) == pytest.approx((other.correlation, other.correlation_low), rel=1e-9)
    gone = compare_arms(reward, 0.3, [*names[:-1], "c"], groups, marks, ("mark",), weight=np.r_[np.ones(399), 0])
    assert {arm.name for arm in gone.arms} == {"a", "b"}  # an arm of weight 0 is none


def test_stars_are_as_rare_among_many_arms() -> None:
    """Of 20 arms that are alike a tenth of logs has a star; where each interval stood alone, two thirds had one."""
    names, groups, marks = [f"arm {row % 20}" for row in range(1000)], np.arange(1000), np.zeros((1000, 1))

    def stars(seed: int, of_one: float = 0.0) -> list[str]:
        reward = np.random.default_rng(seed).normal(size=1000) + of_one * (groups % 20 == 7)
        return [arm.name for arm in compare_arms(reward, 0.0, names, groups, marks, ("none",)).arms if arm.differs]

    assert 0 < np.mean([bool(stars(seed)) for seed in range(30)]) < 0.3
    assert np.mean([stars(seed, 2.0) == ["arm 7"] for seed in range(5)]) > 0.7  # and one that is apart is found
    assert "90% interval, of all 20 at once" in str(compare_arms(groups / 1e3, 0.0, names, groups, marks, ("none",)))


def test_drivers_are_those_within_prompts() -> None:
    """Long prompts have long answers of high reward; among the answers to one prompt the reward falls with length."""
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(200), 5)
    topic, length = rng.normal(size=200)[prompts], rng.normal(size=1000)
    reward = 3 * topic - length + 0.2 * rng.normal(size=1000)
    names = ["ab"[row % 2] for row in range(1000)]
    marks = np.stack([2 * topic + length, topic], 1)
    args = (reward, 0.0, names, prompts, marks, ("length", "of the prompt"))
    within, over = compare_arms(*args, prompts=prompts), compare_arms(*args)
    [driver] = within.drivers  # the other mark does not vary within prompts
    assert driver.mark == "length" and driver.correlation == pytest.approx(-1 / np.sqrt(1.04), abs=0.01)
    assert driver.covariance == pytest.approx(-1, abs=0.05) and (within.prompts, within.compared) == (200, 1000)
    assert over.drivers[1].correlation_low > 0.4 and over.prompts == 0
    text = " ".join(str(within).split())
    assert "to first order (200 prompts within which 1,000 answers are compared; intervals: 90% for all marks" in text
    assert "length less correlation" in text and not any("Few prompts" in said for said in within.cautions)
    assert "to first order" not in str(over) and "may move a mark the other way" in over.cautions[-1]


def test_rows_without_a_user_are_counted_where_others_have_one() -> None:
    found = compared(userless=np.arange(3000) < 7)
    assert any(said == "7 rows have no user, and are grouped by their prompts." for said in found.cautions)
    assert not any("no user" in said for said in compared().cautions)


@pytest.mark.parametrize(("arms", "said"), [(2, "50% of cases"), (3, "17% of cases"), (4, None)])
def test_the_order_of_few_arms_says_little(arms, said) -> None:
    names = ["abcd"[row % arms] for row in range(400)]
    reward = np.random.default_rng(0).normal(size=400)
    outcome = {name: float(place) for place, name in enumerate("abcd"[:arms])}
    found = compare_arms(reward, 0.0, names, np.arange(400), np.zeros((400, 1)), ("none",), outcome=outcome)
    assert (
        [text for text in found.cautions if "chance alone" in text and said in text]
        if said
        else not any("chance alone" in text for text in found.cautions)
    )


def test_the_verdict_on_the_model_comes_first() -> None:
    found = compared(randomised=True, caution="The reward is not identified.")
    assert found.cautions[0] == "The reward is not identified." and "note: The reward is not" in str(found)
    assert found.to_dict()["cautions"] == list(found.cautions)


def test_what_is_said_and_refused() -> None:
    found = compared(40)
    assert "--randomised says that they were" in found.cautions[0] and "Under 20 groups" in found.cautions[1]
    args = (np.zeros(3), 0.0, ["a", "b", None], np.arange(3), np.zeros((3, 1)), ("none",))
    assert compare_arms(*args, by="model").cautions[-1] == "1 rows have no model and are left out."
    with pytest.raises(ValueError, match=r"model: got a in 3 rows; expected two arms or more"):
        compare_arms(*args[:2], ["a", None, "a"], *args[3:], by="model")
    with pytest.raises(ValueError, match=r"got b in 3 rows; .* above 0 \(all rows of a have weight 0"):
        compare_arms(*args, by="model", weight=np.array([0.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match=r"outcome: got c; expected values of arm: a, b"):
        compare_arms(*args, outcome={"c": 1.0, "a": 0.0})
    with pytest.raises(ValueError, match="outcome: got a alone; expected two"):
        compare_arms(*args, outcome={"a": 1.0})
    one = compare_arms(np.zeros(2), 0.0, ["a", "b"], np.zeros(2, int), np.zeros((2, 1)), ("none",))
    assert np.isnan(one.arms[0].preference_low)  # one group says nothing of others
    tied = compare_arms(*args, outcome={"a": 1.0, "b": 1.0})
    assert np.isnan(tied.agreement) and "tau none, as all are equal" in str(tied) and "nan" not in str(tied)


@pytest.mark.parametrize("alone", ["a", "b"])
def test_an_arm_of_one_group_has_no_interval(alone) -> None:
    """Its mean is the same in every resample, which is no certainty; it may be the reference too."""
    rng = np.random.default_rng(0)
    names = ["a"] * 120 + ["b"] * 80  # a is the reference
    groups = np.array([-1 if name == alone else row % 30 for row, name in enumerate(names)]) + 1
    found = compare_arms(
        rng.normal(size=200) + 5 * np.repeat([0, 1], [120, 80]), 0.0, names, groups, rng.normal(size=(200, 1)), ("m",)
    )
    by_name = {arm.name: arm for arm in found.arms}
    assert found.reference == "a" and by_name[alone].groups == 1 and by_name["b"].difference > 4
    assert (
        np.isnan(by_name[alone].preference_low) and not by_name["b"].differs and np.isnan(by_name["b"].difference_high)
    )
    other = by_name["ab".replace(alone, "")]
    assert other.preference_low < other.preference < other.preference_high
    assert "nan" not in str(found) and f"(of one, none): {alone}." in found.cautions[-2]
