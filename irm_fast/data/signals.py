"""What a signal is to a reward model (polarity, misclick rate, propensity design), and what a log must have for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np

from irm_fast.common.warning import warn_caller
from irm_fast.data.log import Log
from irm_fast.data.problems import row_named

if TYPE_CHECKING:  # the command line reads the designs from here, and its help should not wait for torch
    from torch import Tensor

Design = Literal["constant", "hidden", "features", "known"]
DesignChoice = Literal["auto", "constant", "hidden", "features", "known"]
Absent = Literal["error", "silent", "missing"]  # the meaning of a feedback key that some rows lack
Estimator = Literal["auto", "two-step", "joint"]  # of propensities
DESIGNS: tuple[Design, ...] = get_args(Design)
DESIGN_CHOICES: tuple[DesignChoice, ...] = get_args(DesignChoice)
_ROWS_AT_ONCE = 2**16
NESTED_FROM = 30  # actions: with fewer, chance nests one signal in another
Numbers = TypeVar("Numbers", np.ndarray, "Tensor")


@dataclass(frozen=True)
class RewardSpec:
    """The signals that a reward model explains, and how: with its weights, all that is needed to rebuild it.

    Attributes:
        design: The propensity design, one of `DESIGNS`:
            `constant`, the same propensity for every response; `hidden`, a function of the model's last hidden state;
            `features`, a function of the features in the log; `known`, given in the log.
        signals: The names of the K signals. A model of explicit preferences alone has none.
        polarity: +1 for each signal that users give when a response pleases them, -1 when it displeases them.
        misclick_rate: For each signal a rate in [0, 1): the share of active users who give it although the response
            did the opposite of what it speaks for.
        feature_names: The names of the features of the log that propensities read: in the design `features`, and of
            one signal whose design was chosen on embeddings.
        max_length: The largest number of tokens of a row; longer rows are truncated.
        estimator: "two-step" where propensities were fitted first, and held constant while the reward was trained;
            "joint" where one likelihood trained both.
        keeps_bos: Whether a row that is truncated keeps the BOS token that it begins with. Models of earlier versions
            were trained without it there, and are scored alike.

    Examples:
        >>> spec = RewardSpec("constant", signals=("copy", "dislike"), polarity=(1, -1), misclick_rate=(0.0, 0.05))
        >>> spec.columns
        2
        >>> spec.loss_options
        {'polarity': (1, -1), 'misclick_rate': (0.0, 0.05)}
    """

    design: str
    signals: tuple[str, ...] = ()
    polarity: tuple[int, ...] = ()
    misclick_rate: tuple[float, ...] = ()
    feature_names: tuple[str, ...] = ()
    max_length: int = 1024
    estimator: str = "joint"
    keeps_bos: bool = True

    @property
    def columns(self) -> int:
        """The number of columns of the propensity logits: one a signal, or, without signals, one that is not read."""
        return max(1, len(self.signals))

    @property
    def loss_options(self) -> dict[str, Any]:
        """The keywords of `implicit_rm_loss` that belong to the signals rather than to a batch."""
        return {"polarity": self.polarity, "misclick_rate": self.misclick_rate} if self.signals else {}

    def action_rates(self, reward_logits: Tensor, propensity_logits: Tensor) -> Tensor:
        """Predict how likely each signal is to act in each row.

        Args:
            reward_logits: Reward logits of shape (N,).
            propensity_logits: Propensity logits of shape (N, K).

        Returns:
            Probabilities of shape (N, K), in the dtype of the logits.
        """
        sides = reward_logits.new_tensor(self.polarity or (1,))
        misclick_rate = reward_logits.new_tensor(self.misclick_rate or (0,))
        own = (reward_logits[:, None] * sides).sigmoid()
        return action_rate(own, propensity_logits.sigmoid(), misclick_rate)


def action_rate(own: Numbers, propensity: Numbers, misclick_rate: Numbers | float) -> Numbers:
    """Return the probability that a signal acts.

    Args:
        own: The probability that the response did what the signal speaks for: that it pleased, if the polarity is +1,
            or that it did not, if it is -1.
        propensity: The probability that a user is active: such a user acts where the response did so.
        misclick_rate: The probability that an active user acts where the response did the opposite.

    Returns:
        Probabilities, in the common shape of the arguments.

    Examples:
        >>> action_rate(np.array([0.0, 0.5, 1.0]), np.array(0.4), 0.1).round(3).tolist()
        [0.04, 0.22, 0.4]
    """
    rate: Numbers = propensity * (own + misclick_rate * (1 - own))
    return rate


def known_logits(propensity: Tensor) -> Tensor:
    """Return the propensity logits, in float32, of known propensities in (0, 1].

    A propensity of 1 has an infinite logit and gets that of 1 - 1e-12. NaN, which stands where the feedback is missing,
    gets the logit 0.
    """
    return propensity.double().clamp(max=1 - 1e-12).logit().float().nan_to_num(0.0)


def keep_signals(log: Log, names: Sequence[str]) -> Log:
    """Return the log with these of its signals only, in this order."""
    order = [log.signals.index(name) for name in names]
    return replace(
        log,
        signals=tuple(names),
        polarity=tuple(log.polarity[k] for k in order),
        feedback=log.feedback[:, order],
        propensity=None if log.propensity is None else log.propensity[:, order],
        acted_at=None if log.acted_at is None else log.acted_at[:, order],
    )


def align(log: Log, spec: RewardSpec) -> Log:
    """Return the log with the signals and features of a model, in the model's order.

    A warning names the signals of the log that the model does not know; they are left out.

    Raises:
        ValueError: The log lacks a signal of the model or what its propensity design reads, it records nothing that
            the model explains, or a row contradicts itself and no misclick rate explains it.
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
        warn_caller(text)
    log = replace(keep_signals(log, spec.signals), polarity=spec.polarity)
    if not (log.feedback >= 0).any() and not (log.preference >= 0).any():
        what = f"none of {_names(spec.signals)} and no preference" if spec.signals else "no preference"
        raise ValueError(f"the log records {what} in {len(log)} rows; expected some of what the model explains")
    check_design(spec.design, log)
    check_evidence(spec, log)
    return _with_features(log, spec.feature_names) if spec.feature_names else log


def _with_features(log: Log, names: tuple[str, ...]) -> Log:
    """Return the log with its features in the order of the names."""
    if log.features is None or set(log.feature_names) != set(names):
        raise ValueError(f"features: the log has {_names(log.feature_names)}; the model was trained on {_names(names)}")
    order = [log.feature_names.index(name) for name in names]
    return replace(log, feature_names=names, features=log.features[:, order])


def check_design(design: str, log: Log) -> None:
    """Raise ValueError if the log lacks what a propensity design reads."""
    if design == "features" and not log.feature_names:
        texts = f" that are numbers (texts: {', '.join(log.segments)})" if log.segments else ""
        raise ValueError(f"features: the log has none{texts}; expected them in every row, or another propensity design")
    if design != "known":
        return
    given = np.zeros(log.feedback.shape, bool) if log.propensity is None else ~np.isnan(log.propensity)
    lacking = np.argwhere((log.feedback != -1) & ~given)
    if len(lacking):
        row, k = lacking[0]
        where = row_named(log.ids[row], row)
        raise ValueError(
            f"propensity.{log.signals[k]}: none in {where}; the propensity design 'known' expects "
            f"one for every recorded entry ({len(lacking)} lack it); add them, or choose another propensity design"
        )


def check_evidence(spec: RewardSpec, log: Log) -> None:
    """Raise ValueError if a row contradicts itself and no misclick rate explains it: its likelihood would be zero."""
    rows = contradictions(log, certain=np.array(spec.misclick_rate) == 0)
    if len(rows):
        where = row_named(log.ids[rows[0]], int(rows[0]))
        raise ValueError(f"feedback: {where} contradicts itself; expected one side, or a misclick rate")


def contradictions(log: Log, certain: np.ndarray | bool = True) -> np.ndarray:
    """Find the rows that say both that the response pleased and that it did not.

    Two signals of opposite polarity say so, or a signal and the explicit preference.

    Args:
        log: The log.
        certain: A mask of shape (K,) of the signals whose actions no misclick explains, or True for all.

    Returns:
        The row numbers, int64, in increasing order.
    """
    return np.flatnonzero(contradictory(log.polarity, log.feedback, log.preference, certain))


def contradictory(
    polarity: Sequence[int] | np.ndarray,
    feedback: np.ndarray,
    preference: np.ndarray,
    certain: np.ndarray | bool = True,
) -> np.ndarray:
    """Return a mask (N,) of the rows of `contradictions`, of the arrays of a log.

    Args:
        polarity: +1 or -1 for each of K signals.
        feedback: Feedback of shape (N, K): 1, 0, or -1 missing.
        preference: Explicit preferences of shape (N,): 1, 0, or -1 unknown.
        certain: As of `contradictions`.
    """
    acted, sign = (feedback == 1) & certain, np.array(polarity, int)
    liked = (acted & (sign > 0)).any(axis=1) | (preference == 1)
    disliked = (acted & (sign < 0)).any(axis=1) | (preference == 0)
    both: np.ndarray = liked & disliked
    return both


def without_contradictions(log: Log, certain: np.ndarray | bool = True) -> Log:
    """Return the rows that do not contradict themselves.

    A warning gives the number of the others, and what they imply: a signal acts in the share e * m of the rows of the
    other side, with its misclick rate e and its propensity m, which is at most 1. So e is at least the share of actions
    among the rows whose preference speaks against the signal, if these labels are right.

    Args:
        log: The log.
        certain: As of `contradictions`.

    Raises:
        ValueError: All rows contradict themselves.
    """
    rows = contradictions(log, certain)
    if len(rows) == len(log):
        raise ValueError(f"feedback: all {len(log)} rows contradict themselves; expected rows of one side")
    if len(rows):
        implied = implied_misclicks(log.signals, log.polarity, log.feedback, log.preference)
        text = f"left out {len(rows)} of {len(log)} rows that contradict themselves{implied}"
        warn_caller(text)
    return log.subset(np.setdiff1d(np.arange(len(log)), rows))


def implied_misclicks(
    signals: Sequence[str], polarity: Sequence[int], feedback: np.ndarray, preference: np.ndarray
) -> str:
    """Say how often each signal acted where the preference speaks against it, or nothing if it never did.

    Args:
        signals: The names of K signals.
        polarity: As of `contradictory`.
        feedback: As of `contradictory`.
        preference: As of `contradictory`.
    """
    bounds = []
    for k, (name, sign) in enumerate(zip(signals, polarity, strict=True)):
        against = feedback[preference == (0 if sign > 0 else 1), k]
        acted, recorded = int((against == 1).sum()), int((against >= 0).sum())
        if acted:
            bounds.append(f"{name} at least {acted / recorded:.2g} ({acted} of {recorded} labels against it)")
    return f"; if the labels are right, misclick rates are: {', '.join(bounds)}" if bounds else ""


def signal_notes(log: Log) -> list[str]:
    """Name the signals that do not fit the model: those that never act, and those that are nested in another.

    Of two nested signals one acts only where the other does, as far as both are recorded there. That is said of 30
    actions or more, since chance nests rarer ones: at a propensity of 0.9 even 30 actions nest once in 24 times.
    """
    shared = both = np.zeros((len(log.signals), len(log.signals)), np.int64)
    for start in range(0, len(log), _ROWS_AT_ONCE):
        feedback = log.feedback[start : start + _ROWS_AT_ONCE]
        acted = (feedback == 1).astype(np.int64)
        shared = shared + acted.T @ (feedback >= 0)  # actions of the one where the other is recorded
        both = both + acted.T @ acted
    notes = [
        f"{name}: never acts: it says nothing, and train leaves it out"
        for name, count in zip(log.signals, np.diag(both), strict=True)
        if not count
    ]
    nested = (shared >= NESTED_FROM) & (both == shared)
    for i, j in np.argwhere(np.triu(nested | nested.T, 1)):
        if nested[i, j] and nested[j, i]:
            what = f"{log.signals[i]} and {log.signals[j]} act in the same rows"
        else:
            inner, outer = (i, j) if nested[i, j] else (j, i)
            what = f"{log.signals[inner]} acts only where {log.signals[outer]} acts"
        notes.append(
            f"{what} ({both[i, j]} times): independence given the response cannot hold: keep one of them (--signals)"
        )
    return notes


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
