"""The estimate of memory, on shapes that nobody has memory for here."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, Qwen3Config

from irm_fast.data.signals import RewardSpec
from irm_fast.models.adapters import Lora
from irm_fast.models.batches import Collator, stack_rows
from irm_fast.models.computation import computing
from irm_fast.models.packed import packed_attention
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.training import memory
from irm_fast.training.config import TrainConfig
from irm_fast.training.memory import estimate_memory

LLAMA = LlamaConfig(  # Llama-3.1-8B
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)
QWEN = Qwen3Config(  # Qwen3-8B
    vocab_size=151936,
    hidden_size=4096,
    intermediate_size=12288,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
)
RUN = TrainConfig(model="m", output="o", precision="bfloat16", token_budget=16384, gradient_checkpointing=True)


@pytest.mark.parametrize(("shape", "width"), [(LLAMA, 14336), (QWEN, 12288)])
def test_adapters_on_eight_billion_fit_one_device(shape, width):
    estimate = estimate_memory(shape, replace(RUN, lora_rank=16))
    assert 15e9 < estimate.weights < estimate.total < 40e9
    head, keys, layers = 4096, 1024, shape.num_hidden_layers
    pairs = 2 * (head + head) + 2 * (head + keys) + 3 * (head + width)  # of each linear layer, inputs and outputs
    assert estimate.trained == 16 * pairs * layers + head
    assert estimate.optimizer == 8 * estimate.trained
    whole = estimate_memory(shape, RUN)
    assert whole.total > 100e9
    assert whole.trained == whole.parameters == estimate.parameters - estimate.trained + head
    assert "about" in estimate.in_words() and f"{estimate.trained:,} of" in estimate.in_words()
    assert whole.in_words().endswith(f"); {whole.parameters:,} parameters trained")


def test_what_settings_change(monkeypatch):
    small = replace(RUN, lora_rank=16)
    shape = LlamaConfig(hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8)
    one = estimate_memory(shape, small)
    kept = estimate_memory(shape, replace(small, gradient_checkpointing="none"))
    assert kept.activations > 2 * one.activations
    checkpoints = ("full", "selective", "none")
    full, part, none = (estimate_memory(shape, replace(RUN, gradient_checkpointing=kind)) for kind in checkpoints)
    assert full.activations < part.activations < none.activations
    half = estimate_memory(shape, replace(small, token_budget=8192))
    assert half.activations == pytest.approx(one.activations / 2)
    assert estimate_memory(shape, small, tokens=8192) == half
    four = estimate_memory(shape, replace(small, load_in_4bit=True))
    assert four.weights < one.weights
    eight = estimate_memory(shape, replace(small, optim="adamw_8bit"))
    assert eight.optimizer == one.optimizer / 4
    whole = estimate_memory(shape, RUN)
    sharded = estimate_memory(shape, replace(RUN, fsdp=True), processes=8)
    assert sharded.optimizer == whole.optimizer / 8
    assert sharded.total < whole.total
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as accelerate's configuration asks for it
    assert estimate_memory(shape, RUN, processes=8) == sharded
    monkeypatch.undo()
    assert estimate_memory(shape, replace(RUN, precision="float32")).activations > whole.activations


@pytest.mark.parametrize("settings", [{}, {"precision": "bfloat16", "lora_rank": 4}])
def test_activations_are_those_that_are_kept(tiny_model, make_config, settings):
    """Counted on the model that computes, with its own attention and precision."""
    config = make_config(token_budget=4 * 64, **settings)
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    model = ImplicitRewardModel.from_backbone(tiny_model, RewardSpec("constant", ("copy",), (1,), (0.0,)), dtype)
    if config.lora_rank:
        model.add_adapters(Lora(config.lora_rank, config.lora_alpha), tiny_model)
    batch = Collator(model.tokenizer.pad_token_id, packed=True)(stack_rows([{"input_ids": list(range(3, 67))}] * 4))
    del batch["counts"]
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with (
        packed_attention(model, "varlen", every_token=True),
        computing(model.train(), dtype if config.precision == "bfloat16" else None),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        model("states", **batch)
    counted = sum(size for place, (size, _) in kept.items() if place not in parameters)
    copies = sum(2 * p.numel() for p in model.backbone.parameters() if p.requires_grad) if settings else 0
    estimate = estimate_memory(AutoConfig.from_pretrained(tiny_model), config)
    assert estimate.activations == pytest.approx(counted - copies, rel=0.1)


def test_a_guess_where_a_model_does_not_compute_without_memory(monkeypatch):
    counted = estimate_memory(LLAMA, RUN).activations

    def fails(model, tokens):
        raise TypeError

    monkeypatch.setattr(memory, "_kept_by_forward", fails)
    assert estimate_memory(LLAMA, RUN).activations == pytest.approx(counted, rel=0.1)
