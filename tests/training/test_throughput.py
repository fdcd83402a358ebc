"""Throughput: what is counted, and what is not part of training."""

import time
from types import SimpleNamespace

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, Qwen3MoeConfig

from irm_fast.models.batches import Counts
from irm_fast.models.packed import packed_attention
from irm_fast.training import throughput
from irm_fast.training.throughput import Flops, Throughput, flops_of, in_words, peak_flops, typical
from tests.models.test_attention import TINY, make_model

CPU = torch.device("cpu")


def make_clock(processes: int = 1, **settings) -> Throughput:
    gather = lambda mine: mine.repeat(processes)  # noqa: E731
    accelerator = SimpleNamespace(device=CPU, gather=gather)
    return Throughput(accelerator, **{"flops": Flops(100.0, 2.0, 5.0), **settings})


def test_counts_and_time(monkeypatch):
    now = iter([10.0, 14.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = make_clock()
    clock.peak = 1000.0
    clock.begin()
    clock.begin()  # of the next step: the clock runs
    clock.add(Counts(examples=3, tokens=30, slots=40, squares=500))
    clock.add(Counts(examples=1, tokens=6, slots=8, squares=36))
    report = clock.report()
    assert report == pytest.approx(
        {
            "examples_per_second": 1.0,
            "tokens_per_second": 9.0,
            "non_padding": 0.75,
            "mfu": (100 * 36 + 2 * 536 + 5 * 4) / 4 / 1000,
        }
    )
    assert clock.report() == {}  # nothing since


def test_all_processes_count(monkeypatch):
    now = iter([0.0, 2.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = make_clock(processes=4)
    clock.peak = 50.0
    clock.begin()
    clock.add(Counts(1, 10, 10, 100))
    report = clock.report()
    assert report["tokens_per_second"] == 20
    assert report["mfu"] == pytest.approx((1000 + 200 + 5) / 2 / 50)  # of each device


def test_pauses_do_not_count(monkeypatch):
    now = iter([0.0, 1.0, 6.0, 8.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = make_clock()
    clock.begin()
    clock.add(Counts(6, 10, 10, 100))
    with clock.paused():
        pass
    assert clock.report()["examples_per_second"] == 6 / 3


def test_flops_are_those_of_the_usual_count():
    config = LlamaConfig(**TINY)  # 2 layers, width 32, 4 heads of 8, 2 of keys and values, 48 within
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48
    assert flops_of(make_model(config)) == (6.0 * 2 * layer, 6.0 * 2 * 32, 0)
    with packed_attention(model := make_model(config), "varlen"):  # the gated part of the last layer, once a row
        assert flops_of(model) == (6.0 * (2 * layer - 3 * 32 * 48), 6.0 * 2 * 32, 6.0 * 3 * 32 * 48)
    windows = Gemma3TextConfig(
        **TINY, head_dim=8, sliding_window=5, layer_types=["sliding_attention", "full_attention"]
    )
    assert flops_of(make_model(windows))[1] == 6.0 * 32  # of one layer
    experts = Qwen3MoeConfig(**TINY, head_dim=8, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2)
    assert flops_of(make_model(experts)) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Some other GPU", None),
    ],
)
def test_peaks(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda")) == peak
    assert peak_flops(CPU) is None


def test_typical_and_in_wordsd():
    entries = [
        {"loss": 1.0},
        *({"examples_per_second": x, "tokens_per_second": 10.0 * x, "non_padding": 1.0} for x in (1, 7, 5)),
    ]
    assert typical(entries) == {"examples_per_second": 5, "tokens_per_second": 50, "non_padding": 1}
    assert typical([]) == {}
    assert in_words(typical(entries)) == "5.0 examples/s, 50 tokens/s, 100.0% of the computed positions are tokens"
    assert in_words({**typical(entries), "peak_memory_gb": 3.0, "mfu": 0.5}).endswith("model FLOP utilisation 50.0%")
    assert set(throughput.REPORTED) >= typical(entries).keys()
