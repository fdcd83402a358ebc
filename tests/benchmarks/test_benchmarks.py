"""The benchmarks refuse to time what is wrong, count bytes rightly, and run from end to end."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("pytest_benchmark")

from benchmarks import harness, report
from benchmarks.bench_linear import LinearCase, separate_heads, stacked_head
from benchmarks.bench_loss import LossCase
from benchmarks.bench_pointwise import PointwiseCase
from benchmarks.cases import Entry, floor_names, floors, four_group_loss, step

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Contest(LossCase):
    """The loss with a right provider, and others whose step returns what `change` makes of the right results."""

    n: int = 50
    k: int = 3
    change: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]] = tuple

    def entries(self) -> list[Entry]:
        plain = step(four_group_loss, 2)
        return [
            Entry("ours", ("step",), plain),
            Entry("other", ("forward",), lambda x: plain(x)[:1]),
            Entry("other", ("step",), lambda x: self.change(plain(x))),
        ]


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SECONDS": 0.0, "BLOCK": 0.0, "ROUNDS": (3, 3), "measured": {}}.items():
        monkeypatch.setattr(harness, name, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: (r[0] * 1.001, *r[1:]), "loss is off by 1.0e-03"),
        (lambda r: (r[0], r[1] * 1.001, r[2]), "reward logits is off"),
        (lambda r: (r[0], r[1], -r[2]), "propensity logits is off"),
        (lambda r: (r[0], r[1], r[2].roll(1)), "propensity logits is off"),
        (lambda r: (r[0], r[1] * math.nan, r[2]), "reward logits is off by nan"),
        (lambda r: r[:2], "elements"),
        (lambda r: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_wrong_provider_is_not_timed(change: Callable, message: str) -> None:
    case = Contest(change=change)
    results = harness.measure(case)
    for mode in ("forward", "step"):  # not where it is right either
        refused = harness.find(results, mode, "other")
        assert refused.refused is not None and message in refused.refused and not refused.times
    assert len(harness.find(results, "step", "ours").times) == 3
    with pytest.raises(pytest.fail.Exception, match="other is not timed"):
        harness.show(None, case, "step", "other")
    table = "\n".join(report.table([report.as_record(case, results)]))
    assert "REFUSED" in table and message in table


def test_a_right_provider_is_timed_and_its_errors_are_kept() -> None:
    case = Contest()
    results = harness.measure(case)
    assert harness.measure(case) is results
    other = harness.find(results, "step", "other")
    assert other.refused is None and len(other.times) == 3 and min(other.times) > 0
    assert set(other.errors) == {"loss", "reward logits", "propensity logits"}
    assert 0 < max(other.errors.values()) < 1e-5
    low, high = other.spread
    assert low <= other.median <= high


@pytest.mark.parametrize("loss_fn", [separate_heads, stacked_head])
@pytest.mark.parametrize("wrong", range(4))
def test_every_gradient_of_a_linear_provider_is_checked(loss_fn: Callable, wrong: int) -> None:
    case = LinearCase(40, k=2, hidden=24)
    inputs = case.make_inputs(0)
    parameters = inputs.separate if loss_fn is separate_heads else inputs.stacked
    half = len(parameters) // 2
    changed = {0: -1, 1: 0, 2: half, 3: 2 * half}[wrong]  # none, weights, biases, hidden states

    def step(x: Any) -> tuple[Tensor, ...]:
        loss = loss_fn(x.leaf, x.feedback, *parameters)
        grads = torch.autograd.grad(loss, (*parameters, x.leaf))
        return loss, *(grad * (1.01 if i == changed else 1) for i, grad in enumerate(grads))

    entry, truth = Entry("it", ("step",), step), case.truth(inputs)
    if changed < 0:
        assert set(harness.check(entry, case, inputs, truth)[0]) == {"loss", "weights", "biases", "hidden"}
    else:
        with pytest.raises(harness.WrongResult, match=("", "weights", "biases", "hidden")[wrong]):
            harness.check(entry, case, inputs, truth)


@pytest.mark.parametrize(
    ("case", "mode", "read", "written"),
    [
        (LossCase(100, k=3), "forward", 100 * (4 * 4 + 3), 0),
        (LossCase(100, k=3), "forward+grad", 100 * (4 * 4 + 3), 100 * 4 * 4),
        (LossCase(100, dtype=torch.bfloat16), "step", 100 * (2 * 2 + 1), 100 * 2 * 2),
        (PointwiseCase(100), "forward", 100 * 3 * 4, 0),
        (PointwiseCase(100, dtype=torch.bfloat16), "step", 100 * (2 + 2 * 4), 100 * 2),
        (LinearCase(100, k=2, hidden=64), "forward", 100 * (64 * 4 + 2) + 3 * 65 * 4, 0),
        (LinearCase(100, k=2, hidden=64), "frozen", 100 * (64 * 4 + 2) + 3 * 65 * 4, 3 * 65 * 4),
        (LinearCase(100, k=2, hidden=64), "step", 100 * (64 * 4 + 2) + 3 * 65 * 4, 100 * 64 * 4 + 3 * 65 * 4),
    ],
)
def test_bytes(case: Any, mode: str, read: int, written: int) -> None:
    assert case.traffic(mode) == (read, written)
    entry, buffers = next(pair for pair in floors(case, 2) if mode in pair[0].modes)
    assert entry.provider == floor_names(mode)[0]
    assert len(buffers) == 2  # to rotate over
    moved = buffers[0].nbytes if entry.provider == "read" else 2 * buffers[0][0].nbytes
    assert read + written - 8 < moved <= read + written


def test_calls_rotate_over_the_inputs() -> None:
    seen: list[str] = []
    turn = harness.Turn(Entry("it", (), seen.append), "abc")
    assert turn.seconds(2) > 0 and turn.seconds(5) > 0
    assert "".join(seen) == "abcabca"


def test_everybody_has_one_block_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "ROUNDS", (20, 20))
    seen: list[int] = []
    turns = [harness.Turn(Entry(str(i), (), seen.append), [i]) for i in range(3)]
    results = [harness.Result(str(i), ()) for i in range(3)]
    harness.interleave(zip(turns, results, strict=True), 0.0)
    rounds = [seen[-60:][i : i + 3] for i in range(0, 60, 3)]
    assert all(sorted(one) == [0, 1, 2] for one in rounds) and len(set(map(tuple, rounds))) > 1
    assert [len(result.times) for result in results] == [20] * 3


def test_from_end_to_end(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "benchmarks/bench_loss.py",
        "--benchmark-only",
        "-q",
        "--seconds",
        "0.01",
    ]
    options = ["-k", "N16_K1", "--save-results", str(tmp_path), "--benchmark-json", str(tmp_path / "pytest")]
    # A run of its own: as a part of a parallel one pytest-benchmark would not measure.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment = {**inherited, "TORCH_COMPILE_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "implicit_rm_loss, N=16 K=1 float32" in run.stdout.partition("medians beside ours")[2]

    (path,) = tmp_path.glob("*.json")
    kept = json.loads(path.read_text())
    assert kept["machine"]["torch"] == torch.__version__ and kept["ceilings"]["copy_bytes_a_second"] > 1e8
    (case,) = kept["cases"]
    assert {"ours", "eager", "compile", "copy", "clone"} == set(case["modes"]["step"]["providers"])
    shown = json.loads((tmp_path / "pytest").read_text())["benchmarks"]
    for row in shown:  # pytest-benchmark shows what was measured here
        mode, provider = row["params"]["mode"], row["params"]["provider"]
        ours = case["modes"][mode]["providers"][provider]
        assert row["stats"]["median"] == pytest.approx(ours["median"])
        assert row["stats"]["rounds"] == ours["rounds"]

    pytest.importorskip("matplotlib")
    from benchmarks.draw import draw_speed

    draw_speed(kept, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_a_speed_is_a_ratio_to_the_best_other_way():
    pytest.importorskip("matplotlib")
    from benchmarks.draw import ratio

    def row(median):
        return {"median": median, "q10": 0.8 * median, "q90": 1.5 * median}

    rows = {"ours": row(2.0), "eager": row(9.0), "compile": row(6.0), "copy": row(0.1)}
    assert ratio(rows) == pytest.approx((0.8 * 6 / 3, 3.0, 9 / 1.6))
    assert ratio({"ours": row(2.0), "copy": row(0.1)}) is None
    assert ratio({"ours": {"error": "?"}, "eager": row(1.0)}) is None


def test_pictures_of_the_pages_are_those_of_their_tables(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks.pictures import draw_demo, gains

    found = {(gain.log, gain.best): gain for gain in gains()}
    assert len(found) == 20  # five logs, one signal and two, over naive and over the best
    behind = found["made, propensity by features, 1 signal", True]
    assert (behind.rival, behind.mean, behind.half) == ("ReCRec-F", -0.049, 0.044)
    draw_demo(tmp_path / "demo.png")
    assert (tmp_path / "demo.png").stat().st_size > 10_000


def test_training_at_scale_needs_no_data_sets(tmp_path):
    """A machine with a GPU need not have the extra `hub`: what gpu.sh runs there, rehearsed."""
    blocked = "import sys; sys.modules['datasets'] = None; from benchmarks.at_scale import main; main()"
    shape = ["--shape", "tiny", "--rows", "8", "--budget", "512", "--longest", "128", "--lora-rank", "2"]
    how = ["--precision", "bfloat16", "--checkpointing", "selective", "--out", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", blocked, *shape, *how]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "training.jsonl").read_text())
    assert record["throughput"]["tokens_per_second"] > 0
    assert record["checkpointing"] == "selective"
