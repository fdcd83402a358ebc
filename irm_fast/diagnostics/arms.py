"""Arms beside each other: the mean reward of the answers of each, with intervals, and what drives the reward.

An arm is what a product serves to a part of its traffic: a model, a version, a prompt, the side of an A/B test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from irm_fast.diagnostics.comparison import LEVEL, Arm, Comparison, Driver
from irm_fast.diagnostics.exploits import movements
from irm_fast.diagnostics.intervals import resamples


def compare_arms(
    reward: np.ndarray,
    bias: float,
    arms: Sequence[str | None],
    groups: np.ndarray,
    marks: np.ndarray,
    mark_names: Sequence[str],
    *,
    prompts: np.ndarray | None = None,
    userless: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    by: str = "arm",
    randomised: bool = False,
    outcome: Mapping[str, float] | None = None,
    caution: str = "",
) -> Comparison:
    """Compare arms by the rewards of their answers.

    Intervals come from resamples of whole groups, as those of `intervals.ranking_intervals`: a user who saw two arms is
    drawn with the rows of both. Those of probabilities are percentiles, each by itself. Those of differences hold at
    once: their width is the quantile of the largest error of all arms, each in units of its standard error.

    Args:
        reward: Reward logits without their bias, of shape (N,).
        bias: The bias of the reward, which probabilities have and rewards do not.
        arms: The arm of each of the N rows, None where unknown.
        groups: Group numbers from 0, of shape (N,): of users, or prompts.
        marks: Marks of the answers, of shape (N, F).
        mark_names: The names of the F marks.
        prompts: Numbers, (N,), equal for answers to one prompt. None: each answer has a prompt of its own.
        userless: A mask, (N,), of the rows without a user where others have one. None: there are none.
        weight: The weights of the rows, of shape (N,), not negative; a row of weight 0 counts nowhere. None: all 1.
        by: What tells the arms apart, for messages.
        randomised: Whether the arms were assigned at random.
        outcome: An outcome of arms that is known from elsewhere, such as the lift of an A/B test, by arm.
        caution: As of `Comparison`.

    Raises:
        ValueError: There are fewer than two arms, or `outcome` names none of two arms or one that the rows lack.
    """
    weight = np.ones(len(reward)) if weight is None else weight.astype(np.float64)
    known = np.array([arm is not None for arm in arms], bool)
    counted = known & (weight > 0)
    of_rows = [arm for arm, counts in zip(arms, counted, strict=True) if arm is not None and counts]
    names = sorted(set(of_rows))
    _check_arms(names, arms, by)
    _check_outcome(outcome or {}, names, by)
    place = {name: number for number, name in enumerate(names)}
    arm = np.array([place[name] for name in of_rows])
    reward, weight, marks = reward[counted].astype(np.float64), weight[counted], marks[counted]
    _, group = np.unique(groups[counted], return_inverse=True)
    prompt = np.arange(len(reward)) if prompts is None else prompts[counted]
    counts = np.bincount(arm, minlength=len(names))
    reference = int(np.argmax(counts))

    sums = _sums(reward, bias, arm, group, weight, len(names))
    of_arm = (sums[:, : len(names)] > 0).sum(axis=0)  # groups
    drawn = np.array([times @ sums for times in resamples(len(sums))]).reshape(-1, sums.shape[1])
    drawn[:, np.flatnonzero(of_arm < 2)] = np.nan  # alike in every resample that has it, and no less uncertain for it
    whole, resampled = (_statistics(some, len(names), reference) for some in (sums.sum(0, keepdims=True), drawn))
    low, high = _at_once(whole.difference[0], resampled.difference, reference)
    found = [
        Arm(
            name,
            int(counts[k]),
            int(of_arm[k]),
            float(whole.preference[0, k]),
            *_ends(resampled.preference[:, k]),
            float(whole.reward[0, k]),
            float(whole.difference[0, k]),
            float(low[k]),
            float(high[k]),
        )
        for k, name in enumerate(names)
    ]
    moved = movements(reward, marks, group, prompt, weight, level=LEVEL, together=True)
    drivers = [Driver(mark_names[f], *movement) for f, movement in moved.of.items()]
    told = dict(outcome or {})
    return Comparison(
        by,
        tuple(sorted(found, key=lambda arm: -arm.reward)),
        names[reference],
        randomised,
        int((~known).sum()),
        0 if userless is None else int(userless[counted].sum()),
        tuple(sorted(drivers, key=lambda driver: -abs(driver.correlation))),
        moved.rows,
        moved.prompts,
        _agreement([whole.reward[0, place[name]] for name in told], list(told.values())) if told else None,
        told,
        caution,
    )


def _check_arms(names: Sequence[str], arms: Sequence[str | None], by: str) -> None:
    """Check that there are two arms or more whose rows have a weight."""
    if len(names) < 2:
        silent = ", ".join(sorted({arm for arm in arms if arm is not None} - set(names)))
        more = f" with a weight above 0 (all rows of {silent} have weight 0, and count nowhere)" if silent else ""
        got = ", ".join(names) or "none"
        raise ValueError(f"{by}: got {got} in {len(arms)} rows; expected two arms or more to compare{more}")


def _check_outcome(outcome: Mapping[str, float], names: Sequence[str], by: str) -> None:
    if strange := [name for name in outcome if name not in names]:
        raise ValueError(f"outcome: got {', '.join(strange)}; expected values of {by}: {', '.join(names)}")
    if len(outcome) == 1:
        raise ValueError(f"outcome: got {', '.join(outcome)} alone; expected two arms or more, to rank them")


def _sums(
    reward: np.ndarray, bias: float, arm: np.ndarray, group: np.ndarray, weight: np.ndarray, arms: int
) -> np.ndarray:
    """Sums over the rows of each group, (G, 3 A), of which those of a resample are weighted sums.

    By arm the weights of its rows, their rewards and their probabilities, each times the weight.
    """
    probability = 1 / (1 + np.exp(-(reward + bias)))
    is_of = arm[:, None] == np.arange(arms)
    columns = [values * rows for values in (weight, weight * reward, weight * probability) for rows in is_of.T]
    return np.stack([np.bincount(group, column) for column in columns], 1)


class _Statistics(NamedTuple):
    """What follows from R rows of sums, of A arms, each (R, A)."""

    preference: np.ndarray
    reward: np.ndarray
    difference: np.ndarray


def _statistics(sums: np.ndarray, arms: int, reference: int) -> _Statistics:
    """The statistics of sums as of `_sums`, one group or one resample a row."""
    weights, rewards, probabilities = np.split(sums, np.arange(1, 3) * arms, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):  # an arm that a resample lacks
        reward, preference = rewards / weights, probabilities / weights
    return _Statistics(preference, reward, reward - reward[:, [reference]])


def _at_once(whole: np.ndarray, resampled: np.ndarray, reference: int) -> tuple[np.ndarray, np.ndarray]:
    """The ends of intervals of differences, each (A,), that hold at once; NaN of an arm without resamples.

    With t-like statistics of the resamples, of which the largest counts (Romano and Wolf, Econometrica 2005): arms are
    compared with one reference, and their errors go together.

    Args:
        whole: Differences of A arms to the reference, (A,).
        resampled: The same of R resamples, (R, A), NaN where a resample lacks one of the two.
        reference: The number of the reference, whose ends are 0.
    """
    low, high = np.full((2, len(whole)), np.nan)
    low[reference] = high[reference] = 0.0
    some = np.flatnonzero((~np.isnan(resampled)).any(axis=0) & (np.arange(len(whole)) != reference))
    if len(some):
        off = np.abs(resampled[:, some] - whole[some])
        error = np.nanstd(resampled[:, some], axis=0)
        most = np.where(np.isnan(off), 0, off / np.where(error > 0, error, np.inf)).max(axis=1)
        width = np.quantile(most, LEVEL) * error
        low[some], high[some] = whole[some] - width, whole[some] + width
    return low, high


def _ends(values: np.ndarray) -> tuple[float, float]:
    """The ends of an interval, NaN where there are no resamples."""
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _agreement(rewards: Sequence[float], outcome: Sequence[float]) -> float:
    """Kendall's tau-b of two orders of the same arms; NaN where either has no order."""
    from scipy.stats import kendalltau

    return float(kendalltau(rewards, outcome).statistic)
