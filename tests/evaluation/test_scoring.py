"""Rewards of files: packed, in a precision, on several processes, interrupted and resumed."""

from __future__ import annotations

import io
import json
import shutil
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.distributed import TCPStore
from torch.overrides import TorchFunctionMode
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.data.signals import RewardSpec
from irm_fast.embeddings.store import read_embeddings
from irm_fast.evaluation import rewards_file
from irm_fast.evaluation.evaluation import evaluate_log
from irm_fast.evaluation.scoring import load, score
from irm_fast.models import parts, passes, processes
from irm_fast.models.batches import Collator, TokenizedRows
from irm_fast.models.passes import Passes, place, resolve_precision
from irm_fast.models.record import read_tensor
from irm_fast.models.reward_model import ImplicitRewardModel
from tests.evaluation import command_run
from tests.training import forked

ROWS = 20


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory) -> Path:
    """The folder of a reward model with random heads."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(3)
    model = ImplicitRewardModel.from_backbone(tiny_model, RewardSpec("hidden", ("copy",), (1,), (0.0,)))
    with torch.no_grad():
        model.classifier.score.weight.normal_()
    model.save(folder)
    return folder


@pytest.fixture
def rows(make_log):
    """(ids, conversations)."""
    log = make_log(ROWS)
    return log.ids, log.messages


@pytest.fixture
def data(rows, tmp_path) -> Path:
    """A file of the rows."""
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for name, (question, answer) in zip(*rows, strict=True):
            row = {"id": name, "prompt": question["content"], "completion": answer["content"], "preference": 1}
            row["preference"] = int("good" in answer["content"])
            file.write(json.dumps(row) + "\n")
    return path


def read(path: Path) -> tuple[list[str], np.ndarray]:
    """Ids and rewards of a file."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line["id"] for line in lines], np.array([line["reward"] for line in lines])


def run(command: str, model: Path | str, data: Path, out: Path, *options: str):
    return CliRunner().invoke(
        app, [command, "--model", str(model), "--data", str(data), "--out", str(out), *map(str, options)]
    )


# Packs and precision


def test_rewards_do_not_depend_on_the_passes(saved, rows):
    model, conversations = load(saved), rows[1]
    alone = np.concatenate([score(model, [row]) for row in conversations])
    assert np.ptp(alone) > 0.1
    for limits in ({}, {"batch_size": 3}, {"token_budget": 150}, {"token_budget": 1}):  # 1: every row alone
        np.testing.assert_allclose(score(model, conversations, **limits), alone, atol=1e-5)
    with pytest.raises(ValueError, match="token_budget: got 0; expected 1 or more"):
        score(model, conversations, token_budget=0)


def test_a_budget_of_tokens_is_kept(saved, rows, monkeypatch):
    sizes = []
    call = Collator.__call__

    def seen(self, rows):
        batch = call(self, rows)
        sizes.append((batch["counts"].examples, batch["counts"].slots))
        return batch

    monkeypatch.setattr(Collator, "__call__", seen)
    model = load(saved)
    score(model, rows[1])  # tries whether the model takes packs, too
    sizes.clear()
    score(model, rows[1], token_budget=200)
    assert sum(count for count, _ in sizes) == ROWS and len(sizes) > 3
    assert max(slots for _, slots in sizes) <= 200
    sizes.clear()
    score(model, rows[1], token_budget=20)
    assert all(count == 1 for count, _ in sizes)
    for device, tokens in (("cpu", 2048), ("cuda", 16_384)):
        budgets = []
        monkeypatch.setattr(Passes, "_packs", lambda self, lengths, budget, seen=budgets: seen.append(budget) or [])
        Passes().run(TokenizedRows([np.ones(3, np.int32)]), Collator(0), torch.device(device), list)
        assert budgets == [tokens]


class OnCuda(TorchFunctionMode):
    """Lets tensors that go to a GPU stay on the CPU, and notes the dtypes of those that would have gone."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[tuple[int, torch.dtype]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.to and any(_is_cuda(value) for value in (*args[1:], *kwargs.values())):
            self.dtypes.append((args[0].ndim, args[0].dtype))
            dtypes = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, torch.dtype)]
            return args[0].to(*dtypes) if dtypes else args[0]
        if func is torch.Tensor.pin_memory:
            return args[0]
        return func(*args, **kwargs)


def _is_cuda(value: object) -> bool:
    return isinstance(value, torch.device) and value.type == "cuda"


@pytest.fixture
def exact(saved, rows) -> np.ndarray:
    """The rewards in float32, on the CPU."""
    return score(load(saved), rows[1])


@pytest.fixture
def on_cuda(exact, monkeypatch):
    """A GPU that has bfloat16, in name; and the batches that a model was called with."""
    cuda, batches = torch.device("cuda", 0), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(ImplicitRewardModel, "device", property(lambda self: cuda))
    pool = ImplicitRewardModel.pool

    def seen(self, input_ids, attention_mask=None, **packed):
        states = pool(self, input_ids, attention_mask, **packed)
        batches.append((len(states), attention_mask is None, self.backbone.layers[0].mlp.up_proj.weight.dtype))
        return states

    monkeypatch.setattr(ImplicitRewardModel, "pool", seen)
    return batches


def test_scoring_on_a_gpu_is_packed_and_in_bfloat16(saved, rows, exact, on_cuda):
    with OnCuda() as mode:
        model = load(saved)
        weights = [dtype for ndim, dtype in mode.dtypes if ndim > 1]
        assert weights.count(torch.float32) == 2  # the heads; nothing of the backbone
        assert len(weights) > 10
        got = score(model, rows[1])
    assert on_cuda[-1] == (ROWS, True, torch.bfloat16)  # after the trial, all rows in one pack
    assert model.heads.reward.weight.dtype == torch.float32
    assert 0 < np.abs(got - exact).max() < 0.1 * np.ptp(exact)


def test_float32_on_request(saved, rows, exact, on_cuda):
    with OnCuda():
        got = score(load(saved, precision="float32"), rows[1])
    assert on_cuda[-1] == (ROWS, False, torch.float32)  # flash kernels know no float32: padded
    np.testing.assert_allclose(got, exact, atol=1e-5)


def test_precisions(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert (resolve_precision("auto", cpu), resolve_precision("bfloat16", cpu)) == ("float32", "bfloat16")
    for has in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, has=has: has)
        assert resolve_precision("auto", cuda) == ("bfloat16" if has else "float32")
    with pytest.raises(ValueError, match=r"precision: got 'half'; expected one of auto, float32, bfloat16"):
        resolve_precision("half", cpu)


def test_positions_stay_exact_in_bfloat16(tiny_model):
    """Frequencies of rotary positions that are rounded would be other positions."""
    model = ImplicitRewardModel.from_backbone(tiny_model, RewardSpec("constant"))
    before = model.backbone.rotary_emb.inv_freq.clone()
    place(model.backbone, torch.device("cpu"), torch.bfloat16)
    assert {weight.dtype for weight in model.backbone.parameters()} == {torch.bfloat16}
    assert torch.equal(model.backbone.rotary_emb.inv_freq, before)
    model.backbone._keep_in_fp32_modules_strict = {"norm"}
    model.backbone.float()
    place(model.backbone, torch.device("cpu"), torch.bfloat16)
    assert model.backbone.norm.weight.dtype == torch.float32
    assert model.backbone.layers[0].input_layernorm.weight.dtype == torch.bfloat16


def test_a_model_read_in_bfloat16_has_exact_heads_and_positions(saved):
    whole, half = ImplicitRewardModel.load(saved), load(saved, precision="bfloat16")
    for name, weight in half.named_parameters():
        same = whole.get_parameter(name)
        if name.startswith("backbone."):
            assert torch.equal(weight, same.bfloat16())
        else:
            assert weight.dtype == torch.float32 and torch.equal(weight, same)
    assert half.classifier.score.weight is half.heads.reward.weight
    assert torch.equal(half.backbone.rotary_emb.inv_freq, whole.backbone.rotary_emb.inv_freq)
    for path in saved.glob("model*.safetensors"):
        assert read_tensor(saved, "score.weight").dtype == torch.float32, path
    with pytest.raises(ValueError, match=r"no lm_head\.weight in model\.safetensors"):
        read_tensor(saved, "lm_head.weight")


def test_bfloat16_on_a_cpu_is_packed_too(saved, rows):
    model = load(saved, precision="bfloat16")
    seen = []
    pool = model.pool
    model.pool = lambda **batch: seen.append("attention_mask" not in batch) or pool(**batch)
    score(model, rows[1])
    assert seen[-1]


def test_memory_that_runs_out_says_what_to_do(saved, rows, monkeypatch):
    model = load(saved)

    def full(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "score", full)
    with pytest.raises(RuntimeError, match=r"20 rows and \d+ tokens does not fit .* \(--token-budget\) below"):
        score(model, rows[1])
    with pytest.raises(RuntimeError, match=r"1 row and \d+ tokens .*; expected shorter rows, or bfloat16"):
        score(model, rows[1], batch_size=1)


# Files


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART_ROWS", 8)


@pytest.fixture
def interrupted(saved, data, tmp_path, small_parts, monkeypatch) -> Path:
    """The file of a run that was interrupted in its third part."""
    out, calls = tmp_path / "rewards.jsonl", []
    rewards = rewards_file.rewards

    def stop_at_third(model, conversations, *rest):
        calls.append(len(conversations))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return rewards(model, conversations, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(rewards_file, "rewards", stop_at_third)
        result = run("score", saved, data, out)
    last = result.stderr.splitlines()[-1]
    assert (result.exit_code, last) == (130, "interrupted; --resume goes on from the last whole part")
    assert not out.exists()
    assert calls == [8, 8, 4]
    return out


def test_interrupted_and_resumed(interrupted, saved, data, rows, tmp_path, monkeypatch):
    whole = tmp_path / "whole.jsonl"
    assert run("score", saved, data, whole).exit_code == 0
    again = run("score", saved, data, interrupted)
    assert again.exit_code == 2
    assert "holds an interrupted run; --resume goes on with it, --overwrite starts anew" in again.stderr
    done, rewards = [], rewards_file.rewards
    monkeypatch.setattr(
        rewards_file, "rewards", lambda model, some, *rest: done.append(len(some)) or rewards(model, some, *rest)
    )
    resumed = run("score", saved, data, interrupted, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert f"wrote {interrupted}: {ROWS} rewards" in resumed.stdout
    assert done == [4]
    assert interrupted.read_bytes() == whole.read_bytes()
    assert read(whole)[0] == list(rows[0])
    assert not interrupted.with_name("rewards.jsonl.parts").exists()


def test_resume_refuses_another_model_other_rows_and_settings(interrupted, saved, data, tmp_path):
    other, changed = tmp_path / "other", tmp_path / "changed.jsonl"
    shutil.copytree(saved, other)
    (other / "report.html").write_text("nothing of the model")
    model = ImplicitRewardModel.load(other)
    with torch.no_grad():
        model.classifier.score.weight[0, 0] += 1e-3
    lines = data.read_text().splitlines()
    lines[9] = lines[9].replace("question", "query")
    changed.write_text("\n".join(lines))
    cases = [
        ((saved, changed, interrupted), r"data: row 'row-9' is not what"),
        ((saved, data, interrupted, "--precision", "bfloat16"), "precision: got bfloat16 instead of float32"),
    ]
    for arguments, words in cases:
        refused = run("score", *arguments, "--resume")
        assert refused.exit_code == 2
        assert words in refused.stderr and "start anew with --overwrite" in refused.stderr
    model.save(other, json.loads((other / "irm_fast.json").read_text()))
    refused = run("score", other, data, interrupted, "--resume")
    assert "model: other weights or tokenizer" in refused.stderr
    both = run("score", saved, data, interrupted, "--resume", "--overwrite")
    assert "choose one" in both.stderr
    moved = tmp_path / "moved"
    shutil.copytree(saved, moved)
    (moved / "report.html").write_text("nothing of the model")
    assert run("score", moved, data, interrupted, "--resume").exit_code == 0


def test_starting_anew(interrupted, saved, data):
    folder = interrupted.with_name("rewards.jsonl.parts")
    (folder / "part-00000.safetensors").write_bytes(b"damaged")
    assert run("score", saved, data, interrupted, "--overwrite").exit_code == 0
    assert len(read(interrupted)[0]) == ROWS
    assert run("score", saved, data, interrupted).exit_code == 0  # its own file is replaced


def test_nothing_is_left_where_nothing_was_done(saved, data, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(rewards_file, "rewards", stop)
    result = run("score", saved, data, tmp_path / "rewards.jsonl")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "interrupted")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_what_is_no_file_is_written_at_once(saved, data, tmp_path, small_parts):
    target, link = tmp_path / "target.jsonl", tmp_path / "link.jsonl"
    target.write_text("")
    link.symlink_to(target)
    assert run("score", saved, data, link).exit_code == 0
    assert link.is_symlink() and len(read(target)[0]) == ROWS
    assert run("score", saved, data, tmp_path / "file.jsonl").exit_code == 0
    assert (tmp_path / "file.jsonl").read_bytes() == target.read_bytes()
    folder = run("score", saved, data, tmp_path)
    assert "is a folder; expected the name of a file" in folder.stderr


def test_no_more_than_a_part_is_in_memory(saved, tmp_path, small_parts, monkeypatch):
    texts = ({"prompt": f"why {number}", "completion": "so " * 10_000} for number in range(1200))
    data = tmp_path / "long.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in texts))
    sizes = []

    def rewards(model, some, *rest):
        sizes.append(len(some))
        return {"reward": np.full(len(some), len(sizes), np.float32)}

    monkeypatch.setattr(rewards_file, "rewards", rewards)
    assert run("score", saved, data, tmp_path / "first.jsonl").exit_code == 0  # what is imported stays
    sizes.clear()
    tracemalloc.start()
    assert run("score", saved, data, tmp_path / "out.jsonl").exit_code == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sizes == [8] * 150
    assert peak < 12e6 < data.stat().st_size / 2
    assert read(tmp_path / "out.jsonl")[0] == [f"row-{number + 1}" for number in range(1200)]


def test_standard_input_is_read_as_a_file_is(saved, data, tmp_path, small_parts):
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    assert run("score", saved, data, one).exit_code == 0
    command = ["score", "--model", str(saved), "--data", "-", "--out", str(other)]
    assert CliRunner().invoke(app, command, input=data.read_bytes()).exit_code == 0
    assert one.read_bytes() == other.read_bytes()


def test_rows_that_change_after_they_were_checked_are_an_error(rows):
    ids, messages = rows[0], [[dict(turn) for turn in row] for row in rows[1]]
    work = parts.Work(Path("rewards.jsonl"), ids, messages, {}, lambda *_: {}, lambda _: None)
    hashes = work.checked()
    assert work.columns(slice(8, 16), hashes, Passes()) == {}
    messages[9][-1]["content"] = "another"
    with pytest.raises(ValueError, match="data: rows 9 and on have changed since they were checked; start anew"):
        work.columns(slice(8, 16), hashes, Passes())


# Several processes


def test_two_processes_write_what_one_writes(saved, data, tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    for ranks, out in ((1, one), (2, two)):
        command = ("score", "--model", str(saved), "--data", str(data), "--out", str(out), "--token-budget", "100")
        assert forked.run((str(tmp_path / out.stem), *command), ranks, tmp_path, command_run.main) == [0] * ranks
    (ids, rewards), (same_ids, same_rewards) = read(one), read(two)
    assert ids == same_ids == [f"row-{i}" for i in range(ROWS)]
    assert np.ptp(rewards) > 0.1
    np.testing.assert_allclose(rewards, same_rewards, rtol=0, atol=1e-6)
    assert one.read_bytes() == two.read_bytes()  # the same passes, dealt to the processes
    assert (tmp_path / "two.0").read_text() == f"wrote {two}: {ROWS} rewards\n"
    assert (tmp_path / "two.1").read_text() == ""


def test_two_processes_evaluate_and_embed_as_one(saved, tiny_model, data, rows, tmp_path):
    vectors = []
    for ranks in (1, 2):
        out = tmp_path / f"{ranks}.safetensors"
        embed = ("embed", "--model", tiny_model, "--data", str(data), "--out", str(out))
        evaluate = ("evaluate", "--model", str(saved), "--data", str(data), "--json")
        for name, command in (("embed", embed), ("evaluate", evaluate)):
            arguments = (str(tmp_path / f"{name}{ranks}"), *command)
            assert forked.run(arguments, ranks, tmp_path, command_run.main) == [0] * ranks
        vectors.append(read_embeddings(out, *rows))
    np.testing.assert_allclose(vectors[0], vectors[1], rtol=0, atol=1e-6)
    one, two = (json.loads((tmp_path / f"evaluate{ranks}.0").read_text()) for ranks in (1, 2))
    assert one == pytest.approx(two, abs=1e-6)
    assert (tmp_path / "evaluate2.1").read_text() == ""


def test_fewer_passes_than_processes(saved, data, tmp_path):
    few = tmp_path / "few.jsonl"
    few.write_text(data.read_text().splitlines()[0] + "\n")
    command = ("score", "--model", str(saved), "--data", str(few), "--out", str(tmp_path / "few.out"))
    assert forked.run((str(tmp_path / "few"), *command), 2, tmp_path, command_run.main) == [0, 0]
    assert len(read(tmp_path / "few.out")[0]) == 1


def test_processes_share_the_tokens_evenly(monkeypatch):
    sizes, found = np.array([9, 2, 8, 3, 7, 1]), []
    for rank in (0, 1):
        state = SimpleNamespace(num_processes=2, process_index=rank)
        monkeypatch.setattr(processes, "joined", lambda state=state: state)
        monkeypatch.setattr("accelerate.utils.gather_object", lambda mine: mine)  # imported where it is called
        ((rows, total),) = processes.share(sizes, lambda rows: sizes[rows].sum(), distributed=True)
        found.append((rows.tolist(), int(total)))
    assert sorted(found[0][0] + found[1][0]) == list(range(6))
    assert [total for _, total in found] == [15, 15]


def test_an_error_of_the_first_process_is_that_of_all(saved, data, tmp_path):
    out = tmp_path / "rewards.jsonl"
    (tmp_path / "rewards.jsonl.parts").mkdir()
    command = ("score", "--model", str(saved), "--data", str(data), "--out", str(out))
    assert forked.run((str(tmp_path / "error"), *command), 2, tmp_path, command_run.main) == [0, 0]
    first, second = ((tmp_path / f"error.{rank}.errors").read_text().splitlines() for rank in (0, 1))
    assert any("holds an interrupted run; --resume goes on with it" in line for line in first)
    assert not any("interrupted" in line for line in second)
    assert first[-1] == "exit code 2"


def test_an_error_that_all_processes_find_is_said_once(monkeypatch, tmp_path):
    """As torchrun starts them, whose store outlives the first; what another finds alone is said by that one."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "WORLD_SIZE": 2}
    for name, value in (place | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(processes, "_PATIENCE", 0.2)

    def validate(rank, name):
        monkeypatch.setenv("RANK", str(rank))
        options = ["--model", "m", "--data", str(tmp_path / name), "--output", str(tmp_path / "out")]
        return CliRunner().invoke(app, ["train", *options])

    alone = validate(1, "nowhere.jsonl")  # the first has ended otherwise, or goes on
    first = validate(0, "nowhere.jsonl")
    same, other = validate(1, "nowhere.jsonl"), validate(1, "elsewhere.jsonl")
    assert (alone.exit_code, first.exit_code, same.exit_code, other.exit_code) == (2, 2, 0, 2)
    assert "nowhere.jsonl" in alone.stderr and "nowhere.jsonl" in first.stderr and "elsewhere.jsonl" in other.stderr
    assert same.stderr == ""


def test_bar_stands_on_terminals_alone(capsys):
    with passes.rows_bar(3, progress=True) as bar:
        bar.update(3)
    assert capsys.readouterr() == ("", "")
    assert Passes(progress=True).done is None


def test_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = {}
    for rank in ("0", "1"):
        for progress in (True, False):
            monkeypatch.setattr("sys.stderr", Terminal())
            monkeypatch.setenv("RANK", rank)
            with passes.rows_bar(3, progress) as bar:
                bar.update(3)
            shown[rank, progress] = "3/3" in sys.stderr.getvalue()
    assert [key for key, value in shown.items() if value] == [("0", True)]


@pytest.fixture
def spoiled(monkeypatch):
    """A function after which the rewards, or the losses, of rows of these numbers are not finite."""

    def spoil(*wrong: int) -> None:
        run = Passes.run

        def spoiled_run(self, *args, **kwargs):
            columns = run(self, *args, **kwargs)
            columns[0][list(wrong)] = np.nan
            return columns

        monkeypatch.setattr(Passes, "run", spoiled_run)

    return spoil


@pytest.mark.parametrize("wrong", [(3,), range(20)])
def test_rewards_that_are_not_finite_are_counted_and_named(saved, data, tmp_path, spoiled, wrong):
    spoiled(*wrong)
    out = tmp_path / "rewards.jsonl"
    given = ["score", "--model", str(saved), "--data", str(data), "--out", str(out), "--no-progress"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 1
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    null = [line["id"] for line in lines if line["reward"] is None]
    assert len(lines) == ROWS and len(null) == len(wrong)
    error = result.stderr.splitlines()[-1]
    assert error.startswith(f"error: {len(wrong)} of 20 rewards are not finite, and null in the file: row ")
    assert all(name in error for name in null[:10])
    assert ("and 10 more" in error) == (len(wrong) == 20)


def test_scores_that_are_not_finite_are_warned_of(saved, rows, spoiled):
    spoiled(3)
    with pytest.warns(UserWarning, match="score: 1 of 20 rewards are not finite, of the rows 3"):
        found = score(load(saved), rows[1])
    assert np.isnan(found).sum() == 1


def test_nothing_is_measured_on_what_is_not_finite(saved, make_log, spoiled):
    spoiled(3)
    log = make_log(ROWS, signals=("copy",))
    with pytest.raises(ValueError, match=r"model: what it predicts is not finite for 1 of 20 rows: row 'row-3'"):
        evaluate_log(load(saved), log)
