"""The result of a diagnosis, with the form in which it is saved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from irm_fast.diagnostics import page, text
from irm_fast.diagnostics.cross_row import CrossRow
from irm_fast.diagnostics.sensitivity import SharedActivity
from irm_fast.diagnostics.subject import Check


@dataclass(frozen=True)
class Sensitivity:
    """How far scale and ranking of the reward would move if an assumption were wrong; see `sensitivity`.

    A field is None where there are no predictions, or nothing to compare.

    Attributes:
        mean_g: The mean preference as fitted.
        mean_g_range: The range of the mean preference. With one signal, it goes from the mean action rate to 1. With
            dependence between the rows of one user, it goes from the fitted mean (users differ in how easily they are
            pleased) to the mean corrected for shared activity (users differ in that alone).
        rank_with_action_rate: With one signal, Spearman's correlation of the fitted preference with the action rate:
            with the ranking that a constant propensity gives. A constant preference would leave no ranking at all.
        shared_activity: With two signals or more, what the reward would be under a shared activity of several sizes.
        refit_agreement: The mean of Spearman's correlations of refits; agreement does not prove that they are right.
    """

    mean_g: float | None = None
    mean_g_range: tuple[float, float] | None = None
    rank_with_action_rate: float | None = None
    shared_activity: tuple[SharedActivity, ...] = ()
    refit_agreement: float | None = None


@dataclass(frozen=True)
class Diagnosis:
    """The answer to the question whether the reward is identified, and on what it rests.

    Attributes:
        kind: `identified`, `conditional`, `not identified` or `contradicted`.
        verdict: The same in words.
        assumed: What has to be believed for these propensity designs, a sentence each.
        tests: The checks of the log.
        sensitivity: How far the answer would be off if an assumption were wrong.
        remedies: The cheapest remedy for each problem, the worst problem first.
        cross_row: The dependence between different rows of one user, where users repeat and there are predictions.
    """

    kind: str
    verdict: str
    assumed: tuple[str, ...]
    tests: tuple[Check, ...]
    sensitivity: Sensitivity
    remedies: tuple[str, ...] = ()
    cross_row: CrossRow | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as JSON can hold it: lists and mappings, and None for what is not finite."""
        cross = self.cross_row
        content = {name: value for name, value in asdict(self).items() if name != "cross_row"}
        if cross is not None:
            content["cross_row"] = {**cross._asdict(), "rho": cross.rho.tolist(), "interval": cross.interval.tolist()}
        plain: dict[str, Any] = _plain(content)
        return plain

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Diagnosis:
        """Return the diagnosis that `to_dict` described."""
        sensitivity, cross = dict(content["sensitivity"]), content.get("cross_row")
        span = sensitivity["mean_g_range"]
        sensitivity["mean_g_range"] = None if span is None else tuple(span)
        sensitivity["shared_activity"] = tuple(SharedActivity(**entry) for entry in sensitivity["shared_activity"])
        if cross is not None:
            arrays = {name: np.array(cross[name], float) for name in ("rho", "interval")}
            cross = CrossRow(**{**cross, **arrays})
        return cls(
            kind=content["kind"],
            verdict=content["verdict"],
            assumed=tuple(content["assumed"]),
            tests=tuple(Check(**entry) for entry in content["tests"]),
            sensitivity=Sensitivity(**sensitivity),
            remedies=tuple(content["remedies"]),
            cross_row=cross,
        )

    def summary(self) -> str:
        """Return a few lines of text: the verdict, what failed, and what would help."""
        return text.summary(self.to_dict())

    def __str__(self) -> str:
        """Return a page of text: the verdict, and all that it rests on."""
        return text.report(self.to_dict())

    def _repr_html_(self) -> str:
        """Return HTML, which notebooks show."""
        return page.as_html(self.to_dict())


def _plain(value: Any) -> Any:
    """Turn tuples into lists, and floats that are not finite into None."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
