"""The result of a diagnosis, with the form in which it is saved."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from irm_fast.diagnostics import page, text
from irm_fast.diagnostics.cross_row import CrossRow
from irm_fast.diagnostics.learned import NOT_TESTED, UNTESTED
from irm_fast.diagnostics.ranges import Sensitivity
from irm_fast.diagnostics.sensitivity import Misclicks, SharedActivity
from irm_fast.diagnostics.subject import Check

Made = TypeVar("Made")


@dataclass(frozen=True)
class Diagnosis:
    """The answer to the question whether the reward is identified, and on what it rests.

    Attributes:
        kind: `identified`, `conditional` (on independent signals), `not identified`, `not learned` (the model foretells
            actions no better than constant rates do) or `contradicted` (of ranking or scale, by this log); else it is
            the kind of the ranking.
        verdict: The same in words, for ranking and scale.
        assumed: What has to be believed for these propensity designs, a sentence each.
        tests: The checks of the log.
        sensitivity: How far the answer would be off if an assumption were wrong.
        remedies: The cheapest remedy for each problem, the worst problem first.
        cross_row: The dependence between different rows of one user, where users repeat and there are predictions.
        ranking: One of these kinds for the ranking of the responses.
        scale: One of these kinds for the scale: for the mean preference, and preferences as probabilities.
        learned: Whether the model foretells the actions of held-out rows better than constant rates do: `learned`, `not
            learned` or `not tested`; empty where no model is judged.

    Examples:
        >>> import numpy as np, irm_fast
        >>> one_signal = np.array([[1], [0], [0], [1]])
        >>> diagnosis = irm_fast.diagnose(one_signal, propensity_design="constant")
        >>> diagnosis.kind, diagnosis.ranking
        ('not identified', 'not identified')
        >>> print(diagnosis.verdict)
        not identified without assuming that the propensity is the same for every response
    """

    kind: str
    verdict: str
    assumed: tuple[str, ...]
    tests: tuple[Check, ...]
    sensitivity: Sensitivity
    remedies: tuple[str, ...] = ()
    cross_row: CrossRow | None = field(default=None, repr=False)
    ranking: str = ""
    scale: str = ""
    learned: str = ""

    def of_untested_model(self) -> Diagnosis:
        """Return the same diagnosis of a log as that of a model of which no held-out rows are known."""
        return replace(self, verdict=f"{self.verdict}; {UNTESTED}: there are none", learned=NOT_TESTED)

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as JSON can hold it: lists and mappings, and None for what is not finite."""
        cross = self.cross_row
        content = {name: value for name, value in asdict(self).items() if name != "cross_row"}
        if cross is not None:
            content["cross_row"] = {**cross._asdict(), "rho": cross.rho.tolist(), "interval": cross.interval.tolist()}
        plain: dict[str, Any] = as_json(content)
        return plain

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Diagnosis:
        """Return the diagnosis that `to_dict` described; of an older version, ranking and scale are of its one kind."""
        sensitivity, cross = dict(content["sensitivity"]), content.get("cross_row")
        span = sensitivity["mean_g_range"]
        sensitivity["mean_g_range"] = None if span is None else tuple(span)
        sensitivity["shared_activity"] = tuple(_made(SharedActivity, entry) for entry in sensitivity["shared_activity"])
        sensitivity["misclick"] = tuple(_made(Misclicks, entry) for entry in sensitivity.get("misclick", ()))
        if cross is not None:
            arrays = {name: np.array(cross[name], float) for name in ("rho", "interval")}
            cross = _made(CrossRow, {**cross, **arrays})
        return cls(
            kind=content["kind"],
            verdict=content["verdict"],
            assumed=tuple(content["assumed"]),
            tests=tuple(_made(Check, entry) for entry in content["tests"]),
            sensitivity=_made(Sensitivity, sensitivity),
            remedies=tuple(content["remedies"]),
            cross_row=cross,
            ranking=content.get("ranking", content["kind"]),
            scale=content.get("scale", content["kind"]),
            learned=content.get("learned", ""),
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


def _made(kind: Callable[..., Made], content: Mapping[str, Any]) -> Made:
    """Return an object of its fields, of which newer versions may have written more."""
    return kind(**{name: value for name, value in content.items() if name in inspect.signature(kind).parameters})


def as_json(value: Any) -> Any:
    """Return a value as JSON can hold it: tuples as lists, and floats that are not finite as None."""
    if isinstance(value, dict):
        return {key: as_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(entry) for entry in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
