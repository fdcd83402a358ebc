"""What a training says of itself: a bar on a terminal, lines elsewhere, and nothing twice."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from irm_fast.training import progress
from irm_fast.training.progress import TrainingProgress, in_time
from irm_fast.training.run import train_log
from tests.evaluation import command_run
from tests.training import forked
from tests.training.training_cases import write_log


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def follow(steps: int = 4, first: int = 0) -> None:
    """A training of two epochs, evaluated after each, as transformers tells of it."""
    follower = TrainingProgress("design hidden")
    state = SimpleNamespace(
        is_world_process_zero=True, global_step=first, max_steps=steps, epoch=0.0, num_train_epochs=2, log_history=[]
    )
    follower.on_train_begin(None, state, None)
    for step in range(first, steps):
        state.global_step, state.epoch = step + 1, 2 * (step + 1) / steps
        state.log_history.append({"loss": 0.8125, "tokens_per_second": 1234.5})
        follower.on_log(None, state, None)
        follower.on_step_end(None, state, None)
        if state.epoch == int(state.epoch):
            follower.on_prediction_step(None, state, None)
            follower.on_evaluate(None, state, None, metrics={"eval_nll": 0.75 / state.epoch})
    follower.on_train_end(None, state, None)


def test_without_a_terminal_there_is_a_line_for_each_evaluation(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    follow()
    first, second = sys.stderr.getvalue().splitlines()
    assert first.startswith("design hidden: epoch 1.0 of 2, step 2 of 4, loss 0.8125, 1,23")
    assert "held-out nll 0.7500" in first and first.endswith(" s left")
    assert "held-out nll 0.3750" in second and second.endswith("in all")


def test_and_one_now_and_then(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(progress, "EVERY", -1.0)
    follow()
    assert len(sys.stderr.getvalue().splitlines()) == 4 + 2


def test_on_a_terminal_there_is_a_bar(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda file: (120, 40))
    monkeypatch.setattr(progress.tqdm, "__init__", eager(progress.tqdm.__init__))
    follow(first=1)
    frames = sys.stderr.getvalue().replace("\n", "\r").split("\r")
    shown = [frame for frame in frames if "steps, loss 0.8125, 1,23" in frame]
    assert shown and shown[0].startswith("design hidden, epoch 1.0 of 2 |") and "| 2/4 steps" in shown[0]
    assert shown[0].rstrip().endswith("left")
    assert any("evaluating held-out rows" in frame for frame in frames)
    assert sum(frame.startswith("design hidden: epoch") for frame in frames) == 2  # of the evaluations


def eager(init):
    """A bar that is drawn at every step, however fast they are."""
    return lambda *args, **settings: init(*args, **settings, mininterval=0, miniters=0)


def test_a_resumed_training_says_where_it_goes_on(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    follow(first=2)
    first, second = sys.stderr.getvalue().splitlines()
    assert first == "design hidden: goes on after step 2 of 4"
    assert "step 4 of 4" in second


def test_other_processes_say_nothing(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    follower, state = TrainingProgress("x"), SimpleNamespace(is_world_process_zero=False, log_history=[])
    for event in ("on_train_begin", "on_step_end", "on_prediction_step", "on_evaluate", "on_log", "on_train_end"):
        getattr(follower, event)(None, state, None)
    assert not sys.stderr.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (7200, "2 h 0 min"), (5e5, "5.8 days")]
)
def test_times_in_words(seconds, words) -> None:
    assert in_time(seconds) == words


def test_a_run_says_what_it_trains_and_prints_no_dictionaries(make_log, make_config, capfd) -> None:
    train_log(make_log(), make_config(progress=True, propensity_design="auto", estimator="joint"))
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert not out and "{" not in err
    assert lines[0].startswith("trains 2 models, one for each propensity design (constant, hidden)")
    assert lines[1].startswith("  36 rows (") and "12 held out; 10 steps in 2 epochs; attention " in lines[1]
    assert [line.split(":")[0] for line in lines[2:]] == ["design constant"] * 2 + ["design hidden"] * 2
    assert len(set(lines)) == len(lines) == 6


def test_no_progress_is_silence(make_log, make_config, capfd) -> None:
    train_log(make_log(), make_config())
    assert capfd.readouterr() == ("", "")


def test_of_two_processes_the_first_alone_speaks(make_log, tiny_model, tmp_path) -> None:
    """Of what it prints, of how far it is, and of what it warns of, when it reads and when it prepares."""
    data, log = tmp_path / "log.jsonl", make_log(160, signals=("copy", "share", "save"))
    log.feedback[:, 2] = 0
    write_log(log, data)
    settings = {"model": tiny_model, "data": data, "output": tmp_path / "out", "epochs": 1}
    options = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    assert forked.run((str(tmp_path / "said"), "train", *options), 2, tmp_path, command_run.main) == [0, 0]
    said, errors = ((tmp_path / f"said.0{kind}").read_text() for kind in ("", ".errors"))
    assert "propensities first" in errors and said.startswith(f"wrote {tmp_path / 'out'}: propensity design constant\n")
    assert errors.count("save: never acts") == errors.count("\ntrains 1 model") == errors.count("held-out nll") == 1
    assert [(tmp_path / f"said.1{kind}").read_text() for kind in ("", ".errors")] == ["", ""]
