"""Settings of the whole test session, and tiny models and logs for it."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest

ON_GPU = os.environ.get("IRM_FAST_GPU_TESTS") == "1"  # tests/kernels/test_gpu.py instead of Triton's interpreter
if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported: kernels then run on the CPU
os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: an unknown model fails at once


def pytest_collection_finish() -> None:
    """Leave what was imported out of all collections of garbage: accelerate begins one before every run."""
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let the interpreter free all when it ends; nanobind complains of what it does not."""
    gc.unfreeze()


def _save_tokenizer(folder: Path, *, template: str | None = None, pad: bool = True, unk: bool = True) -> int:
    """Write a byte-level tokenizer to the folder; returns its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    specials = {"bos_token": "<s>", "eos_token": "</s>"}
    specials |= {"pad_token": "<pad>"} if pad else {}
    specials |= {"unk_token": "<unk>"} if unk else {}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=270, special_tokens=[*specials.values()], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["User: good question Assistant: bad answer"] * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials)
    if template:
        fast.chat_template = template
    fast.save_pretrained(folder)
    return len(fast)


def _save_llama(folder: Path, vocab_size: int, *, seed: int = 0, dropout: float = 0.0) -> None:
    """Write a tiny Llama with random weights to the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        attention_dropout=dropout,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="session")
def save_tokenizer():
    return _save_tokenizer


@pytest.fixture(scope="session")
def save_llama():
    return _save_llama


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """The folder of a tiny random Llama with its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_model")
    _save_llama(folder, _save_tokenizer(folder))
    return str(folder)


@pytest.fixture(scope="session")
def make_log():
    """A function that makes a log of responses, `good` or `bad` by their text, with independent signals."""
    from irm_fast.data.log import Log

    def make(n: int = 48, signals: tuple[str, ...] = ("copy", "share"), seed: int = 0) -> Log:
        rng = np.random.default_rng(seed)
        good = rng.random(n) < 0.5
        words = [" ".join(["good" if g else "bad"] * int(rng.integers(1, 9))) for g in good]
        asked = [f"question {i} " + "why " * int(rng.integers(0, 5)) for i in range(n)]
        active = rng.random((n, len(signals))) < 0.6
        return Log(
            ids=[f"row-{i}" for i in range(n)],
            messages=[
                [{"role": "user", "content": a}, {"role": "assistant", "content": w}]
                for a, w in zip(asked, words, strict=True)
            ],
            signals=signals,
            polarity=(1,) * len(signals),
            feedback=(good[:, None] & active).astype(np.int8),
            preference=np.full(n, -1, np.int8) if signals else good.astype(np.int8),
            weight=None,
            propensity=None,
            features=None,
            feature_names=(),
            user_ids=None,
        )

    return make


@pytest.fixture
def make_config(tiny_model, tmp_path):
    """A function that makes a quick training config whose output is a new folder under `tmp_path`."""
    from irm_fast.training.config import TrainConfig

    def make(output: str = "out", **settings) -> TrainConfig:
        quick = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "progress": False}
        quick |= {"validation_fraction": 0.25, "propensity_design": "constant"}
        return TrainConfig(model=tiny_model, output=str(tmp_path / output), **{**quick, **settings})

    return make


@pytest.fixture(params=["reference", "cpu", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend of the loss in turn; Triton through its interpreter."""
    import irm_fast

    if request.param == "triton" and ON_GPU:
        pytest.skip("the interpreter is off: tests/kernels/test_gpu.py runs the kernels")
    if request.param == "cpu" and irm_fast.backends()["cpu"] != "available":
        pytest.skip(irm_fast.backends()["cpu"])
    return str(request.param)
