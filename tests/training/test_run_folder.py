"""What a run leaves behind: settings that are safe to use again, trackers' files, permissions."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from irm_fast.training import run
from irm_fast.training.callbacks import MetricsFile
from irm_fast.training.config import load_config
from irm_fast.training.run import train, train_log


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

    monkeypatch.setattr(run, "MetricsFile", Tracker)
    config = make_config(epochs=1, propensity_design="auto")
    train_log(make_log(), config)
    output = Path(config.output)
    for design in ("constant", "hidden"):
        assert (output / "trackers" / design / "runs" / "today" / "events").read_text().endswith("steps")
    assert not (output / "checkpoints").exists()
    train_log(make_log(), make_config(epochs=1, overwrite=True, propensity_design="constant"))
    assert not (output / "trackers" / "hidden").exists()


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
