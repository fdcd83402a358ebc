"""Behind the attention of the last layer only the last tokens are computed, and nothing else changes."""

import copy
from types import MethodType

import pytest
import torch
from transformers import GPTNeoXConfig, PhiConfig, Qwen3MoeConfig

from irm_fast.models import last_layer
from irm_fast.models.batches import Collator, stack_rows
from irm_fast.models.computation import computing
from irm_fast.models.packed import Trial, packed_attention, tried
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.training.build import computing_as_set
from tests.models.test_attention import CPU, FAMILIES, LENGTHS, TINY, compute, make_model, make_rows, off

MORE_FAMILIES = FAMILIES | {
    "phi": lambda: PhiConfig(**TINY),  # attention and what follows it stand side by side
    "qwen3_moe": lambda: Qwen3MoeConfig(
        **TINY, head_dim=8, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2
    ),
}


def results(model: ImplicitRewardModel, *, every_token: bool, **settings) -> dict[str, torch.Tensor]:
    """States, rewards, loss and gradient of packed rows, computed as `computing` is told."""
    with packed_attention(model, "varlen", every_token=every_token), computing(model, **settings):
        assert model.pools_early != every_token
        return compute(model, [make_rows()], packed=True)


def shapes_within(model: ImplicitRewardModel, *, every_token: bool) -> list[tuple[int, ...]]:
    """The shapes (1, tokens, width) of what goes into the gated part of each layer."""
    shapes = []
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape)) for layer in model.layers()
    ]
    batch = Collator(0, packed=True)(stack_rows([{"input_ids": row["input_ids"]} for row in make_rows()]))
    del batch["counts"]
    with torch.no_grad(), packed_attention(model, "varlen", every_token=every_token):
        model.pool(**batch)
    for hook in hooks:
        hook.remove()
    return [tuple(shape) for shape in shapes]


@pytest.mark.parametrize("family", MORE_FAMILIES)
def test_states_and_gradients_stay_the_same(family):
    model = make_model(MORE_FAMILIES[family]())
    whole, pooled = (results(model, every_token=every_token) for every_token in (True, False))
    assert whole["gradient"].abs().max() > 0.1
    assert off(pooled, whole) < 1e-6
    tokens, width = sum(LENGTHS), TINY["hidden_size"]
    assert shapes_within(model, every_token=True) == [(1, tokens, width)] * 2
    assert shapes_within(model, every_token=False) == [(1, tokens, width), (1, len(LENGTHS), width)]
    assert not model.pools_early
    assert not any(layer._forward_pre_hooks or layer.self_attn._forward_hooks for layer in model.layers())


@pytest.mark.parametrize("recompute", ["none", "full", "selective"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_every_precision_and_computed_again(dtype, recompute):
    model = make_model(FAMILIES["qwen3"]()).train()
    settings = {"dtype": dtype, "recompute": recompute}
    whole, pooled = (results(model, every_token=every_token, **settings) for every_token in (True, False))
    assert off(pooled, whole) < (1e-6 if dtype == torch.float32 else 0.01)
    assert torch.equal(pooled["gradient"], results(model, every_token=False, dtype=dtype)["gradient"])


def test_layers_that_are_made_otherwise_compute_all():
    model = make_model(GPTNeoXConfig(**TINY))
    assert tried(model) == Trial(None, pools_early=False)
    with packed_attention(model, "varlen"):
        assert (model.packed, model.pools_early) == (True, False)
        packed = compute(model, [make_rows()], packed=True)
    assert off(packed, compute(model, [make_rows()], packed=False)) < 1e-5


def test_layers_that_would_give_other_states_compute_all(monkeypatch):
    """As one would be that takes something else into its attention."""
    given = last_layer._give_every_token
    monkeypatch.setattr(last_layer, "_give_every_token", lambda layer, *others: given(object(), *others))
    model = make_model(FAMILIES["llama"]())
    assert tried(model) == Trial(None, pools_early=False)


def test_a_copy_normalises_by_its_own_weights():
    model = make_model(FAMILIES["llama"]())
    with packed_attention(model, "varlen"):
        average = copy.deepcopy(model)
        before = compute(average, [make_rows()], packed=True)
        (hook,) = average.layers()[-1].self_attn._forward_pre_hooks.values()
        assert isinstance(hook, MethodType) and hook.__self__ is average.layers()[-1]
        for parameter in model.parameters():
            parameter.data.mul_(2)
        assert off(compute(average, [make_rows()], packed=True), before) == 0


def test_compiled_layers_are_all_alike(make_config):
    """A last layer that differs would be compiled once more."""
    model = make_model(FAMILIES["llama"]())
    for settings, early in (({}, True), ({"compile": True}, False), ({"attn": "sdpa"}, False)):
        with computing_as_set(model, make_config(**settings), CPU):
            assert model.pools_early == early
