"""A run saves between evaluations, and when it is asked to stop; what was trained until then is not lost."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from irm_fast.data.writing import lock
from irm_fast.data.writing.interruption import TerminatedError, exit_code, termination_raised
from irm_fast.data.writing.lock import LOCK
from irm_fast.models.processes import joined
from irm_fast.training import saves
from irm_fast.training.config import TrainConfig
from irm_fast.training.run import train, train_log
from irm_fast.training.saves import Saves
from tests.training import forked, stopped_run
from tests.training.training_cases import Interrupted, interrupt, largest_difference, train_until, write_log


def checkpoints(config: TrainConfig) -> list[str]:
    return sorted(path.name for path in Path(config.output).glob("checkpoints/*/checkpoint-*"))


def test_a_run_saves_by_steps_beside_its_evaluations(make_log, make_config) -> None:
    """Five steps an epoch; the checkpoint of an evaluation that is the best one stays beside the newest."""
    whole = train_log(make_log(), make_config("whole", patience=0))
    config = make_config(save_steps=3, save_minutes=0, patience=0)
    train_until(4, make_log(), config)
    assert checkpoints(config) == ["checkpoint-3"]
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 2)  # would raise if an earlier step were done again
        resumed = train_log(make_log(), replace(config, resume=True, save_steps=4))
    assert largest_difference(whole, resumed) == 0 and resumed.metrics == whole.metrics


def test_a_run_saves_by_the_clock_but_not_for_more_than_a_twentieth_of_its_time(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(saves.time, "monotonic", lambda: now[0])
    when = Saves(TrainConfig(model="m", output="o"), 1)
    assert not when.wanted(1)
    now[0] = 599
    assert not when.wanted(2)
    now[0] = 600
    assert when.wanted(3)
    when.saved(20)
    now[0] = 1199
    assert not when.wanted(4)
    now[0] = 1200
    assert when.wanted(5)
    when.saved(60)  # a twentieth of 20 minutes
    now[0] = 1800
    assert not when.wanted(6)
    now[0] = 2400
    assert when.wanted(7)
    never = Saves(TrainConfig(model="m", output="o", save_minutes=0), 1)
    now[0] = 1e9
    assert not never.wanted(1)


def test_a_save_by_the_clock_is_resumed(make_log, make_config) -> None:
    config = make_config(save_minutes=1e-9, patience=0)
    whole = train_log(make_log(), make_config("whole", patience=0))
    train_until(3, make_log(), config)
    assert len(checkpoints(config)) == 1, "steps are too short for a second one, which may take a twentieth of the time"
    assert largest_difference(whole, train_log(make_log(), replace(config, resume=True))) == 0


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_saves_and_ends_with_the_usual_code(make_log, make_config, tmp_path, number, code, word) -> None:
    log = make_log()
    write_log(log, tmp_path / "log.jsonl")
    config = make_config("stopped", data=str(tmp_path / "log.jsonl"), patience=0, epochs=3, estimator="joint")
    config.save(tmp_path / "run.yaml")
    paths = [str(tmp_path / name) for name in ("begun", "said")]
    command = ("train", "--config", str(tmp_path / "run.yaml"))
    process = forked.SERVER.Process(target=stopped_run.main, args=(*paths, *command))
    process.start()
    until = time.monotonic() + 120
    while not (tmp_path / "begun").exists() and process.is_alive() and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process.pid, number)
    process.join(60)
    said = (tmp_path / "said").read_text()
    assert process.exitcode == code, said
    step = int(checkpoints(config)[-1].rpartition("-")[2])
    assert step >= 4
    assert said.splitlines()[-1] == f"{word}; saved after step {step} of 15; --resume goes on from there"
    assert not (Path(config.output) / LOCK).exists()
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, step - 1)  # would raise if it were done again
        resumed = train(replace(config, resume=True))
    assert largest_difference(train(replace(config, output=str(tmp_path / "whole"))), resumed) == 0


def test_a_second_signal_stops_at_once(make_log, make_config, monkeypatch) -> None:
    from irm_fast.training.trainer import ImplicitTrainer

    def twice(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not at once")

    monkeypatch.setattr(ImplicitTrainer, "training_step", twice)
    config = make_config()
    with pytest.raises(KeyboardInterrupt):
        train_log(make_log(), config)
    assert not checkpoints(config) and not (Path(config.output) / LOCK).exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_termination_that_comes_by_two_ways_saves(make_log, make_config, monkeypatch) -> None:
    from irm_fast.training.trainer import ImplicitTrainer

    step = ImplicitTrainer.training_step

    def twice(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(ImplicitTrainer, "training_step", twice)
    config = make_config()
    with pytest.raises(TerminatedError):
        train_log(make_log(), config)
    assert checkpoints(config)


def test_a_run_that_lost_its_lock_saves_nothing(make_log, make_config, monkeypatch) -> None:
    from irm_fast.training.trainer import ImplicitTrainer

    step = ImplicitTrainer.training_step

    def lost(self, *args, **kwargs):
        lock._lost.set()
        os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(ImplicitTrainer, "training_step", lost)
    config = make_config()
    with pytest.raises(KeyboardInterrupt):
        train_log(make_log(), config)
    assert not checkpoints(config)
    lock._lost.clear()


def test_a_signal_after_the_last_step_is_not_lost(make_log, make_config, monkeypatch) -> None:
    from irm_fast.training.trainer import ImplicitTrainer

    finish = ImplicitTrainer._finalize_training

    def stopped(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return finish(self, *args, **kwargs)

    whole, config = train_log(make_log(), make_config("whole")), make_config()
    with monkeypatch.context() as patch, pytest.raises(TerminatedError):
        patch.setattr(ImplicitTrainer, "_finalize_training", stopped)
        train_log(make_log(), config)
    monkeypatch.setattr(ImplicitTrainer, "training_step", lambda *_, **__: (_ for _ in ()).throw(Interrupted))
    assert largest_difference(whole, train_log(make_log(), replace(config, resume=True))) == 0


def test_termination_ends_one_of_several_processes_at_once(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with termination_raised():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_termination_is_raised_where_a_command_is() -> None:
    with pytest.raises(TerminatedError) as caught, termination_raised():
        os.kill(os.getpid(), signal.SIGTERM)
    assert exit_code(caught.value) == 143 and exit_code(KeyboardInterrupt()) == 130
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def agree(out: str) -> None:
    """One of two processes is asked to stop after its third step."""
    joined()
    when = Saves(TrainConfig(model="m", output="o", save_steps=5), 2)
    found = []
    for step in range(1, 8):
        if step == 3 and os.environ["RANK"] == "1":
            when.asked = signal.SIGTERM
        found.append(int(when.wanted(step)))
        when.asked = 0
    Path(f"{out}.{os.environ['RANK']}").write_text(str(found))


def test_processes_agree_on_the_step_without_waiting_for_it(tmp_path) -> None:
    assert forked.run((str(tmp_path / "found"),), 2, tmp_path, agree) == [0, 0]
    for rank in range(2):
        assert (tmp_path / f"found.{rank}").read_text() == f"[0, 0, 0, {int(signal.SIGTERM)}, 0, 1, 0]"
