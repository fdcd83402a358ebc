"""The beginning of a run: its settings and versions are kept, and what must not be mixed is refused or said."""

from __future__ import annotations

import json
from importlib.metadata import version

import pytest

from irm_fast.data.writing.outputs import OutputFolder
from irm_fast.experiments import run_folder
from irm_fast.experiments.run_folder import SETTINGS, begin, marked_by

FOLDER = OutputFolder("run", (SETTINGS,), (), marked_by("size"), mark=SETTINGS)


def _begin(output, resume=False):
    begin(FOLDER, output, {"size": 3}, resume=resume, overwrite=False)


def test_versions_are_kept_and_others_are_warned_of(tmp_path, monkeypatch, recwarn) -> None:
    _begin(tmp_path)
    settings = json.loads((tmp_path / SETTINGS).read_text())
    assert settings["versions"]["torch"] == version("torch") and settings["versions"]["numpy"] == version("numpy")
    assert "trl" not in settings["versions"] or settings["versions"]["trl"] == version("trl")
    _begin(tmp_path, resume=True)
    assert not recwarn.list

    others = {"torch": "9.9", "scipy": None}
    monkeypatch.setattr(run_folder, "installed", lambda name: others.get(name, settings["versions"].get(name)))
    with pytest.warns(UserWarning) as said:
        _begin(tmp_path, resume=True)
    [warning] = said
    assert str(warning.message) == (
        f"versions: got scipy not installed, torch 9.9; {tmp_path} was begun with scipy=={version('scipy')} "
        f"torch=={version('torch')}, and numbers may differ by that; install these, choose another folder, or "
        "--overwrite"
    )
    assert json.loads((tmp_path / SETTINGS).read_text()) == settings  # those that the run began with


def test_a_run_that_kept_no_versions_goes_on(tmp_path, recwarn) -> None:
    _begin(tmp_path)
    settings = json.loads((tmp_path / SETTINGS).read_text())
    del settings["versions"]
    (tmp_path / SETTINGS).write_text(json.dumps(settings))
    _begin(tmp_path, resume=True)
    assert not recwarn.list and json.loads((tmp_path / SETTINGS).read_text()) == settings
