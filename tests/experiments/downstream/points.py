"""Points of curves, for the tests of the run and of the report."""

from __future__ import annotations


def worth(pleases: float) -> dict[str, object]:
    """What answers come to, as the fields of `Outcome`."""
    return {"pleases": pleases, "acts": 0.2, "features": {"bait": 0.0}, "bait": 1.0}


def point(step: int, pleases: float) -> dict[str, object]:
    """A measurement of a policy on its way."""
    return {"step": step, "divergence": float(step), "score": 0.0, **worth(pleases)}
