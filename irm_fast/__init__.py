"""Unbiased reward models from clicks, copies and shares."""

from typing import Any

from irm_fast import baselines
from irm_fast.backends import backends
from irm_fast.functional import implicit_rm_loss, stratify
from irm_fast.linear import linear_implicit_rm_loss
from irm_fast.modules import ImplicitRMLoss

__version__ = "0.1.0"
__all__ = [
    "EmbeddingRewardModel",
    "ImplicitRMLoss",
    "backends",
    "baselines",
    "implicit_rm_loss",
    "linear_implicit_rm_loss",
    "stratify",
]


def __getattr__(name: str) -> Any:
    """The estimator on first use: it imports scikit-learn, which the losses do without."""
    if name == "EmbeddingRewardModel":
        from irm_fast.embedding.estimator import EmbeddingRewardModel

        return EmbeddingRewardModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
