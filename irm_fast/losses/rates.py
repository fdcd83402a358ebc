"""The one rule of misclick rates. It takes no torch, as settings are read without it."""

from __future__ import annotations

from collections.abc import Iterable

LEAST = 2.0**-126  # the smallest normal float32, in which kernels compute: less may count as 0, an impossible misclick
MOST = 1 - 2.0**-24  # the largest float32 below 1: more would be 1, the rate of users who act on everything
EXPECTED = "numbers in [0, 1), as float32 holds them: 0, or from 1.2e-38 to 0.99999994"


def are_rates(values: Iterable[float]) -> bool:
    """Return whether all numbers are misclick rates: 0, or such that float32 tells them from 0 and from 1."""
    return all(value == 0 or LEAST <= value <= MOST for value in values)
