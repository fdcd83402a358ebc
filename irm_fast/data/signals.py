"""What a signal is to a reward model: its polarity, misclick rate and propensity design, and what a log must have."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np

from irm_fast.data.log import Log

if TYPE_CHECKING:  # config.py reads the designs from here, and help should not wait for torch
    from torch import Tensor

Design = Literal["constant", "hidden", "features", "known"]
DesignChoice = Literal["auto", "constant", "hidden", "features", "known"]
Absent = Literal["error", "silent", "missing"]  # the meaning of a feedback key that some rows lack
DESIGNS: tuple[Design, ...] = get_args(Design)
DESIGN_CHOICES: tuple[DesignChoice, ...] = get_args(DesignChoice)
Numbers = TypeVar("Numbers", np.ndarray, "Tensor")


@dataclass(frozen=True)
class RewardSpec:
    """What a reward model explains and how: all that rebuilds it beside its weights.

    Args:
        design: The propensity design, one of `DESIGNS`.
        signals: Names of the K signals.
        polarity: +1 or -1 for each signal.
        misclick_rate: A rate in [0, 1) for each signal.
        feature_names: Names of the features that the design `features` reads.
        max_length: The number of tokens of a row, at most.
    """

    design: str
    signals: tuple[str, ...] = ()
    polarity: tuple[int, ...] = ()
    misclick_rate: tuple[float, ...] = ()
    feature_names: tuple[str, ...] = ()
    max_length: int = 1024

    @property
    def columns(self) -> int:
        """Columns of the propensity logits: one for each signal, or one that is always missing."""
        return max(1, len(self.signals))

    @property
    def loss_options(self) -> dict[str, Any]:
        """The keywords of `implicit_rm_loss` that belong to the signals rather than to a batch."""
        return {"polarity": self.polarity, "misclick_rate": self.misclick_rate} if self.signals else {}

    def action_rates(self, reward: Tensor, propensity: Tensor) -> Tensor:
        """Predicted action rates (N, K), from reward logits (N,) and propensity logits (N, K)."""
        sides, misclick_rate = reward.new_tensor(self.polarity or (1,)), reward.new_tensor(self.misclick_rate or (0,))
        return action_rate((reward[:, None] * sides).sigmoid(), propensity.sigmoid(), misclick_rate)


def action_rate(own: Numbers, propensity: Numbers, misclick_rate: Any) -> Numbers:
    """The probability that a signal acts.

    Args:
        own: The probability that the preference is on the side that the signal speaks for.
        propensity: The probability that an active user of that side acts.
        misclick_rate: The share of it with which users of the other side act.
    """
    return propensity * (own + misclick_rate * (1 - own))


def known_logits(propensity: Tensor) -> Tensor:
    """Propensity logits, float32, of known probabilities in (0, 1].

    A probability of 1 would have an infinite logit and gets that of 1 - 1e-12; NaN, which stands where the feedback is
    missing, gets 0.
    """
    return propensity.double().clamp(max=1 - 1e-12).logit().float().nan_to_num(0.0)


def align(log: Log, spec: RewardSpec) -> Log:
    """The log with the model's signals and features, in the model's order; a warning names signals left out.

    Raises:
        ValueError: the log lacks a signal of the model's or what its propensity design reads, records nothing
            that the model explains, or a row has evidence for both sides that no misclick explains.
    """
    lacking = [name for name in spec.signals if name not in log.signals]
    if lacking:
        got, expected = _names(log.signals), _names(spec.signals)
        raise ValueError(
            f"signals: the log lacks {_names(lacking)}; it has {got}, and the model was trained on {expected}"
        )
    extra = [name for name in log.signals if name not in spec.signals]
    if extra:
        text = f"signals: left out {_names(extra)}: the model was trained on {_names(spec.signals)}"
        warnings.warn(text, stacklevel=3)
    log = replace(keep_signals(log, spec.signals), polarity=spec.polarity)
    if not (log.feedback >= 0).any() and not (log.preference >= 0).any():
        what = f"none of {_names(spec.signals)} and no preference" if spec.signals else "no preference"
        raise ValueError(f"the log records {what} in {len(log)} rows; expected some of what the model explains")
    check_design(spec.design, log)
    check_evidence(spec, log)
    if spec.design == "features":
        if set(log.feature_names) != set(spec.feature_names):
            got, expected = _names(log.feature_names), _names(spec.feature_names)
            raise ValueError(f"features: the log has {got}; the model was trained on {expected}")
        order = [log.feature_names.index(name) for name in spec.feature_names]
        log = replace(log, feature_names=spec.feature_names, features=log.features[:, order])  # type: ignore[index]
    return log


def keep_signals(log: Log, names: Sequence[str]) -> Log:
    """The log with these of its signals, in this order."""
    order = [log.signals.index(name) for name in names]
    return replace(
        log,
        signals=tuple(names),
        polarity=tuple(log.polarity[k] for k in order),
        feedback=log.feedback[:, order],
        propensity=None if log.propensity is None else log.propensity[:, order],
    )


def check_evidence(spec: RewardSpec, log: Log) -> None:
    """Raise ValueError if a row contradicts itself and no misclick explains it: its likelihood would be zero."""
    rows = contradictions(log, certain=np.array(spec.misclick_rate) == 0)
    if len(rows):
        raise ValueError(
            f"feedback: row {log.ids[rows[0]]!r} contradicts itself; expected one side, or a misclick rate"
        )


def check_design(design: str, log: Log) -> None:
    """Raise ValueError if the log lacks what a propensity design reads."""
    if design == "features" and not log.feature_names:
        raise ValueError("features: the log has none; expected them in every row, or another propensity")
    if design != "known":
        return
    given = np.zeros(log.feedback.shape, bool) if log.propensity is None else ~np.isnan(log.propensity)
    lacking = np.argwhere((log.feedback != -1) & ~given)
    if len(lacking):
        row, k = lacking[0]
        raise ValueError(
            f"propensity.{log.signals[k]}: none in row {log.ids[row]!r}; the 'known' design expects one for "
            f"every recorded entry ({len(lacking)} lack it); add them or choose another propensity"
        )


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def contradictions(log: Log, certain: np.ndarray | bool = True) -> np.ndarray:
    """Indices of the rows with evidence for both sides: of two signals, or of a signal and the explicit preference.

    certain: (K,) bool, the signals whose actions no misclick explains.
    """
    acted, sign = (log.feedback == 1) & certain, np.array(log.polarity, int)
    liked = (acted & (sign > 0)).any(axis=1) | (log.preference == 1)
    disliked = (acted & (sign < 0)).any(axis=1) | (log.preference == 0)
    return np.flatnonzero(liked & disliked)


NESTED_FROM = 30  # actions


def signal_notes(log: Log) -> list[str]:
    """What the signals of a log tell against the model: those that never act, and those nested in another.

    Of two nested signals one acts only where the other does, as far as both are recorded there. Only said from 30
    actions on, since chance does the same with fewer: at a propensity of 0.9 once in 24 times.
    """
    acted = (log.feedback == 1).astype(np.int64)
    shared = acted.T @ (log.feedback >= 0)  # (K, K): actions of the one where the other is recorded
    both = acted.T @ acted
    notes = [
        f"{name}: never acts: it says nothing, and train leaves it out"
        for name, count in zip(log.signals, acted.sum(axis=0), strict=True)
        if not count
    ]
    nested = (shared >= NESTED_FROM) & (both == shared)
    for i, j in np.argwhere(np.triu(nested | nested.T, 1)):
        if nested[i, j] and nested[j, i]:
            what = f"{log.signals[i]} and {log.signals[j]} act in the same rows"
        else:
            inner, outer = (i, j) if nested[i, j] else (j, i)
            what = f"{log.signals[inner]} acts only where {log.signals[outer]} acts"
        notes.append(f"{what} ({both[i, j]} times): independence given the response cannot hold: keep one of them")
    return notes
