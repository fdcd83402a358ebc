"""The shares of the four groups over rows: pleased or not, active or passive, as a model has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from irm_fast.losses.implicit import stratify

GROUPS = ("PA", "NA", "PP", "NP")  # as of `stratify`


def group_sums(
    reward_logits: Tensor,
    propensity_logits: Tensor,
    feedback: Tensor,
    weight: Tensor,
    options: Mapping[str, Any],
    preference: Tensor | None = None,
) -> Tensor:
    """Sums of the weighted posteriors over the rows that record a signal, from which `shares` takes means.

    Rows whose evidence contradicts itself, or whose logits are not finite, are left out.

    Args:
        reward_logits: (N,).
        propensity_logits: (N, K).
        feedback: (N, K): 1 acted, 0 silent, -1 not recorded.
        weight: The weights of the rows, (N,).
        options: Polarities and misclick rates, as of `stratify`.
        preference: Labels (N,), as of `stratify`.

    Returns:
        (K, 5) float64: a signal's sums of the four groups, in the order of `GROUPS`, and that of the weights.
    """
    groups = stratify(reward_logits, propensity_logits, feedback, preference=preference, **options).double()
    counts = (feedback >= 0) & groups.isfinite().all(dim=-1)
    of_rows = torch.where(counts, weight.double()[:, None], 0.0)
    weighed = torch.where(counts[..., None], groups, 0.0) * of_rows[..., None]
    return torch.cat([weighed.sum(0), of_rows.sum(0)[:, None]], dim=1)


def shares(signals: Sequence[str], sums: Tensor) -> dict[str, list[float]]:
    """The mean posterior of the four groups by signal, in the order of `GROUPS`; it waits for the device.

    Args:
        signals: The names of the K signals.
        sums: What `group_sums` gave, added up over batches.

    Returns:
        Four shares that sum to one; a signal that no row of some weight records is left out.
    """
    table = sums.tolist()
    return {name: [value / row[4] for value in row[:4]] for name, row in zip(signals, table, strict=True) if row[4] > 0}
