"""One process or several, one micro-batch or several, interrupted or not: the same steps on the same rows."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from irm_fast.models.batches import TokenizedRows
from irm_fast.models.computation import computing
from irm_fast.models.packed import two_rows
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.training import designs
from irm_fast.training.config import TrainConfig
from irm_fast.training.distributed import check_same_lengths, check_same_log
from irm_fast.training.run import train
from tests.training import forked, sharded_model
from tests.training.training_cases import write_log, write_pairs

ROWS = 78
finished: dict[tuple, Run] = {}
SCRIPT = Path(__file__).with_name("recorded_run.py")


class Run:
    """What a finished run left: parameters, logged losses, and the rows of each step."""

    def __init__(self, config: TrainConfig, record: Path) -> None:
        model = ImplicitRewardModel.load(config.output)
        self.parameters = torch.cat([p.detach().flatten() for p in model.parameters()])
        lines = list(map(json.loads, (Path(config.output) / "metrics.jsonl").read_text().splitlines()))
        self.evaluations = [line["eval_nll"] for line in lines if "eval_nll" in line]
        self.log = [line for line in lines if "loss" in line]
        self.losses = torch.tensor([line["loss"] for line in self.log])
        self.rows = Counter()
        for path in record.parent.glob(f"{record.name}.*.jsonl"):
            for step, rows, self.sharded, self.pools_early in map(json.loads, path.read_text().splitlines()):
                self.rows.update((step, row) for row in rows if row >= 0)

    def rows_of_epoch(self, epoch: int, steps: int) -> list[int]:
        return sorted(row for step, row in self.rows.elements() if step // steps == epoch)


@pytest.fixture
def start(make_log, make_config, tmp_path):
    """A function that trains on the same log, by so many processes, and returns a `Run`; or dies at a step."""
    log, data = make_log(ROWS), tmp_path / "log.jsonl"
    write_log(log, data)

    def run(name: str, processes: int = 1, kill_at: int = -1, launcher: tuple = (), **settings) -> Run:
        key = (processes, launcher, *sorted(settings.items()))
        if kill_at >= 0 or "resume" in settings:
            return run_anew(name, processes, kill_at, launcher, **settings)
        if key not in finished:  # the same for all tests
            finished[key] = run_anew(name, processes, kill_at, launcher, **settings)
        return finished[key]

    def run_anew(name: str, processes: int, kill_at: int, launcher: tuple, optimizer: str = "sgd", **settings) -> Run:
        config = make_config(name, data=str(data), epochs=4, validation_fraction=0, propensity_design="hidden")
        config = replace(config, **{"estimator": "joint", **settings})
        config.save(tmp_path / f"{name}.yaml")
        how = "resume" if config.resume else "anew"  # no file of settings holds it
        arguments = (f"{tmp_path / name}.yaml", f"{tmp_path / name}.rows", optimizer, str(kill_at), how)
        if launcher:
            assert forked.run((*launcher, str(SCRIPT), *arguments), 1, tmp_path, forked.launch) == [0]
        else:
            codes = forked.run(arguments, processes, tmp_path)
            assert codes == [0 if kill_at < 0 else -signal.SIGKILL] * processes
        if kill_at >= 0:
            return None  # type: ignore[return-value]
        return Run(config, tmp_path / f"{name}.rows")

    return run


def sharded_step(*arguments) -> list[dict]:
    """What the two processes of `sharded_model` wrote."""
    model, out, recompute, how = arguments
    forked.run((model, str(out), recompute, how), 2, out.parent, sharded_model.main)
    return [json.loads(Path(f"{out}.{rank}.json").read_text()) for rank in (0, 1)]


def same(one: Run, other: Run) -> None:
    torch.testing.assert_close(one.losses, other.losses, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(one.parameters, other.parameters, rtol=0, atol=1e-6)


def test_processes_and_micro_batches_do_not_change_a_step(start):
    """Twenty steps of 16 rows, the last of each epoch of 14."""
    one = start("one", batch_size=16)
    two = start("two", processes=2, batch_size=8)
    halves = start("halves", batch_size=8, gradient_accumulation=2)
    padded = start("padded", batch_size=16, attn="sdpa")
    assert len(one.losses) == 20
    assert (one.losses[0] - one.losses[-1]).abs() > 1e-3
    same(one, two)
    same(one, halves)
    assert one.rows == two.rows == halves.rows
    assert one.rows != padded.rows  # there rows of similar length meet
    assert (one.pools_early, two.pools_early, padded.pools_early) == (True, True, False)
    for run in (one, two, halves, padded):
        assert all(run.rows_of_epoch(epoch, 5) == list(range(ROWS)) for epoch in range(4))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_fsdp_computes_the_same(start, precision):
    settings = {"processes": 2, "batch_size": 8} | ({} if precision == "float32" else {"precision": precision})
    whole, sharded = start("whole", **settings), start("sharded", fsdp=True, **settings)
    assert (whole.sharded, sharded.sharded) == (False, True)
    assert whole.pools_early and sharded.pools_early
    if precision == "float32":
        same(whole, sharded)
    else:  # the norm of the gradient is summed in another order, and weights on the edge of bfloat16 fall either way
        torch.testing.assert_close(whole.losses[:2], sharded.losses[:2], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(whole.losses, sharded.losses, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_no_gathered_weights_are_held_after_the_forward_pass(tiny_model, tmp_path, recompute):
    """Of the bfloat16 copies that layers compute with; weights come from the first process alone."""
    ranks = sharded_step(tiny_model, tmp_path / "given_up", recompute, "")
    model = sharded_model.load(tiny_model).train()
    with computing(model, torch.bfloat16):
        loss = model(**two_rows(model, packed=False), feedback=sharded_model.FEEDBACK)
        loss.backward()
    for record in ranks:
        assert record["bytes"] == 0
        assert record["dtypes"] == ["torch.float32"]
        assert record["loss"] == pytest.approx(loss.item(), rel=1e-3)
    norms = [float(parameter.grad.norm()) for parameter in model.parameters()]
    assert ranks[0]["gradient"] == pytest.approx(norms, rel=0.02)
    assert ranks[0]["equal"]
    if recompute == "none":
        kept = sharded_step(tiny_model, tmp_path / "kept", recompute, "kept")
        matrices = [p.numel() for layer in model.layers() for p in layer.parameters() if p.dim() == 2]
        assert kept[0]["bytes"] >= 2 * sum(matrices)


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_sharded_layers_go_on_with_the_last_tokens(tiny_model, tmp_path, recompute):
    """In every process, though the first alone has weights to try it with; no gathered weights are held either."""
    whole, pooled = (sharded_step(tiny_model, tmp_path / how, recompute, how) for how in ("packed", "pooled"))
    assert [record["bytes"] for record in pooled] == [0, 0]
    assert [record["loss"] for record in pooled] == pytest.approx([record["loss"] for record in whole], rel=1e-3)
    assert pooled[0]["gradient"] == pytest.approx(whole[0]["gradient"], rel=0.02)


def test_sharded_layers_are_compiled(tiny_model, tmp_path):
    plain, compiled = (sharded_step(tiny_model, tmp_path / f"of{how}", "full", how)[0] for how in ("", "compiled"))
    assert compiled["loss"] == pytest.approx(plain["loss"], rel=1e-6)
    assert compiled["gradient"] == pytest.approx(plain["gradient"], rel=1e-6)


def test_held_out_rows_over_processes(start):
    """Their packs hold other numbers of rows on each process; the best checkpoint and the design follow from them."""
    settings = {"validation_fraction": 0.25, "propensity_design": "auto", "estimator": "joint", "epochs": 3}
    one = start("one", batch_size=16, **settings)
    sharded = start("sharded", processes=2, batch_size=8, fsdp=True, **settings)
    same(one, sharded)
    assert one.evaluations == pytest.approx(sharded.evaluations, rel=1e-6)
    assert len(one.evaluations) == 6


def test_propensities_first_over_processes(start):
    """One process fits them, and all train with the same."""
    settings = {"propensity_design": "auto", "estimator": "auto", "validation_fraction": 0.25}
    one = start("one", batch_size=16, **settings)
    same(one, start("sharded", processes=2, batch_size=8, fsdp=True, **settings))


@pytest.mark.parametrize(("file", "sharded"), [("ddp", False), ("fsdp2", True)])
def test_shipped_accelerate_configs(start, file, sharded):
    path = SCRIPT.parents[2] / "examples" / "accelerate" / f"{file}.yaml"
    settings = ("--config_file", str(path), "--num_processes", "2", "--main_process_port", "0")  # a port that is free
    launcher = ("accelerate.commands.launch", *settings)
    launched = start("launched", launcher=launcher, batch_size=8, gradient_checkpointing=True)
    assert launched.sharded == sharded
    same(start("one", batch_size=16), launched)


@pytest.mark.parametrize("fsdp", [False, True])
def test_killed_and_resumed_on_two_processes(start, tmp_path, fsdp):
    """Packs of a token budget under AdamW; the checkpoint is in the middle of an epoch."""
    settings = {"token_budget": 500, "eval_steps": 3, "fsdp": fsdp, "optimizer": "own"}
    settings |= {"token_budget": 250, "gradient_accumulation": 2} if fsdp else {}
    whole = start("whole", processes=2, **settings)
    start("cut", processes=2, kill_at=8, **settings)
    before = [json.loads(line) for rank in (0, 1) for line in (tmp_path / f"cut.rows.{rank}.jsonl").open()]
    assert max(step for step, *_ in before) == 7
    for rank in (0, 1):  # the two steps after the checkpoint at 6 are done again
        path = tmp_path / f"cut.rows.{rank}.jsonl"
        kept = [line for line in path.read_text().splitlines(keepends=True) if json.loads(line)[0] < 6]
        path.write_text("".join(kept))
    resumed = start("cut", processes=2, resume=True, **settings)
    assert resumed.rows == whole.rows
    same(whole, resumed)
    steps = len(whole.losses) // 4
    assert steps % 3  # so that the checkpoint is not at an epoch's end
    assert all(resumed.rows_of_epoch(epoch, steps) == list(range(ROWS)) for epoch in range(4))


def test_token_budget_over_processes_or_micro_batches(start):
    two = start("two", processes=2, token_budget=500)
    halves = start("halves", gradient_accumulation=2, token_budget=500)
    same(two, halves)
    assert two.rows == halves.rows
    speed = two.log[1]
    assert speed["non_padding"] == 1
    assert speed["tokens_per_second"] > speed["examples_per_second"] > 0
    assert not {"mfu", "peak_memory_gb"} & speed.keys()


def test_pairs_over_processes_and_micro_batches(start, tmp_path):
    """Both sides of a pair in one pass; 78 rows and 11 pairs, so that some steps have none."""
    pairs = write_pairs(tmp_path / "pairs.jsonl", [f"of pair {i}" for i in range(11)], margin=0.5)
    settings = {"pairs": pairs, "pairs_weight": 2.0}
    one = start("one", batch_size=8, **settings)
    two = start("two", processes=2, batch_size=4, **settings)
    halves = start("halves", batch_size=4, gradient_accumulation=2, **settings)
    sharded = start("sharded", processes=2, batch_size=4, fsdp=True, **settings)
    for other in (two, halves, sharded):
        same(one, other)
        assert one.rows == other.rows
    assert sharded.sharded
    steps = len(one.losses) // 4
    assert all(one.rows_of_epoch(epoch, steps) == list(range(ROWS + 22)) for epoch in range(4))
    assert one.losses.std() > 0.1


def with_a_full_disk(config: str, out: str) -> None:
    """A run whose first process cannot write."""

    def full(*arguments):
        assert os.environ["RANK"] == "0"
        raise OSError("no space left")

    designs.begin_run = full
    with pytest.raises(OSError, match="no space left") as caught:
        train(TrainConfig.load(config))
    Path(f"{out}.{os.environ['RANK']}").write_text(str(caught.value.said_by_main_process))


def test_what_the_writer_raises_ends_all(make_log, make_config, tmp_path):
    """The others do not wait for it."""
    write_log(make_log(ROWS), tmp_path / "log.jsonl")
    make_config(data=str(tmp_path / "log.jsonl")).save(tmp_path / "run.yaml")
    forked.run((str(tmp_path / "run.yaml"), str(tmp_path / "raised")), 2, tmp_path, with_a_full_disk)
    assert [(tmp_path / f"raised.{rank}").read_text() for rank in (0, 1)] == ["False", "True"]


def test_processes_that_read_different_logs(monkeypatch):
    mine = {"rows": 40, "sha256": "a"}
    check_same_log(mine)
    monkeypatch.setattr("accelerate.utils.gather_object", lambda own: [*own, (40, "b")])
    with pytest.raises(RuntimeError, match=r"different logs: process 0 has 40 rows, process 1 has 40, or others"):
        check_same_log(mine)


def test_processes_that_see_different_lengths():
    def gather(mine):
        return torch.cat([mine, torch.tensor([[40, 1, 3, 2]])])

    accelerator = SimpleNamespace(device="cpu", gather=gather)
    with pytest.raises(RuntimeError, match=r"process 0 has 2 and 0 .*process 1 has 40 and 3"):
        check_same_lengths(accelerator, [TokenizedRows([np.arange(3), np.arange(4)]), None])
    accelerator.gather = lambda mine: torch.cat([mine, mine])
    check_same_lengths(accelerator, [TokenizedRows([np.arange(3), np.arange(4)]), None])


def test_adapters_on_several_processes(start):
    """Frozen weights are sharded with those that are trained."""
    lora = {"lora_rank": 4, "lora_alpha": 8.0}
    one = start("one", batch_size=16, **lora)
    two = start("two", processes=2, batch_size=8, **lora)
    sharded = start("sharded", processes=2, batch_size=8, fsdp=True, gradient_checkpointing=True, **lora)
    assert (one.losses[0] - one.losses[-1]).abs() > 1e-3
    assert (two.sharded, sharded.sharded) == (False, True)
    assert two.pools_early and sharded.pools_early
    same(one, two)
    same(one, sharded)


def test_adapters_in_bfloat16_sharded(start):
    """Frozen weights are bfloat16, the adapters beside them float32."""
    settings = {"processes": 2, "batch_size": 8, "precision": "bfloat16", "lora_rank": 4, "lora_alpha": 8.0}
    whole, sharded = start("whole", **settings), start("sharded", fsdp=True, **settings)
    assert sharded.sharded
    torch.testing.assert_close(whole.losses[:2], sharded.losses[:2], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(whole.losses, sharded.losses, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("fsdp", [False, True])
def test_adapters_killed_and_resumed_on_two_processes(start, fsdp):
    settings = {"batch_size": 8, "eval_steps": 3, "fsdp": fsdp, "optimizer": "own", "lora_rank": 4}
    settings |= {"validation_fraction": 0.25}
    whole = start("whole", processes=2, **settings)
    start("cut", processes=2, kill_at=8, **settings)
    same(whole, start("cut", processes=2, resume=True, **settings))
