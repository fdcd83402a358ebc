"""What a run leaves behind: settings that are safe to use again, trackers' files, permissions."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from transformers.integrations import integration_utils

from irm_fast.data.texts import Names
from irm_fast.training import build
from irm_fast.training.callbacks import MetricsFile
from irm_fast.training.config import EmbeddingTrainConfig, load_config
from irm_fast.training.fingerprint import describe
from irm_fast.training.run import train, train_log
from irm_fast.training.run_folder import CHECKPOINTS, begin_run, check_output, close_run
from tests.training.training_cases import train_until


def test_output_folder(make_log, make_config, tmp_path):
    config = make_config()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    for settings in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(ValueError, match="not empty"):
            train_log(make_log(), replace(config, **settings))
    assert (tmp_path / "out" / "mine.txt").exists()

    config = make_config("new", epochs=1)
    train_log(make_log(), config)
    for settings in ({}, {"resume": True}):
        with pytest.raises(ValueError, match=r"not empty.*finished.*--overwrite"):
            train_log(make_log(), replace(config, **settings))
    (tmp_path / "new" / "notes.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"holds 'notes\.txt'.*--overwrite does not delete"):
        train_log(make_log(), replace(config, overwrite=True))
    (tmp_path / "new" / "notes.txt").rename(tmp_path / "notes.txt")
    for settings in ({"model": config.output}, {"data": str(tmp_path / "new" / "train.yaml")}):
        with pytest.raises(ValueError, match=rf"holds {next(iter(settings))} "):
            train_log(make_log(), replace(config, overwrite=True, **settings))
    train_log(make_log(), replace(config, overwrite=True))


def test_the_settings_of_an_overwritten_run_do_not_delete_it(make_log, make_config):
    quick = {"epochs": 1, "validation_fraction": 0}
    train_log(make_log(), make_config(**quick))
    config = make_config(**quick, overwrite=True)
    train_log(make_log(), config)
    output = Path(config.output)
    before = {path: path.read_bytes() for path in output.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match="holds a finished run"):
        train_log(make_log(), load_config(output / "train.yaml"))
    with pytest.raises(ValueError, match="data: none given"):
        train(load_config(output / "train.yaml"))
    assert {path: path.read_bytes() for path in output.iterdir() if path.is_file()} == before


def test_events_of_trackers_are_kept(make_log, make_config, monkeypatch):
    """TensorBoard and others write into the folder of the checkpoints, which is removed at the end."""

    class Tracker(MetricsFile):
        def on_train_end(self, args, state, control, **kwargs):
            events = Path(args.output_dir) / "runs" / "today"
            events.mkdir(parents=True)
            (events / "events").write_text(f"{state.global_step} steps")

    monkeypatch.setattr(build, "MetricsFile", Tracker)
    config = make_config(epochs=1, propensity_design="auto", estimator="joint")
    train_log(make_log(), config)
    output = Path(config.output)
    for design in ("constant", "hidden"):
        assert (output / "trackers" / design / "runs" / "today" / "events").read_text().endswith("steps")
    assert not (output / "checkpoints").exists()
    train_log(make_log(), make_config(epochs=1, overwrite=True, propensity_design="constant"))
    assert not (output / "trackers" / "hidden").exists()


def test_events_of_tensorboard_are_kept(make_log, make_config, monkeypatch):
    """Also those from before an interruption, in the folder where transformers' own callback wants them."""

    class SummaryWriter:
        def __init__(self, log_dir):
            self.folder = Path(log_dir)
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file = self.folder / f"events.{len(list(self.folder.parent.rglob('events.*')))}"

        def add_scalar(self, name, value, step):
            with self.file.open("a") as file:
                file.write(f"{name} {step}\n")

        def add_text(self, *content): ...

        def flush(self): ...

        def close(self): ...

    stub = ModuleType("torch.utils.tensorboard")
    stub.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, stub.__name__, stub)
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    config = make_config(report_to="tensorboard", epochs=2)
    train_until(6, make_log(), config)
    train_log(make_log(), replace(config, resume=True))
    events = sorted((Path(config.output) / "trackers" / "constant" / "runs").rglob("events.*"))
    assert [path.name for path in events] == ["events.0", "events.1"]
    assert all("eval/nll" in path.read_text() for path in events)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_files_of_a_model_honour_the_umask(make_log, make_config, mask, mode):
    before = os.umask(mask)
    try:
        config = make_config(epochs=1, validation_fraction=0)
        train_log(make_log(), config)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in Path(config.output).iterdir() if path.is_file()}
    assert "model.safetensors" in modes and set(modes.values()) == {mode}, modes


def test_interrupted_run_of_the_other_program(make_log, make_config, tmp_path):
    """A fit on embeddings is redone, and not taken for the run of a language model."""
    fingerprint = describe(make_log(), None)
    fit = EmbeddingTrainConfig(embeddings=str(tmp_path / "log.safetensors"), output=make_config().output)
    begin_run(fit, fingerprint)
    with pytest.raises(ValueError, match=r"holds an interrupted run; --resume goes on with it, --overwrite"):
        check_output(fit, fingerprint)
    check_output(replace(fit, resume=True), fingerprint)
    with pytest.raises(ValueError, match=r"resume: the interrupted run in .* was with embeddings.*--overwrite"):
        check_output(make_config(resume=True), fingerprint)
    check_output(make_config(overwrite=True), fingerprint)


def test_a_fingerprint_is_of_who_and_when_too(make_log):
    log = make_log(4)
    numbers, names = np.arange(4.0), ["a", "b", None, "a"]
    given = [{"session_ids": names}, {"segments": {"platform": names}}, {"segments": {"model": names}}]
    given += [{name: numbers} for name in ("times", "positions", "label_probability")]
    given += [{"acted_at": np.ones((4, 2))}, {"times": numbers + 1}, {}]
    assert len({describe(replace(log, **fields), None)["sha256"] for fields in given}) == len(given)


def test_a_stray_file_among_the_checkpoints_does_not_stop_the_end(make_log, make_config):
    config = make_config()
    begin_run(config, describe(make_log(), None))
    checkpoints = Path(config.output) / CHECKPOINTS
    (checkpoints / ".DS_Store").write_text("")
    close_run(config)
    assert not checkpoints.exists()


@pytest.mark.parametrize("count", [1, 100, 101, 25_000])
def test_the_fingerprint_of_many_names_is_that_of_one_text(make_log, count):
    names = [None if i % 7 == 0 else f"\u00e9{i}" for i in range(count)]
    log = replace(
        make_log(count), user_ids=names, session_ids=Names.of(names), segments={"platform": names, "empty": []}
    )
    digest = hashlib.sha256()
    head = (log.signals, log.polarity, log.feature_names, log.user_ids)
    for entry in (head, *zip(log.ids, log.messages, strict=True)):
        digest.update(json.dumps(entry).encode() + b"\n")
    for values in (log.feedback, log.preference, None, None, None):
        digest.update(b"none" if values is None else values.tobytes())
    digest.update(json.dumps(["session_ids", names]).encode() + b"\n")
    digest.update(json.dumps(["segments", log.segments]).encode() + b"\n")
    assert describe(log, None) == {"rows": count, "sha256": digest.hexdigest()}
