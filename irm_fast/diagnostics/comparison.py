"""What a comparison of arms finds, in numbers and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

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
            one group; 0 of the reference. The intervals of all arms hold at once with 90%.
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
    """A mark of answers, and how the reward goes with it, as of `exploits.movements`.

    Attributes:
        mark: Its name.
        correlation: The correlation of the reward with the mark, and the ends of its interval; those of all marks
            hold at once with 90%.
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
        userless: The number of rows without a user where others have one.
        drivers: The marks of answers that are not alike in all, and how the reward goes with them.
        compared: The number of answers that drivers were seen on.
        prompts: The number of prompts within which these were compared; 0: all were, of whatever prompt.
        agreement: Kendall's tau-b between mean rewards and a given outcome of the arms; None without an outcome.
        outcome: The outcome of the arms that has been given, by name.
        caution: What the verdict on the model means for these numbers, or "".
    """

    by: str
    arms: tuple[Arm, ...]
    reference: str
    randomised: bool
    without: int
    userless: int
    drivers: tuple[Driver, ...]
    compared: int
    prompts: int
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
        if self.userless:
            said.append(f"{self.userless} rows have no user, and are grouped by their prompts.")
        if self.agreement is not None and (chance := 1 / math.factorial(len(self.outcome))) > (1 - LEVEL) / 2:
            said.append(
                f"Of {len(self.outcome)} arms chance alone gives the order of the outcome in {chance:.0%} of cases: "
                "more arms would tell whether the reward ranks as the outcome does."
            )
        if self.drivers and not self.prompts:
            said.append(
                "Few prompts have several answers, so marks are compared over all prompts: where prompts move reward "
                "and mark both, a policy, which chooses among answers to one prompt, may move a mark the other way."
            )
        if self.without:
            said.append(f"{self.without} rows have no {self.by} and are left out.")
        return tuple(said)

    def __str__(self) -> str:
        lines = _table(self)
        if any(arm.differs for arm in self.arms):
            lines.append(f"* the interval leaves 0 out; of arms that are alike, {1 - LEVEL:.0%} of tables have a star")
        if self.agreement is not None:
            tau = "none, as all are equal" if np.isnan(self.agreement) else f"{self.agreement:+.2f}"
            lines.append(f"Order of {len(self.outcome)} arms beside the given outcome: Kendall's tau {tau}.")
        return "\n".join([*lines, "", *_drivers(self), *(f"note: {text}" for text in self.cautions)])


def _drivers(found: Comparison) -> list[str]:
    """The lines of the marks that the reward goes with."""
    over = f"{found.prompts:,} prompts within which" if found.prompts else "all prompts, over which"
    said = f"{over} {found.compared:,} answers are compared"
    if not found.drivers:
        return [f"No mark of answers varies, of {said}."]
    moves = (
        "What a policy that is optimised against this reward would move, to first order"
        if found.prompts
        else ("Marks of answers that the reward goes with")
    )
    lines = [f"{moves} ({said}; intervals: {LEVEL:.0%} for all marks at once):"]
    for driver in found.drivers:
        low, high = driver.correlation_low, driver.correlation_high
        way = "more" if low > 0 else "less" if high < 0 else "unclear"
        correlation = f"correlation with the reward {driver.correlation:+.2f} ({low:+.2f} to {high:+.2f})"
        lines.append(f"  {driver.mark:<24} {way:<8} {correlation}, covariance {driver.covariance:+.3f}")
    return lines


def _table(found: Comparison) -> list[str]:
    """The lines of a table of the arms."""
    each = f"{LEVEL:.0%} interval"
    rows = [
        (
            found.by,
            "rows",
            "groups",
            "P(pleases)",
            each,
            f"reward less {found.reference}",
            f"{each}, of all {len(found.arms)} at once",
        )
    ]
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
