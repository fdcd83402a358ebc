"""The memory that training takes on one device, estimated before anything is loaded.

Parameters are counted on the model itself, built without memory for its weights. Activations are counted in a forward
pass on tensors without memory: what autograd keeps of it for the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from irm_fast.models.adapters import Lora, add_adapters
from irm_fast.models.attention import head_width
from irm_fast.models.backbone import skeleton_of
from irm_fast.training.config import TrainConfig

_FLOAT32, _BFLOAT16 = 4, 2  # bytes a number
_FOUR_BITS = 0.5 + 1 / 64 + 4 / 64 / 256  # bytes a weight: 64 share a scale of a byte, 256 scales a number of 4
_MOMENTS = 2 * _FLOAT32  # of AdamW
_MOMENTS_OF = {
    "8bit": 2.0,
    "4bit": 1.0,
    "lion": 4.0,
    "sgd": 4.0,
    "adafactor": 0.1,
}  # what optimisers' names say, others
_DEVICE = 1e9  # the CUDA context, libraries and fragments
_COUNTED = "irm_counted"  # among the attention functions of transformers


@dataclass(frozen=True)
class MemoryEstimate:
    """The bytes of training on one device, by part.

    Attributes:
        parameters: The number of parameters of the whole model.
        trained: The number of those that are trained.
        weights: The weights; float32 where they are trained, with a copy in bfloat16 where they compute in it.
        gradients: The gradients of what is trained, float32.
        optimizer: What the optimiser keeps of each weight that is trained.
        activations: What a forward pass keeps for the backward pass.
        workspace: What the backward pass of a layer needs at once beside it, and the device's own.
    """

    parameters: int
    trained: int
    weights: float
    gradients: float
    optimizer: float
    activations: float
    workspace: float

    @property
    def total(self) -> float:
        """All parts together."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.workspace

    def in_words(self) -> str:
        """The estimate as a line of text."""
        parts = ("weights", "gradients", "optimizer", "activations", "workspace")
        each = ", ".join(f"{name} {getattr(self, name) / 1e9:.1f}" for name in parts)
        trained = parameters_in_words(self.trained, self.parameters)
        return f"about {self.total / 1e9:.1f} GB a device ({each}); {trained} trained"


def parameters_in_words(trained: int, parameters: int) -> str:
    """What is trained, as text: so many parameters, and their share where others are frozen."""
    if trained == parameters:
        return f"{parameters:,} parameters"
    return f"{trained:,} of {parameters:,} parameters ({trained / parameters:.2%})"


def estimate_memory(
    model_config: Any, config: TrainConfig, *, tokens: int | None = None, processes: int = 1
) -> MemoryEstimate:
    """Estimate the memory of a training run on each of its devices. It takes a second or two and no memory to speak of.

    Assumptions: AdamW with moments in float32, or what the name of `optim` says; weights that are trained, and their
    gradients, in float32, and with `precision` "bfloat16" a copy of them in bfloat16, kept until the backward pass has
    used it; frozen weights in the precision of computing, or in 4 bits; operations one by one, as without torch.compile
    and fused kernels, which keep less; flash attention, which keeps no scores; rows packed without padding; each
    token in all of the last layer, which packed rows may do without. Where a model does not compute without memory, its
    activations are guessed from the widths of its linear layers. Under FSDP weights, gradients and moments are divided
    by the processes, and two layers are whole at a time. Held-out rows need less than a training step.

    Args:
        model_config: A configuration of transformers, such as `models.backbone.model_config` reads.
        config: The settings of the run.
        tokens: The tokens of a forward pass. Default: the token budget, or as many rows as a pass has of the greatest
            length.
        processes: The number of processes, which matters with FSDP.

    Raises:
        ValueError: The model has no sequence classifier, or lacks layers that adapters are wanted for.
    """
    if tokens is None:
        tokens = config.token_budget or (config.rows_per_pass or 1) * config.max_length
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    model = skeleton_of(model_config, dtype).train()
    if config.lora_rank:
        add_adapters(model, Lora(config.lora_rank, config.lora_alpha, config.targets), "")
    layers = _layers(model)

    # Weights and what belongs to them
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    shards = processes if config.sharded else 1
    whole_layer = max(sum(_bytes(p) for p in layer.parameters()) for layer in layers)
    gathered = 2 * whole_layer if config.sharded else 0
    copies = 0.0  # of what is trained, but for embeddings, of which states alone are cast
    if dtype != torch.float32 and not config.sharded:
        looked_up = model.get_input_embeddings().weight
        copies = dtype.itemsize * (trained - looked_up.numel() * looked_up.requires_grad)
        copies /= 1 if config.gradient_checkpointing == "none" else len(layers)

    # Activations
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    try:
        kept = _kept_by_forward(model, tokens)
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError):  # attention of another kind
        kept = _guess_of_kept(model, tokens)
    of_a_layer = kept / len(layers)
    if config.gradient_checkpointing != "none":
        text = model.config.get_text_config()
        width = len(layers) * text.hidden_size  # of the layers' inputs
        if config.gradient_checkpointing == "selective":  # and of what products and attention give
            linear = [module for layer in layers for module in layer.modules() if isinstance(module, nn.Linear)]
            width += sum(module.out_features for module in linear)
            width += len(layers) * text.num_attention_heads * head_width(text)
        kept = min(kept, width * tokens * dtype.itemsize + of_a_layer)

    return MemoryEstimate(
        parameters=sum(p.numel() for p in model.parameters()),
        trained=trained,
        weights=(trained * _FLOAT32 + _frozen_bytes(model, config)) / shards + copies + gathered,
        gradients=trained * _FLOAT32 / shards,
        optimizer=trained * _bytes_of_moments(config.optim or "") / shards,
        activations=kept,
        workspace=of_a_layer + _DEVICE,
    )


def _layers(model: Any) -> list[nn.Module]:
    """The layers of a model: the modules that its family does not split."""
    kinds = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in kinds] or [model.base_model]


def _bytes_of_moments(optim: str) -> float:
    """The bytes that an optimiser keeps of a weight, by its name in transformers."""
    return next((size for part, size in _MOMENTS_OF.items() if part in optim), _MOMENTS)


def _bytes(parameter: Tensor) -> int:
    return parameter.numel() * parameter.element_size()


def _frozen_bytes(model: Any, config: TrainConfig) -> float:
    """The bytes of the weights that are not trained."""
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return sum(
        p.numel() * _FOUR_BITS if config.load_in_4bit and name in linear else float(_bytes(p))
        for name, p in frozen.items()
    )


def _kept_by_forward(model: Any, tokens: int) -> int:
    """The bytes that autograd keeps of a forward pass over one pack, parameters left out."""
    kept: dict[int, tuple[int, Tensor]] = {}  # by storage, with the tensor, so that no other takes its place
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = (storage.nbytes(), tensor)
        return tensor

    model.config._attn_implementation = _register_counted()
    position = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.base_model(input_ids=position, position_ids=position, attention_mask=None, use_cache=False)
    return sum(size for size, _ in kept.values())


def _guess_of_kept(model: Any, tokens: int) -> int:
    """About the bytes of `_kept_by_forward`, from the widths of the linear layers: inputs, outputs, a quarter more."""
    layers = [module for module in model.base_model.modules() if isinstance(module, nn.Linear)]
    widths = sum(layer.in_features + layer.out_features for layer in layers)
    return int(1.25 * tokens * widths * model.dtype.itemsize)


class _CountedAttention(torch.autograd.Function):
    """Attention as flash kernels do it, of which only the shapes are right."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows, heads, tokens, _ = query.shape
        states = query.new_empty(rows, tokens, heads, value.shape[3])
        ctx.save_for_backward(query, key, value, states, query.new_empty(rows, heads, tokens, dtype=torch.float32))
        return states


def _register_counted() -> str:
    """Make the attention of `_CountedAttention` known to transformers, and return its name there."""
    from transformers import AttentionInterface

    def counted(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        return _CountedAttention.apply(query, key, value), None

    AttentionInterface.register(_COUNTED, counted)
    return _COUNTED
