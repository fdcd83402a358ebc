"""Checks of values, which wait for the device: of codes and weights."""

from __future__ import annotations

from torch import Tensor


def check_values(feedback: Tensor, preference: Tensor | None, weight: Tensor | None) -> None:
    """Raise ValueError, naming the first bad row, if a value is impossible. Waits for the device."""
    impossible = {"feedback": (_not_a_code(feedback), "1 (acted), 0 (silent) or -1 (missing)")}
    if preference is not None:
        impossible["preference"] = (_not_a_code(preference), "1, 0 or -1 (unknown)")
    if weight is not None:
        impossible["weight"] = (~((weight >= 0) & weight.isfinite()), "finite and not negative")
    for name, (bad, expected) in impossible.items():
        if bad.any():
            row = int(bad.reshape(len(bad), -1).any(1).nonzero()[0])
            raise ValueError(f"{name} must be {expected}; row {row} is not")


def _not_a_code(x: Tensor) -> Tensor:
    x = x.long()  # uint8 would take -1 for 255
    return (x > 1) | (x < -1)
