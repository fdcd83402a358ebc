"""Unbiased reward models from clicks, copies and shares."""

from importlib import import_module
from typing import Any

from irm_fast.losses import baselines, nuisances
from irm_fast.losses.dispatch import backends
from irm_fast.losses.implicit import ImplicitRMLoss, implicit_rm_loss, stratify
from irm_fast.losses.linear import linear_implicit_rm_loss

__version__ = "0.1.0"
_LAZY = {  # what costs an import of transformers or scikit-learn, on first use
    "Diagnosis": "irm_fast.diagnostics",
    "EmbeddingRewardModel": "irm_fast.embeddings.estimator",
    "Log": "irm_fast.data.log",
    "TrainConfig": "irm_fast.training.config",
    "diagnose": "irm_fast.diagnostics",
    "evaluate": "irm_fast.evaluation.evaluation",
    "load": "irm_fast.evaluation.scoring",
    "read_log": "irm_fast.data.read",
    "score": "irm_fast.evaluation.scoring",
    "train": "irm_fast.training.run",
    "train_log": "irm_fast.training.run",
}
__all__ = ["ImplicitRMLoss", "backends", "baselines", "implicit_rm_loss", "linear_implicit_rm_loss", "nuisances", "reference", "stratify", *_LAZY]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "reference":
        return import_module("irm_fast.kernels.reference.definition")
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
