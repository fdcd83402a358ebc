"""Unbiased reward models from clicks, copies and shares.

The public API in one glance; what a name needs is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from irm_fast.common.extras import needing

if TYPE_CHECKING:  # for type checkers and editors; at run time the table below does the same
    from irm_fast.data.log import Log as Log
    from irm_fast.data.read import read_log as read_log
    from irm_fast.diagnostics import Diagnosis as Diagnosis
    from irm_fast.diagnostics import diagnose as diagnose
    from irm_fast.embeddings.estimator import EmbeddingRewardModel as EmbeddingRewardModel
    from irm_fast.embeddings.scorer import implicit_scorer as implicit_scorer
    from irm_fast.evaluation.evaluation import evaluate as evaluate
    from irm_fast.evaluation.scoring import load as load
    from irm_fast.evaluation.scoring import score as score
    from irm_fast.kernels.reference import definition as reference  # noqa: F401
    from irm_fast.losses import baselines as baselines
    from irm_fast.losses import hf as hf
    from irm_fast.losses import nuisances as nuisances
    from irm_fast.losses.dispatch import backends as backends
    from irm_fast.losses.implicit import ImplicitRMLoss as ImplicitRMLoss
    from irm_fast.losses.implicit import implicit_rm_loss as implicit_rm_loss
    from irm_fast.losses.implicit import stratify as stratify
    from irm_fast.losses.linear import linear_implicit_rm_loss as linear_implicit_rm_loss
    from irm_fast.losses.signal_heads import SignalHeads as SignalHeads
    from irm_fast.training.config import EmbeddingTrainConfig as EmbeddingTrainConfig
    from irm_fast.training.config import TrainConfig as TrainConfig
    from irm_fast.training.run import train as train
    from irm_fast.training.run import train_log as train_log

__version__ = "0.1.0"

_HOME = {  # name: the module that defines it, or that it is
    "Diagnosis": "irm_fast.diagnostics",
    "EmbeddingRewardModel": "irm_fast.embeddings.estimator",
    "EmbeddingTrainConfig": "irm_fast.training.config",
    "ImplicitRMLoss": "irm_fast.losses.implicit",
    "Log": "irm_fast.data.log",
    "SignalHeads": "irm_fast.losses.signal_heads",
    "TrainConfig": "irm_fast.training.config",
    "backends": "irm_fast.losses.dispatch",
    "baselines": "irm_fast.losses.baselines",
    "diagnose": "irm_fast.diagnostics",
    "evaluate": "irm_fast.evaluation.evaluation",
    "hf": "irm_fast.losses.hf",
    "implicit_rm_loss": "irm_fast.losses.implicit",
    "implicit_scorer": "irm_fast.embeddings.scorer",
    "linear_implicit_rm_loss": "irm_fast.losses.linear",
    "load": "irm_fast.evaluation.scoring",
    "nuisances": "irm_fast.losses.nuisances",
    "read_log": "irm_fast.data.read",
    "reference": "irm_fast.kernels.reference.definition",
    "score": "irm_fast.evaluation.scoring",
    "stratify": "irm_fast.losses.implicit",
    "train": "irm_fast.training.run",
    "train_log": "irm_fast.training.run",
}
_EXTRA = {  # room: the extra that its public names need; those of the losses need none
    "data": "import",
    "diagnostics": "embeddings",
    "embeddings": "embeddings",
    "evaluation": "train",
    "training": "train",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needing(f"irm_fast.{name}", _EXTRA.get(_HOME[name].split(".")[1])):
        module = import_module(_HOME[name])
    value = getattr(module, name, module)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
