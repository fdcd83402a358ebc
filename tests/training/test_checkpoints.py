"""A damaged checkpoint is never resumed: an older whole one is, or the beginning, and the line says which and why."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from irm_fast.data.writing.manifest import MANIFEST
from irm_fast.data.writing.whole import UnwrittenError
from irm_fast.training import checkpoints
from irm_fast.training.checkpoints import WholeCheckpoints, find_checkpoint
from irm_fast.training.run import train_log
from irm_fast.training.run_folder import CHECKPOINTS
from irm_fast.training.trainer import ImplicitTrainer
from tests.training.training_cases import Interrupted, interrupt, largest_difference, metrics_of, train_until

FILES = (
    *("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "packs.json"),
    MANIFEST,
)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """Change one bit, of a number if it is a file of numbers."""
    held = bytearray(path.read_bytes())
    held[len(held) * 2 // 3] ^= 1
    path.write_bytes(bytes(held))


DAMAGE = {"half": halve, "empty": lambda path: path.write_bytes(b""), "deleted": Path.unlink, "a bit": flip}


@pytest.fixture(scope="module")
def interrupted(make_log, tiny_model, tmp_path_factory):
    """A run with checkpoints after steps 2 (the best) and 6 (the newest), and what it comes to without interruption."""
    from irm_fast.training.config import TrainConfig

    folder = tmp_path_factory.mktemp("interrupted")
    quick = {"epochs": 2, "batch_size": 8, "learning_rate": 0.2, "progress": False, "eval_steps": 2, "patience": 0}
    quick |= {"validation_fraction": 0.25, "propensity_design": "constant", "estimator": "joint"}
    config = TrainConfig(model=tiny_model, output=str(folder / "cut"), **quick)
    train_until(7, make_log(), config)
    whole = train_log(make_log(), replace(config, output=str(folder / "whole")))
    design = Path(config.output) / CHECKPOINTS / "constant"
    state = json.loads((design / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["best_global_step"] != 6, "the test needs an older checkpoint beside the newest one"
    return config, whole, f"checkpoint-{state['best_global_step']}"


def copied(interrupted, tmp_path: Path):
    """The interrupted run in another place, where it may be damaged."""
    config = replace(interrupted[0], output=str(tmp_path / "run"), resume=True)
    shutil.copytree(interrupted[0].output, config.output)
    return config, Path(config.output) / CHECKPOINTS / "constant"


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_passed_over(interrupted, tmp_path, name, how) -> None:
    _, folder = copied(interrupted, tmp_path)
    assert find_checkpoint(folder).newest == folder / "checkpoint-6"
    DAMAGE[how](folder / "checkpoint-6" / name)
    found = find_checkpoint(folder)
    assert found.newest == folder / interrupted[2]
    text = found.in_words()
    assert f"checkpoint-6 is passed over: {name} " in text
    assert text.endswith(f"the run goes on from {found.newest}")

    DAMAGE[how](folder / interrupted[2] / name)
    assert find_checkpoint(folder).newest is None


def test_a_checkpoint_is_no_use_without_the_best_one(interrupted, tmp_path) -> None:
    _, folder = copied(interrupted, tmp_path)
    flip(folder / interrupted[2] / "model.safetensors")
    found = find_checkpoint(folder)
    assert found.newest is None
    assert (
        f"{interrupted[2]}, which was the best, is not whole: model.safetensors holds other bytes" in found.in_words()
    )


@pytest.mark.parametrize("damaged", ["the newest", "both", "none"])
def test_the_result_is_that_of_a_run_without_interruption(interrupted, make_log, tmp_path, damaged) -> None:
    """Also where the folder was moved meanwhile: the best checkpoint is found in its new place."""
    config, folder = copied(interrupted, tmp_path)
    for name in {"the newest": ["checkpoint-6"], "both": ["checkpoint-6", interrupted[2]], "none": []}[damaged]:
        (folder / name / "optimizer.pt").unlink()
    with pytest.MonkeyPatch.context() as patch:
        first = {"the newest": int(interrupted[2].rpartition("-")[2]), "both": 0, "none": 6}[damaged]
        interrupt(patch, first - 1)  # would raise if an earlier step were done
        if damaged == "none":
            resumed = train_log(make_log(), config)
        else:
            with pytest.warns(UserWarning, match="checkpoint-6 is passed over: optimizer.pt is missing"):
                resumed = train_log(make_log(), config)
    assert largest_difference(interrupted[1], resumed) == 0
    assert resumed.metrics == interrupted[1].metrics
    assert [line for line in metrics_of(config) if "eval_nll" in line]


def test_patience_is_remembered(make_log, make_config) -> None:
    """A run that had stopped for lack of gain, and was killed before it wrote its model, does not train on."""
    config = make_config(epochs=4, patience=1, learning_rate=0.5, propensity_design="constant", estimator="joint")
    whole = train_log(make_log(), config)
    last = max(line["step"] for line in metrics_of(config) if "eval_nll" in line)
    cut = replace(config, output=f"{config.output}.cut")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImplicitTrainer, "_load_best_model", lambda self: (_ for _ in ()).throw(Interrupted))
        with pytest.raises(Interrupted):
            train_log(make_log(), cut)
    assert last < 4 * 5, "the test needs a run that stops early"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, last)
        resumed = train_log(make_log(), replace(cut, resume=True))
    assert largest_difference(whole, resumed) == 0


def test_a_full_disk_keeps_the_checkpoints_that_there_are(interrupted, make_log, tmp_path, monkeypatch) -> None:
    config, folder = copied(interrupted, tmp_path)
    before = sorted(path.name for path in folder.iterdir())
    usage = shutil.disk_usage(folder)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
        said = r"checkpoint needs about \d+ MB, and 1 MB are free on its disk; make room there, and --resume goes on"
        with pytest.raises(UnwrittenError, match=said):
            train_log(make_log(), config)
    assert sorted(path.name for path in folder.iterdir()) == before

    def full(self, folder):
        (Path(folder) / "scheduler.pt").write_bytes(b"half")
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(WholeCheckpoints, "_save_optimizer_and_scheduler", full)
        with pytest.raises(UnwrittenError, match=r"checkpoint-8: could not be written: no space is left on its disk"):
            train_log(make_log(), config)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert largest_difference(interrupted[1], train_log(make_log(), config)) == 0


def test_a_best_checkpoint_that_is_damaged_meanwhile_is_not_loaded(
    interrupted, make_log, tmp_path, monkeypatch
) -> None:
    config, _ = copied(interrupted, tmp_path)
    load = WholeCheckpoints._load_best_model

    def damaged(self):
        flip(Path(self.state.best_model_checkpoint) / "model.safetensors")
        load(self)

    monkeypatch.setattr(WholeCheckpoints, "_load_best_model", damaged)
    with pytest.raises(
        RuntimeError, match=r"the best checkpoint is no longer whole: model.safetensors holds other bytes"
    ):
        train_log(make_log(), config)


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_settings_for_people_are_written_anew(interrupted, make_log, tmp_path, how) -> None:
    config, _ = copied(interrupted, tmp_path)
    path = Path(config.output) / "train.yaml"
    written = path.read_text()
    DAMAGE[how](path)
    (Path(config.output) / "metrics.jsonl").write_bytes(b'\xff{"step": \n')
    assert largest_difference(interrupted[1], train_log(make_log(), config)) == 0
    assert path.read_text().replace(config.output, "") == written.replace(interrupted[0].output, "")


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_record_of_the_log_is_refused(interrupted, make_log, tmp_path, how) -> None:
    config, _ = copied(interrupted, tmp_path)
    DAMAGE[how](Path(config.output) / "train_data.json")
    with pytest.raises(ValueError, match=r"train_data.json is (damaged|missing).*bring it back, or use --overwrite"):
        train_log(make_log(), config)
    assert train_log(make_log(), replace(config, resume=False, overwrite=True)).metrics


def test_without_a_best_checkpoint_there_is_an_older_one_to_go_on_from(make_log, make_config) -> None:
    whole = train_log(make_log(), make_config("whole", validation_fraction=0))
    config = make_config("cut", validation_fraction=0, save_steps=1, save_minutes=0)
    train_until(4, make_log(), config)
    folder = Path(config.output) / CHECKPOINTS / "constant"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-3", "checkpoint-4"]
    (folder / "checkpoint-4" / "optimizer.pt").unlink()
    with pytest.MonkeyPatch.context() as patch, pytest.warns(UserWarning, match=r"goes on from .*checkpoint-3"):
        interrupt(patch, 2)  # would raise if an earlier step were done again
        resumed = train_log(make_log(), replace(config, resume=True))
    assert largest_difference(whole, resumed) == 0
