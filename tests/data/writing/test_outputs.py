"""The guard of outputs: what a command wrote may go, what is not its own stays, and links are never followed."""

from __future__ import annotations

import pytest

from irm_fast.data.writing.outputs import (
    OutputExistsError,
    OutputFolder,
    check_choice,
    check_file,
    check_folder_of,
)

KIND = OutputFolder("demo", ("note.txt", "part-*.bin"), ("model",), lambda folder: (folder / "note.txt").is_file())


def test_states(tmp_path) -> None:
    folder = tmp_path / "out"
    assert KIND.check(folder) == "new"
    folder.mkdir()
    assert KIND.check(folder) == "empty"
    (folder / "part-1.bin").touch()
    assert KIND.state(folder) == "foreign", "a name alone is no mark"
    with pytest.raises(ValueError, match="not empty and holds no earlier demo; expected a new or empty folder"):
        KIND.check(folder)
    (folder / "note.txt").touch()
    assert KIND.check(folder) == "ours"
    with pytest.raises(ValueError, match="is a file"):
        KIND.check(folder / "note.txt")


def test_clearing_spares_what_is_not_ours(tmp_path) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "out"
    for place in (elsewhere, folder):
        (place / "model").mkdir(parents=True)
        (place / "model" / "weights").touch()
    (folder / "note.txt").touch()
    (folder / "part-1.bin").symlink_to(elsewhere / "model" / "weights")
    (folder / "part-2.bin").mkdir()  # of another kind
    (folder / "part-3.bin").touch()
    (folder / "thesis.tex").touch()
    (folder / "model-of-mine").mkdir()
    KIND.clear_own(folder)
    left = {path.name for path in folder.iterdir()}
    assert left == {"part-1.bin", "part-2.bin", "thesis.tex", "model-of-mine"}
    assert (elsewhere / "model" / "weights").exists()
    KIND.clear_own(tmp_path / "nowhere")


@pytest.mark.parametrize("how", ["link", "folder"])
def test_what_stands_in_the_way_is_an_error(tmp_path, how) -> None:
    """A run would write through a link of one of its names, to wherever that leads."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "note.txt").touch()
    (tmp_path / "mine").write_text("mine")
    if how == "link":
        (folder / "part-1.bin").symlink_to(tmp_path / "mine")
    else:
        (folder / "part-1.bin").mkdir()
    with pytest.raises(ValueError, match=r"holds 'part-1\.bin', not written by an earlier demo"):
        KIND.check_replaceable(folder)


def test_alone(tmp_path) -> None:
    (tmp_path / "note.txt").touch()
    KIND.check_replaceable(tmp_path, alone=True)
    (tmp_path / "thesis.tex").touch()
    KIND.check_replaceable(tmp_path)
    with pytest.raises(ValueError, match=r"holds 'thesis\.tex', not written by an earlier demo, and it is not deleted"):
        KIND.check_replaceable(tmp_path, alone=True)


def test_a_link_to_a_folder_counts_as_that_folder_and_a_dangling_one_as_a_file(tmp_path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert KIND.check(tmp_path / "link") == "empty"
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="expected a new or empty folder"):
        KIND.check(tmp_path / "dangling")


def test_files_and_choices(tmp_path) -> None:
    path = tmp_path / "log.jsonl"
    check_file(path, overwrite=False)
    path.touch()
    check_file(path, overwrite=True)
    for kind in (OutputExistsError, FileExistsError, ValueError):
        with pytest.raises(kind, match=r"out: .*log\.jsonl exists already; --overwrite replaces it"):
            check_file(path, overwrite=False)
    with pytest.raises(ValueError, match="is a folder; expected the name of a file"):
        check_file(tmp_path, overwrite=True)
    check_folder_of(path)
    with pytest.raises(ValueError, match="out: no such folder"):
        check_folder_of(tmp_path / "nowhere" / "log.jsonl")
    check_choice(resume=True, overwrite=False)
    with pytest.raises(ValueError, match="both are set; choose one"):
        check_choice(resume=True, overwrite=True)
