"""nn.Module faces of the public operations."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from irm_fast.functional import Reduction, implicit_rm_loss


class ImplicitRMLoss(nn.Module):
    """`irm_fast.implicit_rm_loss` with the settings of a log bound once. It has no parameters.

    Args:
        polarity, misclick_rate, reduction, backend: as in `implicit_rm_loss`.

    Call it as `loss_fn(reward_logits, propensity_logits, feedback)` with, per batch, the keywords `preference`,
    `weight`, `stratification`, `normalizer`, `return_groups`, `check_values` of `implicit_rm_loss`, which also lists
    shapes, dtypes and errors.
    """

    def __init__(self, *, polarity=None, misclick_rate=None, reduction: Reduction = "mean", backend: str | None = None):
        super().__init__()
        self.polarity = polarity
        self.misclick_rate = misclick_rate
        self.reduction = reduction
        self.backend = backend

    def forward(self, reward_logits: Tensor, propensity_logits: Tensor, feedback: Tensor, **batch: Any) -> Any:
        return implicit_rm_loss(
            reward_logits,
            propensity_logits,
            feedback,
            polarity=self.polarity,
            misclick_rate=self.misclick_rate,
            reduction=self.reduction,
            backend=self.backend,
            **batch,
        )

    def extra_repr(self) -> str:
        return f"polarity={self.polarity}, misclick_rate={self.misclick_rate}, reduction={self.reduction!r}"
