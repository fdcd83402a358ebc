"""The context of a row, which the response does not show: when it was shown, and where in its session.

Times fall into ten bins of about equal numbers of rows, places in a session too. A bin is a column of 0 and 1 less its
mean; a row whose time or session is unknown has zeros, and is so neutral. The third part of a context, the user, is an
offset that `context_step` integrates out.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from irm_fast.data.groups import numbered

BINS = 10
LEAST = 30  # rows above the least number that are a bin, though they are less than a tenth


@dataclass(frozen=True)
class Bins:
    """Bins of a number, as columns.

    Attributes:
        edges: Inner edges (float64) of the B bins, of shape (B - 1,). A number below the first or above the last edge
            is in the nearest bin.
        means: The share of the known rows in each bin, of shape (B,).
    """

    edges: np.ndarray
    means: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Bins | None:
        """Return bins with about equal numbers of rows, or None if fewer than two bins differ.

        Where the least number fills nine bins or more, as the place 0 does where most sessions have one row, the rows
        above it are the other bin, if there are `LEAST` of them.

        Args:
            values: Numbers of shape (N,), NaN where unknown.
        """
        known = values[np.isfinite(values)]
        if not len(known):
            return None
        edges = np.unique(np.quantile(known, np.arange(1, BINS) / BINS, method="lower"))
        edges = edges[edges > known.min()]
        above = known[known > known.min()]
        if not len(edges) and len(above) >= LEAST:
            edges = above.min(keepdims=True)
        if not len(edges):
            return None
        place = np.searchsorted(edges, known, side="right")
        return cls(edges, np.bincount(place, minlength=len(edges) + 1) / len(known))

    def columns(self, values: np.ndarray) -> np.ndarray:
        """Return columns (float64) of shape (N, B): 1 in the bin of the number, less the mean; 0 where unknown.

        Args:
            values: Numbers of shape (N,), NaN where unknown.
        """
        known = np.isfinite(values)
        place = np.searchsorted(self.edges, np.where(known, values, 0.0), side="right")
        return np.where(known[:, None], np.eye(len(self.means))[place] - self.means, 0.0)


def places(
    sessions: Sequence[Hashable | None], times: np.ndarray | None, users: Sequence[Hashable | None] | None
) -> np.ndarray:
    """Return the place (float64) of each row in its session, from 0, NaN where the session is unknown.

    Args:
        sessions: N names of sessions, None where unknown.
        times: Seconds since 1970 of shape (N,), NaN where unknown. None means that rows are in their order.
        users: N user names; sessions of two users are two sessions, whatever their names. None if all are unknown.
    """
    rows = np.arange(len(sessions))
    people: Sequence[Hashable | None] = [None] * len(sessions) if users is None else users
    number = numbered(
        [None if session is None else (session, user) for session, user in zip(sessions, people, strict=True)]
    )
    order = np.lexsort((rows, rows if times is None else times, number))
    _, first, session = np.unique(number[order], return_index=True, return_inverse=True)
    found = np.empty(len(rows))
    found[order] = rows - first[session]
    found[[session is None for session in sessions]] = np.nan
    return found


def fingerprint(name: Hashable) -> int:
    """Return a number in [-2^63, 2^63) that stands for a name in a saved model, which keeps no names of users.

    Args:
        name: The name; names with the same text have the same number, and so have 7 and 7.0.
    """
    text = str(int(name)) if isinstance(name, float) and name.is_integer() else str(name)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)
