"""Packed, padded and alone are the same computation, in every family; what is not available is said."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GptOssConfig,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    NemotronConfig,
    Olmo2Config,
    Phi3Config,
    PhimoeConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from irm_fast.data.signals import RewardSpec
from irm_fast.models import attention, varlen
from irm_fast.models.attention import obstacle
from irm_fast.models.batches import Collator, stack_rows
from irm_fast.models.packed import packed_attention
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.training.callbacks import IsolationCheck

CPU, FLOAT = torch.device("cpu"), torch.float32
TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "llama": lambda: LlamaConfig(**TINY),
    "qwen2": lambda: Qwen2Config(**TINY),
    "qwen3": lambda: Qwen3Config(**TINY, head_dim=8),
    "mistral": lambda: MistralConfig(**TINY, sliding_window=5),
    "gemma": lambda: GemmaConfig(**TINY, head_dim=16),
    "gemma3": lambda: Gemma3TextConfig(
        **TINY, head_dim=8, sliding_window=5, layer_types=["sliding_attention", "full_attention"]
    ),
    "phi3": lambda: Phi3Config(**TINY),
    "olmo2": lambda: Olmo2Config(**TINY),
}
LENGTHS = (9, 1, 17, 4)
SIGNALS = {"signals": ("copy", "share"), "polarity": (1, 1), "misclick_rate": (0.0, 0.0)}


def make_model(config, design: str = "hidden") -> ImplicitRewardModel:
    torch.manual_seed(0)
    config.num_labels = 1
    classifier = AutoModelForSequenceClassification.from_config(config)
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=2, pad_token="<pad>")
    model = ImplicitRewardModel(classifier, tokenizer, RewardSpec(design, **SIGNALS))
    with torch.no_grad():
        for parameter in (classifier.score.weight, model.heads.reward_bias, *model.propensity_design.parameters()):
            parameter.normal_()
    return model.eval()


def make_rows() -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    feedback = [[1, 0], [0, 0], [-1, 1], [1, 1]]
    return [
        {
            "input_ids": torch.randint(3, 97, (length,), generator=generator).tolist(),
            "feedback": given,
            "preference": -1,
            "weight": 0.5 + row,
            "row": row,
        }
        for row, (length, given) in enumerate(zip(LENGTHS, feedback, strict=True))
    ]


def compute(model: ImplicitRewardModel, batches: list[list[dict]], packed: bool) -> dict[str, torch.Tensor]:
    """Pooled states, rewards, the loss of all rows, and the gradient of every parameter."""
    collate = Collator(0, packed=packed)
    states, rewards, loss = [], [], torch.zeros(())
    model.zero_grad()
    for rows in batches:
        batch = collate(stack_rows(rows))
        inputs = {name: value for name, value in batch.items() if name not in ("row", "counts")}
        tokens = {name: value for name, value in inputs.items() if name not in ("feedback", "preference", "weight")}
        with torch.no_grad():
            states.append(model.pool(**tokens))
            rewards.append(model.logits(**tokens).reward)
        part = model(**inputs, normalizer=len(LENGTHS))
        part.backward()
        loss = loss + part.detach()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    return {"states": torch.cat(states), "rewards": torch.cat(rewards), "loss": loss, "gradient": gradient}


class InDoublePrecision(TorchFunctionMode):
    """Computes in float64 what models compute in float32 whatever their weights: norms, rotations, pooled states."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def wider(value):
            return torch.float64 if value is torch.float32 else value

        if func is torch.Tensor.float:
            return args[0].double()
        return func(*map(wider, args), **{name: wider(value) for name, value in (kwargs or {}).items()})


def off(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> float:
    """The greatest difference of what `compute` returns, as a share of the norm of what is compared."""
    return max(float((got[name] - value).norm() / value.norm()) for name, value in want.items())


# Packed, padded and alone add the same numbers up in other orders. In float32 each is off from float64 by up to
# 4 eps of the norm, and gradients of size 100 so by up to 5e-5 in single entries: an absolute bound would ask for the
# rounding of one machine. A share of the norm does not, and float64 tells the finest leak from rounding.
PRECISIONS = {torch.float32: nullcontext, torch.float64: InDoublePrecision}
ROUNDING = {dtype: 64 * torch.finfo(dtype).eps for dtype in PRECISIONS}


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_padded_and_alone_are_the_same(family, dtype):
    model, rows = make_model(FAMILIES[family]()).to(dtype), make_rows()
    with PRECISIONS[dtype]():
        alone = compute(model, [[row] for row in rows], packed=False)
        padded = compute(model, [rows], packed=False)
        with packed_attention(model, "varlen"):
            packed = compute(model, [rows], packed=True)
            in_two = compute(model, [rows[:1], rows[1:]], packed=True)
    assert alone["gradient"].dtype == alone["states"].dtype == dtype
    assert alone["gradient"].abs().max() > 0.1  # the comparison must be able to fail
    for other in (padded, packed, in_two):
        assert off(other, alone) < ROUNDING[dtype]


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 1e-3), (torch.float64, 1e-10)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_faint_leak_is_no_rounding(monkeypatch, family, dtype, share):
    """A small share of what a token would see across the pack is above the bound of the test before this one."""
    model, rows = make_model(FAMILIES[family]()).to(dtype), make_rows()
    by_length = varlen._by_length

    def leaking(query, key, value, scaling, window, ends, dropout):
        own, whole = (by_length(query, key, value, scaling, window, e, dropout) for e in (ends, ends[[0, -1]]))
        return own + share * whole

    with PRECISIONS[dtype](), packed_attention(model, "varlen"):
        own = compute(model, [rows], packed=True)
        monkeypatch.setattr(varlen, "_by_length", leaking)
        assert off(compute(model, [rows], packed=True), own) > ROUNDING[dtype]


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_rows_of_a_pack_cannot_see_each_other(family):
    """Other tokens in every other row leave a row's state as it was, to the last bit."""
    model, rows = make_model(FAMILIES[family]()), make_rows()
    collate = Collator(0, packed=True)

    def states(rows, **changed):
        batch = collate(stack_rows(rows))
        names = ("input_ids", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
        return model.pool(**{name: batch[name] for name in names} | changed)

    with torch.no_grad(), packed_attention(model, "varlen"):
        before = states(rows)
        for kept in range(len(rows)):
            others = [row if i == kept else {**row, "input_ids": row["input_ids"][::-1]} for i, row in enumerate(rows)]
            after = states(others)
            assert torch.equal(after[kept], before[kept])
            assert (after - before).abs().max() > 1e-2
        whole = torch.tensor([0, sum(LENGTHS)], dtype=torch.int32)  # what a leak would look like
        assert (states(rows, cu_seq_lens_q=torch.cat([whole]))[-1] - before[-1]).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_trainer_notices_rows_that_see_each_other(monkeypatch, family):
    model = make_model(FAMILIES[family]())
    check = IsolationCheck(model)
    with packed_attention(model, "varlen"):
        check.on_train_begin(None, None, None, model=model)
        by_length = varlen._by_length

        def leaking(query, key, value, scaling, window, ends, dropout):
            return by_length(query, key, value, scaling, window, ends[[0, -1]], dropout)

        monkeypatch.setattr(varlen, "_by_length", leaking)
        with pytest.raises(RuntimeError, match=r"see each other.*--attn sdpa"):
            check.on_train_begin(None, None, None, model=model)
    leaks = make_model(FAMILIES[family]())
    with packed_attention(leaks, "auto") as name:
        assert name == "sdpa"  # found by trying
    with pytest.raises(ValueError, match=r"varlen: \w+ gives packed rows other states than padded ones"):
        packed_attention(leaks, "varlen").__enter__()


def test_outside_the_context_padded_rows_are_taken():
    model, rows = make_model(FAMILIES["llama"]()), make_rows()
    before = compute(model, [rows], packed=False)
    with pytest.raises(ZeroDivisionError), packed_attention(model):
        assert model.packed
        with pytest.raises(ValueError, match="packed sequences"):
            compute(model, [rows], packed=False)
        raise ZeroDivisionError
    assert not model.packed
    assert compute(model, [rows], packed=False)["loss"] == before["loss"]
    assert "attn" not in str(model.classifier.config.to_dict()).replace("attention", "")


def test_sequences_of_dropout_are_drawn_in_training_only():
    config = LlamaConfig(**TINY, attention_dropout=0.5)
    model, rows = make_model(config), make_rows()
    with packed_attention(model, "varlen"):
        losses = [compute(model.train(mode), [rows], packed=True)["loss"] for mode in (False, False, True, True)]
    assert losses[0] == losses[1]
    assert losses[2] != losses[3]


def test_what_a_forced_attention_lacks():
    model = make_model(FAMILIES["llama"]())
    with packed_attention(model) as name:
        assert name == "varlen"
    for name in attention.FLASH:
        with pytest.raises(ValueError, match=rf"attn: not available: {name}: its package is not installed"):
            packed_attention(model, name).__enter__()
    with pytest.raises(ValueError, match=r"attn: got 'flash'; expected one of auto, flash_attention_4"):
        packed_attention(model, "flash").__enter__()


def test_flash_packages_by_device_and_precision(monkeypatch):
    llama = make_model(LlamaConfig(**{**TINY, "num_key_value_heads": 4}, head_dim=64)).classifier
    cuda, half = torch.device("cuda:0"), torch.bfloat16
    monkeypatch.setattr(attention, "_installed", lambda name: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")

    def fits(major: int, dtype=half, device=cuda) -> list[str]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
        return [name for name in attention.PACKED if obstacle(name, llama, device, dtype) is None]

    assert fits(9) == ["flash_attention_4", "flash_attention_3", "flash_attention_2", "varlen"]
    assert fits(10) == ["flash_attention_4", "flash_attention_2", "varlen"]
    assert fits(8) == ["flash_attention_2", "varlen"]
    assert fits(7) == fits(9, FLOAT) == []
    assert fits(9, device=CPU) == ["varlen"]
    assert "needs a CUDA device" in obstacle("flash_attention_2", llama, CPU, half)
    assert "precision" in obstacle("varlen", llama, cuda, FLOAT)
    llama.config.head_dim = 256
    assert fits(9) == ["flash_attention_3", "flash_attention_2", "varlen"]
    llama.config.attention_dropout = 0.1
    assert fits(9) == ["flash_attention_2"]


@pytest.mark.parametrize(
    ("config", "name", "why"),
    [
        (lambda: Gemma2Config(**TINY, head_dim=8, sliding_window=5), "eager", "computes more than plain attention"),
        (lambda: GptOssConfig(**TINY, head_dim=8, num_local_experts=4), "eager", "computes more than plain attention"),
        (  # its window is in the mask alone, which packs do without
            lambda: PhimoeConfig(**TINY, sliding_window=16, num_local_experts=2),
            "sdpa",
            "gives packed rows other states",
        ),
        (lambda: NemotronConfig(**TINY), "sdpa", "takes no packed rows: varlen attention takes packed sequences"),
        (
            lambda: Gemma3TextConfig(**TINY, head_dim=8, use_bidirectional_attention=True),
            "sdpa",
            "takes no packed rows: varlen attention is plain and causal",
        ),
    ],
)
def test_families_whose_rows_are_padded(config, name, why):
    """By what they say of themselves, or by trying; they train all the same."""
    model, rows = make_model(config()), make_rows()
    with packed_attention(model) as chosen:
        assert (chosen, model.packed) == (name, False)
        assert compute(model, [rows], packed=False)["gradient"].abs().max() > 0.01
    with pytest.raises(ValueError, match=f"varlen: {type(model.classifier).__name__} {why}"):
        packed_attention(model, "varlen").__enter__()


def test_layers_that_carry_something_on():
    chunked = LlamaConfig(**TINY)
    chunked.layer_types = ["chunked_attention", "full_attention"]
    assert "chunked_attention" in obstacle("varlen", make_model(chunked).classifier, CPU, FLOAT)


def test_kernels_of_a_model_s_own(monkeypatch):
    """transformers would fetch them from its hub, whatever was asked for."""
    classifier = make_model(GptOssConfig(**TINY, head_dim=8, num_local_experts=4)).classifier
    monkeypatch.setattr(attention, "_installed", lambda name: True)
    assert "has its own kernels" in obstacle("flash_attention_2", classifier, torch.device("cuda"), torch.bfloat16)


def test_mixture_of_experts():
    config = Qwen3MoeConfig(**TINY, head_dim=8, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2)
    model, rows = make_model(config), make_rows()
    padded = compute(model, [rows], packed=False)
    with packed_attention(model):
        packed = compute(model, [rows], packed=True)
    assert off(packed, padded) < ROUNDING[torch.float32]  # torch multiplies groups of rows in no wider dtype


def test_backbone_of_transformers_refuses_unpacked_tokens():
    model = LlamaModel(LlamaConfig(**TINY))
    model.set_attn_implementation(attention._register())
    with pytest.raises(ValueError, match="packed sequences"):
        model(input_ids=torch.ones(1, 4, dtype=torch.long))


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("knows_groups", [True, False])
def test_torch_kernels_are_asked_the_same(monkeypatch, window, knows_groups):
    """On a CPU, with a stand-in for the flash kernels: shapes, window and groups of heads."""
    assert "window_size" in varlen.TAKEN  # of the torch that the tests run on

    def stand_in(query, key, value, ends, ends_k, longest, longest_k, *, scale, window_size, **groups):
        assert ends is ends_k and longest == longest_k == 11
        assert groups == ({"enable_gqa": True} if knows_groups else {})
        assert groups or query.shape[1] == key.shape[1]
        left, right = window_size
        assert right == 0
        wide = (x.transpose(0, 1)[None] for x in (query, key, value))
        return varlen._by_length(*wide, scale, None if left == -1 else left + 1, ends, 0.0)[0].transpose(0, 1)

    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    monkeypatch.setattr(varlen, "TAKEN", {"window_size", *(("enable_gqa",) if knows_groups else ())})
    query, key, value = (torch.randn(1, heads, 20, 8) for heads in (4, 2, 2))
    ends = torch.tensor([0, 9, 20], dtype=torch.int32)
    want = varlen._by_length(query, key, value, 0.3, window, ends, 0.0).transpose(1, 2)[0]
    flat = (x[0].transpose(0, 1) for x in (query, key, value))
    torch.testing.assert_close(varlen._by_torch(*flat, 0.3, window, ends, 11), want)


def test_tokenizers_that_hide_the_end():
    model = make_model(FAMILIES["llama"]())
    for pad, text in ((None, "no padding token"), (2, "the token that ends a text")):
        tokenizer = SimpleNamespace(pad_token_id=pad, eos_token_id=2, pad_token="</s>")
        with pytest.raises(ValueError, match=text):
            ImplicitRewardModel(model.classifier, tokenizer, model.spec)
