"""The arguments of `EmbeddingRewardModel.fit` other than the embeddings, checked and in uniform shapes."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

import numpy as np
import torch

from irm_fast.data.log import group_rows
from irm_fast.data.signals import DESIGN_CHOICES, known_logits


@dataclass(frozen=True)
class Observed:
    """The observations of N rows and K signals.

    Attributes:
        feedback: Feedback (int8) of shape (N, K): 1 acted, 0 silent, -1 not recorded.
        preference: Explicit preferences (int8) of shape (N,): 1, 0, or -1 unknown; None if there are none.
        weight: Row weights (float32) of shape (N,).
        polarity: +1 or -1 for each signal.
        misclick_rate: A rate in [0, 1) for each signal.
        designs: For each signal one of `DESIGN_CHOICES`.
        propensity: Known propensities (float64) of shape (N, K), or None.
        features: Propensity features (float32) of shape (N, F), or None.
        groups: N names; the rows of a group are held out together. None means the users.
        users: N user names, None where unknown; None if all are unknown.
        sessions: N names of sessions, None where unknown; None if all are unknown.
        times: Seconds since 1970 (float64) of shape (N,), NaN where unknown; None if all are unknown.
    """

    feedback: np.ndarray
    preference: np.ndarray | None
    weight: np.ndarray
    polarity: tuple[int, ...]
    misclick_rate: tuple[float, ...]
    designs: tuple[str, ...]
    propensity: np.ndarray | None
    features: np.ndarray | None
    groups: Sequence[Hashable] | None
    users: Sequence[Hashable | None] | None
    sessions: Sequence[Hashable | None] | None
    times: np.ndarray | None

    def __len__(self) -> int:
        return len(self.feedback)

    def known_logits(self) -> np.ndarray:
        """Return propensity logits (float32) of shape (N, K) for the design `known`, 0 for other signals."""
        known = np.array([design == "known" for design in self.designs])
        if self.propensity is None:
            return np.zeros(self.feedback.shape, np.float32)
        return known_logits(torch.from_numpy(np.where(known, self.propensity, np.nan))).numpy()

    def counted(self) -> Observed:
        """Return the rows whose weight is above 0."""
        rows = np.flatnonzero(self.weight > 0).tolist()

        def of(names: Sequence[Any] | None) -> list[Any] | None:
            return None if names is None else [names[row] for row in rows]

        return replace(
            self,
            feedback=self.feedback[rows],
            preference=None if self.preference is None else self.preference[rows],
            weight=self.weight[rows],
            propensity=None if self.propensity is None else self.propensity[rows],
            features=None if self.features is None else self.features[rows],
            groups=of(self.groups),
            users=of(self.users),
            sessions=of(self.sessions),
            times=None if self.times is None else self.times[rows],
        )

    def group_numbers(self) -> np.ndarray | None:
        """Return group numbers from 0, of shape (N,): of the groups, or else of the users; None without either."""
        names = self.groups if self.groups is not None else self.users
        return None if names is None else group_rows(list(names))

    def folds(self, count: int, random: np.random.RandomState) -> np.ndarray:
        """Divide the rows into folds of about equal size, with all rows of a group (or else of a user) in one fold.

        Args:
            count: The number of folds; there are fewer if there are fewer groups.
            random: Decides the order in which groups of equal size are placed.

        Returns:
            Fold numbers (integer) from 0, of shape (N,).

        Raises:
            ValueError: All rows are in one group.
        """
        numbers = self.group_numbers()
        group = np.arange(len(self)) if numbers is None else numbers
        sizes = np.bincount(group)
        count = min(count, len(sizes))
        if count < 2:
            raise ValueError(f"groups: got 1 group of n_samples={len(self)}; expected at least 2, to hold one out")
        order = random.permutation(len(sizes))
        order = order[np.argsort(-sizes[order], kind="stable")]
        fold, load = np.empty(len(sizes), int), np.zeros(count)
        for number in order:  # the largest first, each to the emptiest fold
            fold[number] = load.argmin()
            load[fold[number]] += sizes[number]
        return fold[group]


def observe(
    rows: int,
    feedback: Any,
    *,
    design: Any,
    polarity: Any,
    misclick_rate: Any,
    propensity: Any = None,
    features: Any = None,
    preference: Any = None,
    weight: Any = None,
    users: Any = None,
    sessions: Any = None,
    times: Any = None,
    groups: Any = None,
) -> Observed:
    """Check the arguments of a fit and bring them into uniform shapes.

    Args:
        rows: The number N of rows of the embeddings.
        feedback: Feedback of shape (N,) or (N, K): 1 acted, 0 silent, -1 not recorded. (N, 0) means no signals.
        design: One of `DESIGN_CHOICES` for all signals, or a sequence of K.
        polarity: +1 or -1 for all signals, or a sequence of K. None means +1.
        misclick_rate: A rate in [0, 1) for all signals, or a sequence of K. None means 0.
        propensity: Known propensities in (0, 1], shaped like the feedback; NaN where they are not known. None if no
            signal has the design `known`.
        features: Finite propensity features of shape (N, F), or None.
        preference: Explicit preferences of shape (N,): 1, 0, or -1 unknown. None if there are none.
        weight: Row weights of at least 0, of shape (N,). None means 1.
        users: N user names, None or NaN where unknown. None if all are unknown.
        sessions: N names of sessions, as the users.
        times: N times, as seconds since 1970 or as datetimes, NaN or NaT where unknown. None if all are unknown.
        groups: N names of groups. None means the users.

    Raises:
        ValueError: An argument has a wrong shape or value, a design lacks its propensities or features, no signal acts
            and no preference is given, or a row has evidence for both sides. The message says which argument, what was
            given and what is expected.
    """
    acts = _feedback(feedback, rows)
    signals = acts.shape[1]
    observed = Observed(
        feedback=acts,
        preference=None if preference is None else _ternary("preference", preference, (rows,)),
        weight=_weight(weight, rows),
        polarity=tuple(int(sign) for sign in _each("polarity", 1 if polarity is None else polarity, signals)),
        misclick_rate=tuple(
            float(r) for r in _each("misclick_rate", 0.0 if misclick_rate is None else misclick_rate, signals)
        ),
        designs=_designs(design, signals),
        propensity=None if propensity is None else _propensity(propensity, acts),
        features=None if features is None else _features(features, rows),
        groups=row_names("groups", groups, rows),
        users=row_names("users", users, rows),
        sessions=row_names("sessions", sessions, rows),
        times=None if times is None else seconds(times, rows),
    )
    _check(observed)
    return observed


def _check(observed: Observed) -> None:
    """Raise ValueError unless the observations fit together."""
    for name, values, right, expected in (
        ("polarity", observed.polarity, {1, -1}.issuperset(observed.polarity), "1 or -1 for every signal"),
        ("misclick_rate", observed.misclick_rate, all(0 <= r < 1 for r in observed.misclick_rate), "rates in [0, 1)"),
    ):
        if not right:
            raise ValueError(f"{name}: got {values}; expected {expected}")
    lacking = {"known": ("propensity", observed.propensity), "features": ("propensity_features", observed.features)}
    for design, (name, value) in lacking.items():
        if design in observed.designs and value is None:
            raise ValueError(f"{name}: none given; the {design!r} design reads it: pass {name} to fit")
    known = np.array([design == "known" for design in observed.designs])
    if observed.propensity is not None and (np.isnan(observed.propensity) & (observed.feedback >= 0))[:, known].any():
        raise ValueError("propensity: NaN where the feedback is recorded; expected a probability for every entry")
    counted = observed.weight > 0
    labelled = observed.preference is not None and (observed.preference[counted] >= 0).any()
    if not (observed.feedback[counted] == 1).any() and not labelled:
        raise ValueError(
            "feedback: no signal ever acts and no preference is given: there is only one class; expected actions"
        )
    _check_evidence(observed)


def _check_evidence(observed: Observed) -> None:
    """Raise ValueError if a row of weight above 0 proves both that the response is preferred and that it is not."""
    certain = np.array(observed.misclick_rate) == 0
    acted = (observed.feedback == 1) & certain
    liked, disliked = (acted & (np.array(observed.polarity) == side) for side in (1, -1))
    pro, contra = liked.any(axis=1), disliked.any(axis=1)
    if observed.preference is not None:
        pro, contra = pro | (observed.preference == 1), contra | (observed.preference == 0)
    rows = np.flatnonzero(pro & contra & (observed.weight > 0))
    if len(rows):
        raise ValueError(
            f"feedback: row {rows[0]} has evidence for both sides ({len(rows)} have); expected one, or a misclick_rate"
        )


def _feedback(value: Any, rows: int) -> np.ndarray:
    """Return feedback as int8 of shape (N, K), with a column of -1 if there are no signals, or raise ValueError."""
    if value is None:
        raise ValueError("feedback: requires y to be passed, but the target y is None")
    value = np.asarray(value)
    if value.ndim not in (1, 2):
        raise ValueError(f"feedback: got shape {value.shape}; expected ({rows},) or ({rows}, K)")
    value = value[:, None] if value.ndim == 1 else value
    if value.shape == (rows, 0):  # explicit labels alone
        value = np.full((rows, 1), -1)
    return _ternary("feedback", value, (rows, value.shape[1]))


def _ternary(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return values of 1, 0 and -1 as int8 if they have the given shape, or raise ValueError."""
    value = np.asarray(value)
    if value.shape != shape:
        raise ValueError(f"{name}: got shape {value.shape}; expected {shape}, as the rows of X")
    if not np.isin(value, (-1, 0, 1)).all():
        odd = np.unique(value[~np.isin(value, (-1, 0, 1))])[:5]
        raise ValueError(
            f"{name}: Unknown label type: got {odd}; expected 1, 0, or -1 for unknown. "
            "Only binary classification is supported."
        )
    return value.astype(np.int8)


def _weight(value: Any, rows: int) -> np.ndarray:
    """Return row weights as float32 of shape (N,), 1 if there are none, or raise ValueError."""
    if value is None:
        return np.ones(rows, np.float32)
    weight = np.asarray(value, np.float32)
    if weight.shape != (rows,):
        raise ValueError(f"sample_weight: got shape {weight.shape}; expected ({rows},), as the rows of X")
    if not np.isfinite(weight).all() or (weight < 0).any() or not weight.any():
        raise ValueError(
            "sample_weight: got negative, infinite or only zero weights; expected finite ones, one above 0"
        )
    return weight


def _propensity(value: Any, feedback: np.ndarray) -> np.ndarray:
    """Return known propensities as float64 of shape (N, K), or raise ValueError."""
    propensity = np.asarray(value, np.float64)
    propensity = propensity[:, None] if propensity.ndim == 1 else propensity
    if propensity.shape != feedback.shape:
        raise ValueError(f"propensity: got shape {propensity.shape}; expected {feedback.shape}, as the feedback")
    if ((propensity <= 0) | (propensity > 1)).any():
        raise ValueError("propensity: got values outside (0, 1]; expected probabilities")
    return propensity


def _features(value: Any, rows: int) -> np.ndarray:
    """Return propensity features as float32 of shape (N, F), or raise ValueError."""
    features = np.asarray(value, np.float32)
    if features.ndim != 2 or len(features) != rows or not np.isfinite(features).all():
        raise ValueError(f"propensity_features: got shape {features.shape}; expected ({rows}, F), finite")
    return features


def _designs(value: Any, signals: int) -> tuple[str, ...]:
    """Return one design for each signal, or raise ValueError."""
    designs = (value,) * signals if isinstance(value, str) else tuple(value)
    if len(designs) != signals or not set(designs) <= set(DESIGN_CHOICES):
        raise ValueError(
            f"propensity_design: got {value!r}; expected one of {', '.join(DESIGN_CHOICES)}, or {signals} of them"
        )
    return designs


def _each(name: str, value: Any, signals: int) -> list[Any]:
    """Return one number for each signal, from a single number or from K, or raise ValueError."""
    values = np.atleast_1d(np.asarray(value))
    if values.shape not in ((1,), (signals,)):
        raise ValueError(f"{name}: got {value!r}; expected one number, or {signals}")
    return np.broadcast_to(values, (signals,)).tolist()


def seconds(value: Any, rows: int) -> np.ndarray:
    """Return times as seconds since 1970 (float64), NaN where unknown.

    Args:
        value: N numbers of seconds, or N datetimes (of Python, numpy or pandas); a datetime without a zone is UTC.
        rows: The number N of rows.

    Raises:
        ValueError: There are not N times, or they are neither numbers nor datetimes.
    """
    array = np.asarray(value)
    if array.shape != (rows,):
        raise ValueError(f"times: got shape {array.shape}; expected ({rows},), as the rows of X")
    if array.dtype == object:
        array = np.array([_moment(entry) for entry in array], np.float64)
    if array.dtype.kind == "M":
        known = ~np.isnat(array)
        array = np.where(known, array.astype("datetime64[us]").astype(np.int64) / 1e6, np.nan)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"times: got {array.dtype}; expected seconds since 1970 or datetimes")
    return array.astype(np.float64)


def _moment(entry: Any) -> float:
    """Return the seconds since 1970 of one entry, NaN where it is unknown."""
    if entry is None or entry != entry:  # NaN and NaT differ from themselves
        return math.nan
    if isinstance(entry, datetime):
        return (entry if entry.tzinfo else entry.replace(tzinfo=timezone.utc)).timestamp()
    if isinstance(entry, np.datetime64):
        return float(entry.astype("datetime64[us]").astype(np.int64) / 1e6)
    if isinstance(entry, (int, float, np.number)) and not isinstance(entry, bool):
        return float(entry)
    raise ValueError(f"times: got {entry!r}; expected seconds since 1970 or datetimes")


def row_names(name: str, value: Any, rows: int) -> list[Any] | None:
    """Return N names with NaN replaced by None, or None if there are no names; raise ValueError for another length."""
    if value is None:
        return None
    if len(value) != rows:
        raise ValueError(f"{name}: got {len(value)}; expected {rows}, as the rows of X")
    return [None if isinstance(entry, float) and math.isnan(entry) else entry for entry in value]
