"""Arms beside each other: the mean reward of the answers of each, with intervals, and what drives the reward.

An arm is what a product serves to a part of its traffic: a model, a version, a prompt, the side of an A/B test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from irm_fast.diagnostics.exploits import moves_with, varying
from irm_fast.diagnostics.intervals import resamples

LEVEL = 0.9
FEW_GROUPS = 20  # below which intervals are too narrow


@dataclass(frozen=True)
class Arm:
    """The answers of one arm.

    Attributes:
        name: The arm.
        rows: The number of its rows.
        groups: The number of groups (users, or prompts) that they belong to.
        preference: The mean probability that an answer pleases; `low` and `high` are the ends of its 90% interval,
            NaN of an arm of one group, which says nothing of others.
        reward: The mean reward logit.
        difference: The mean reward less that of the reference, with the ends of its interval, NaN where either is of
            one group; 0 of the reference.
    """

    name: str
    rows: int
    groups: int
    preference: float
    preference_low: float
    preference_high: float
    reward: float
    difference: float
    difference_low: float
    difference_high: float

    @property
    def differs(self) -> bool:
        """Whether the interval of the difference to the reference leaves 0 out."""
        return self.difference_low > 0 or self.difference_high < 0


@dataclass(frozen=True)
class Driver:
    """A mark of answers, and how the reward goes with it over all rows, as of `exploits.moves_with`.

    Attributes:
        mark: Its name.
        correlation: The correlation of the reward with the mark, and the ends of its 90% interval.
        covariance: Their covariance over the mark's standard deviation, a logit of the reward.
    """

    mark: str
    correlation: float
    correlation_low: float
    correlation_high: float
    covariance: float


@dataclass(frozen=True)
class Comparison:
    """What `compare_arms` finds.

    Attributes:
        by: What tells the arms apart.
        arms: The arms, the highest mean reward first.
        reference: The arm from which differences are taken, the one with the most rows.
        randomised: Whether arms were assigned at random, as said by the user.
        without: The number of rows without an arm, which are left out.
        drivers: The marks of answers that are not alike in all, and how the reward goes with them.
        agreement: Kendall's tau-b between mean rewards and a given outcome of the arms; None without an outcome.
        outcome: The outcome of the arms that has been given, by name.
        caution: What the verdict on the model means for these numbers, or "".
    """

    by: str
    arms: tuple[Arm, ...]
    reference: str
    randomised: bool
    without: int
    drivers: tuple[Driver, ...]
    agreement: float | None
    outcome: Mapping[str, float]
    caution: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The same as a dict for JSON."""
        found = asdict(self) | {"outcome": dict(self.outcome), "cautions": list(self.cautions)}
        del found["caution"]  # it is one of the others
        return found

    @property
    def cautions(self) -> tuple[str, ...]:
        """What keeps the numbers from being what they seem, in sentences."""
        said = [self.caution] if self.caution else []
        if not self.randomised:
            said.append(
                "Whether arms were assigned at random is not said: users and prompts of the arms may differ, and their "
                "rewards with them. --randomised says that they were."
            )
        if few := [arm.name for arm in self.arms if arm.groups < FEW_GROUPS]:
            said.append(f"Under {FEW_GROUPS} groups, where intervals are too narrow (of one, none): {', '.join(few)}.")
        if self.without:
            said.append(f"{self.without} rows have no {self.by} and are left out.")
        return tuple(said)

    def __str__(self) -> str:
        lines = _table(self)
        if any(arm.differs for arm in self.arms):
            lines.append("* the interval of the difference leaves 0 out")
        if self.agreement is not None:
            tau = "none, as all are equal" if np.isnan(self.agreement) else f"{self.agreement:+.2f}"
            lines.append(f"Order of {len(self.outcome)} arms beside the given outcome: Kendall's tau {tau}.")
        lines += ["", "What a policy that is optimised against this reward would move, to first order:"]
        for driver in self.drivers:
            low, high = driver.correlation_low, driver.correlation_high
            way = "more" if low > 0 else "less" if high < 0 else "unclear"
            correlation = f"correlation with the reward {driver.correlation:+.2f} ({low:+.2f} to {high:+.2f})"
            lines.append(f"  {driver.mark:<24} {way:<8} {correlation}, covariance {driver.covariance:+.3f}")
        return "\n".join([*lines, *(f"note: {text}" for text in self.cautions)])


def _table(found: Comparison) -> list[str]:
    """The lines of a table of the arms."""
    interval = f"{LEVEL:.0%} interval"
    rows = [(found.by, "rows", "groups", "P(pleases)", interval, f"reward less {found.reference}", interval)]
    for arm in found.arms:
        less = ("", "")
        if arm.name != found.reference:
            star = "*" if arm.differs else ""
            less = (f"{arm.difference:+.3f}{star}", _interval(arm.difference_low, arm.difference_high, "+.3f"))
        chance = (f"{arm.preference:.3f}", _interval(arm.preference_low, arm.preference_high, ".3f"))
        rows.append((arm.name, f"{arm.rows:,}", f"{arm.groups:,}", *chance, *less))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _interval(low: float, high: float, form: str) -> str:
    """An interval as a cell; "-" where there is none."""
    return "-" if np.isnan(low) else f"{low:{form}} to {high:{form}}"


def compare_arms(
    reward: np.ndarray,
    bias: float,
    arms: Sequence[str | None],
    groups: np.ndarray,
    marks: np.ndarray,
    mark_names: Sequence[str],
    *,
    weight: np.ndarray | None = None,
    by: str = "arm",
    randomised: bool = False,
    outcome: Mapping[str, float] | None = None,
    caution: str = "",
) -> Comparison:
    """Compare arms by the rewards of their answers.

    Intervals are percentiles of resamples of whole groups, as of `intervals.ranking_intervals`: a user who saw two arms
    is drawn with the rows of both.

    Args:
        reward: Reward logits without their bias, of shape (N,).
        bias: The bias of the reward, which probabilities have and rewards do not.
        arms: The arm of each of the N rows, None where unknown.
        groups: Group numbers from 0, of shape (N,): of users, or prompts.
        marks: Marks of the answers, of shape (N, F).
        mark_names: The names of the F marks.
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
    if len(names) < 2:
        got = ", ".join(names) or "none"
        raise ValueError(f"{by}: got {got} in {len(arms)} rows; expected two arms or more to compare")
    _check_outcome(outcome or {}, names, by)
    place = {name: number for number, name in enumerate(names)}
    arm = np.array([place[name] for name in of_rows])
    reward, weight, marks = reward[counted].astype(np.float64), weight[counted], marks[counted]
    _, group = np.unique(groups[counted], return_inverse=True)
    counts = np.bincount(arm, minlength=len(names))
    reference = int(np.argmax(counts))

    sums = _sums(reward, bias, arm, group, weight, len(names))
    of_arm = (sums[:, : len(names)] > 0).sum(axis=0)  # groups
    drawn = np.array([times @ sums for times in resamples(len(sums))]).reshape(-1, sums.shape[1])
    drawn[:, np.flatnonzero(of_arm < 2)] = np.nan  # alike in every resample that has it, and no less uncertain for it
    whole, resampled = (_statistics(some, len(names), reference) for some in (sums.sum(0, keepdims=True), drawn))
    found = [
        Arm(
            name,
            int(counts[k]),
            int(of_arm[k]),
            float(whole.preference[0, k]),
            *_ends(resampled.preference[:, k]),
            float(whole.reward[0, k]),
            float(whole.difference[0, k]),
            *(_ends(resampled.difference[:, k]) if k != reference else (0.0, 0.0)),
        )
        for k, name in enumerate(names)
    ]
    drivers = [
        Driver(mark_names[f], *moves_with(reward, marks[:, f], group, weight, level=LEVEL))
        for f in np.flatnonzero(varying(marks, weight)).tolist()
    ]
    told = dict(outcome or {})
    return Comparison(
        by,
        tuple(sorted(found, key=lambda arm: -arm.reward)),
        names[reference],
        randomised,
        int((~known).sum()),
        tuple(sorted(drivers, key=lambda driver: -abs(driver.correlation))),
        _agreement([whole.reward[0, place[name]] for name in told], list(told.values())) if told else None,
        told,
        caution,
    )


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
