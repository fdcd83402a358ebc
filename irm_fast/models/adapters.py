"""Low-rank adapters (LoRA, arXiv:2106.09685) on a frozen backbone, by the package peft.

A linear layer of the backbone gets two small matrices beside its frozen weight; they are trained, and merged into the
weight at the end. The heads are trained whole.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from irm_fast.common.extras import need
from irm_fast.data.schema import read_object
from irm_fast.data.writing.whole import write_whole
from irm_fast.models.foreign_files import loading, quiet_transformers
from irm_fast.models.record import save_tensors

ADAPTER = "adapter"  # the folder of a kept adapter, beside the merged checkpoint
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # the names that peft gives them
_IN_PEFT = "base_model.model."  # what the names of peft begin with


class Lora(NamedTuple):
    """How adapters are made.

    Attributes:
        rank: The width of the two matrices.
        alpha: Their product is multiplied by alpha / rank.
        targets: Names of linear layers, or ends of names such as `q_proj`; None: all linear layers of the backbone.
    """

    rank: int
    alpha: float
    targets: Sequence[str] | None = None


class Adapter(NamedTuple):
    """A trained adapter, as peft saves and loads it, on the CPU.

    Attributes:
        config: The content of `adapter_config.json`.
        weights: The matrices by peft's names, and the reward head.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]

    def save(self, directory: Path) -> list[str]:
        """Write the files that `peft.PeftModel.from_pretrained` reads to the folder `adapter` of a saved model.

        Args:
            directory: The folder of the model.

        Returns:
            The paths of the files within it.
        """
        folder = directory / ADAPTER
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(self.weights, folder / _WEIGHTS)
        write_whole(folder / _CONFIG, json.dumps(self.config, indent=2) + "\n")
        return [f"{ADAPTER}/{_WEIGHTS}", f"{ADAPTER}/{_CONFIG}"]

    @classmethod
    def load(cls, directory: Path) -> Adapter | None:
        """Read what `save` wrote, or None if there is no such folder."""
        if not (directory / _CONFIG).is_file():
            return None
        config = read_object(directory / _CONFIG, "irm-fast train")
        with loading(f"{directory / _WEIGHTS}: damaged"):
            return cls(config, load_file(directory / _WEIGHTS))


def check_four_bits() -> None:
    """Raise ValueError if weights of 4 bits are not available here."""
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            "load_in_4bit: needs the package bitsandbytes, which is not installed; pip install bitsandbytes, or leave "
            "load_in_4bit out"
        )
    if not torch.cuda.is_available():
        raise ValueError("load_in_4bit: needs a CUDA device, and there is none; leave load_in_4bit out")


def linear_layers(backbone: nn.Module) -> list[str]:
    """The names of all linear layers within a backbone."""
    from transformers.pytorch_utils import Conv1D

    return [name for name, module in backbone.named_modules() if isinstance(module, (nn.Linear, Conv1D))]


def target_names(backbone: nn.Module, targets: Sequence[str] | None) -> list[str]:
    """The ends of names by which the adapted layers are known, sorted.

    Args:
        backbone: The backbone, perhaps without memory for its weights.
        targets: As of `Lora`.

    Raises:
        ValueError: A name belongs to no linear layer; the message has the closest that does.
    """
    layers = linear_layers(backbone)
    short = sorted({name.rpartition(".")[2] for name in layers})
    for name in targets or ():
        if not any(layer == name or layer.endswith(f".{name}") for layer in layers):
            close = difflib.get_close_matches(name, [*short, *layers], n=1)
            hint = f"did you mean {close[0]!r}?" if close else "expected some of them"
            raise ValueError(f"lora_targets: no linear layer {name!r}; {hint}; the model has {', '.join(short)}")
    return sorted(set(targets or short))


def add_adapters(classifier: Any, lora: Lora, base: str) -> Any:
    """Freeze the backbone of a classifier and put adapters into it, float32, which change nothing yet.

    Args:
        classifier: The classifier, which stays the same object.
        lora: How the adapters are made.
        base: The folder or hub id of the backbone, which a kept adapter names.

    Returns:
        The `peft.LoraModel` that has done it, for `merge_adapters`.

    Raises:
        MissingPackageError: peft is not installed.
        ValueError: As `target_names`.
    """
    need("peft", "lora_rank")
    from peft import LoraConfig, LoraModel

    backbone = classifier.base_model
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number
        target_modules=target_names(backbone, lora.targets),
        task_type="SEQ_CLS",
        base_model_name_or_path=os.path.abspath(base) if Path(base).is_dir() else base,
    )
    backbone.requires_grad_(False)
    on_meta = next(backbone.parameters()).is_meta
    tuner = LoraModel(backbone, config, "default", low_cpu_mem_usage=on_meta)  # else on the CPU
    for name, parameter in backbone.named_parameters():
        if is_of_adapter(name):
            parameter.data = parameter.data.float()
    return tuner


def is_of_adapter(name: str) -> bool:
    """Whether a name in a state is that of an adapter's weight."""
    return ".lora_" in name


def weights_in(parameter: Tensor) -> int:
    """The number of weights that a parameter holds; of those of 4 bits, a byte holds two."""
    return parameter.numel() * (2 if parameter.dtype == torch.uint8 else 1)


@torch.no_grad()
def merge_adapters(classifier: Any, tuner: Any) -> Adapter:
    """Add the products of the adapters to the weights of the backbone, and take the adapters out of it.

    The weights become float32 before: sums rounded to bfloat16 would lose much of what was learned.

    Args:
        classifier: The classifier, on the CPU.
        tuner: What `add_adapters` returned.

    Returns:
        The adapter, as it was.
    """
    config = tuner.peft_config["default"].to_dict()
    config |= {"inference_mode": True, "target_modules": sorted(config["target_modules"]), "modules_to_save": ["score"]}
    prefix = f"{_IN_PEFT}{classifier.base_model_prefix}."
    weights = {
        prefix + name.replace(".default.", "."): parameter.detach().clone()
        for name, parameter in classifier.base_model.named_parameters()
        if is_of_adapter(name)
    }
    weights[f"{_IN_PEFT}score.weight"] = classifier.score.weight.detach().clone()
    if getattr(classifier, "is_quantized", False):
        with quiet_transformers():
            classifier.dequantize(dtype=torch.float32)
    classifier.float()
    classifier.config.dtype = torch.float32
    tuner.merge_and_unload(safe_merge=True)
    return Adapter(config, weights)
