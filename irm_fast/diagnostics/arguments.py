"""The arguments of `diagnose`, checked and put together."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from irm_fast.data.groups import NO_NAME, numbered
from irm_fast.data.signals import DESIGNS, action_rate
from irm_fast.diagnostics.calibration import logit, refit
from irm_fast.diagnostics.subject import CONTEXTS, DiagnosedLog

Names = Sequence[Hashable | None] | np.ndarray


def check_feedback(feedback: np.ndarray) -> None:
    """Raise ValueError unless the feedback is of shape (N, K) and holds 1, 0 and -1 only."""
    if feedback.ndim != 2 or not np.isin(feedback, (-1, 0, 1)).all():
        got = f"{feedback.shape}" if feedback.ndim != 2 else "other values"
        raise ValueError(f"feedback: got {got}; expected (N, K) of 1 acted, 0 silent, -1 missing")


def check_shapes(given: Mapping[str, tuple[ArrayLike | None, tuple[int, ...]]]) -> None:
    """Raise ValueError for an argument that is given and does not have its shape; `given` holds both by name."""
    for name, (value, shape) in given.items():
        if value is not None and np.shape(value) != shape:
            raise ValueError(f"{name}: got shape {np.shape(value)}; expected {shape}, as the feedback's")


def check_lengths(given: Mapping[str, Names | None], rows: int) -> None:
    """Raise ValueError for names of rows that are given and are not as many as there are rows."""
    for name, value in given.items():
        if value is not None and len(value) != rows:
            raise ValueError(f"{name}: got {len(value)}; expected {rows}, as the feedback's rows")


def check_context(context: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a context, or raise ValueError for one that is none."""
    names = (context,) if isinstance(context, str) else tuple(context)
    if not set(names) <= set(CONTEXTS):
        raise ValueError(f"context: got {', '.join(map(repr, names))}; expected names among {', '.join(CONTEXTS)}")
    return names


def designs_of(propensity_design: str | Sequence[str], count: int) -> tuple[str, ...]:
    """Return the propensity design of each signal, or raise ValueError for a name that is none."""
    designs = (propensity_design,) * count if isinstance(propensity_design, str) else tuple(propensity_design)
    if not set(designs) <= set(DESIGNS) or len(designs) != count:
        expected = f"one of {', '.join(DESIGNS)}, or {count} of them"
        raise ValueError(f"propensity_design: got {propensity_design!r}; expected {expected}")
    return designs


def user_numbers(users: Names | None, rows: int) -> tuple[np.ndarray, dict[int, Hashable]]:
    """Return a number for each user and one of its own for each row without, of shape (N,), and users by number."""
    if users is None:
        return np.arange(rows), {}
    numbers = _apart(numbered(users))
    return numbers, {int(number): name for number, name in zip(numbers, users, strict=True) if name is not None}


def session_numbers(sessions: Names | None, users: Names | None, rows: int) -> np.ndarray | None:
    """Return the same of sessions, or None without; the name of a session may be known within its user alone."""
    if sessions is None:
        return None
    whose = [None] * rows if users is None else users
    return _apart(
        numbered([None if name is None else (user, name) for user, name in zip(whose, sessions, strict=True)])
    )


def _apart(numbers: np.ndarray) -> np.ndarray:
    """Return numbers of names with one of its own, below all of them, for each row without a name."""
    rows = len(numbers)
    return np.where(numbers == NO_NAME, np.arange(rows), rows + numbers)


def texts(segments: Mapping[str, Names] | None) -> dict[str, np.ndarray]:
    """Return the values of segments as texts of shape (N,), empty where None."""
    return {
        name: np.array(["" if value is None else str(value) for value in values], dtype=str)
        for name, values in (segments or {}).items()
    }


def known_propensities(log: DiagnosedLog, propensity: ArrayLike) -> DiagnosedLog:
    """Return the log with propensities of the design `known`, or raise ValueError for what is no probability."""
    values = np.asarray(propensity, float)
    wrong = np.isfinite(values) & ((values <= 0) | (values > 1))
    if wrong.any():
        raise ValueError(f"propensity: got {values[wrong][0]:g}; expected probabilities in (0, 1], or NaN")
    are_known = np.array(log.designs) == "known"
    return replace(log, known=np.where(are_known, values, np.nan)) if are_known.any() else log


def with_predictions(log: DiagnosedLog, reward: np.ndarray, propensity: np.ndarray) -> DiagnosedLog:
    """Return the log with predicted probabilities, and action rates refitted on the rows that have a prediction."""
    m = expit(propensity)
    are_known = np.array(log.designs) == "known"
    known = np.where(np.isfinite(log.known) | ~are_known, log.known, m) if are_known.any() else log.known
    rows = _index(np.isfinite(reward) & (np.isfinite(propensity) | (log.feedback < 0)).all(axis=1))
    m[~np.isfinite(m)] = 0.5  # of entries that are missing in the log as well
    own, rates, preferred = np.full(m.shape, np.nan), np.full(m.shape, np.nan), np.full(len(m), np.nan)
    own[rows], preferred[rows] = expit(reward[rows, None] * log.polarity), expit(reward[rows])
    columns = [*own[rows, :1].T, *m[rows].T]
    features = np.empty((len(preferred[rows]), len(columns)))
    for number, column in enumerate(columns):  # one after the other: a log may be large
        features[:, number] = logit(column)
    for k in range(m.shape[1]):
        rate, acted = action_rate(own[rows, k], m[rows, k], log.misclick[k]), log.feedback[rows, k]
        if (acted >= 0).any():
            recorded = _index(acted >= 0)
            rate[recorded] = refit(acted[recorded], rate[recorded], features[recorded])
        rates[rows, k] = rate
    return replace(log, known=known, own=own, preferred=preferred, propensity=m, rates=rates)


def _index(mask: np.ndarray) -> np.ndarray | slice:
    """Return an index of the rows of a mask (N,): of all rows there is no copy."""
    return slice(None) if mask.all() else np.flatnonzero(mask)
