"""Commands that are stopped in the middle of their files end as if they had not been, or say in a line why not.

A few operations of each command; `python -m benchmarks.faults` stops them at every one.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence

import pytest

from benchmarks.faults.sweep import Command, Outcome, Result, Server, digest, killed, prepare, reference, stopped

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("cc") is None, reason="faults are made by a C library on Linux"
)

PLACES = {  # operations, by how their lines begin and end
    "train": {
        "killed": [
            ("rename", "out/train_data.json"),
            ("rename", "checkpoint-2/irm_fast_files.json"),
            ("rename", "out/irm_fast.json"),
        ],
        "full": [("open64", "checkpoint-4/trainer_state.json")],
    },
    "embed": {
        "killed": [("rename", "place/out.safetensors")],
        "full": [("mkdir", "part-00002.safetensors.unfinished")],
    },
    "embed to a folder": {"killed": [("rename", "embeddings-00000-of-00002.safetensors")]},
    "score": {"killed": [("rename", "part-00003.safetensors")], "torn": [("write", "")]},
    "train --embeddings": {"killed": [("rename", "out/train.yaml"), ("rename", "out/irm_fast.json")]},
}


@pytest.fixture(scope="module")
def faults(tmp_path_factory) -> Iterator[tuple[Server, dict[str, Command]]]:
    server = Server(tmp_path_factory.mktemp("faults"))
    yield server, {command.name: command for command in prepare(server)}
    server.close()


def numbers(operations: Sequence[str], places: Sequence[tuple[str, str]]) -> list[int]:
    """The numbers of the first operations of these names on these paths."""
    found = []
    for name, end in places:
        matching = [n for n, text in enumerate(operations, 1) if text.startswith(f"{name} ") and text.endswith(end)]
        assert matching, f"no {name} of {end} among the operations; the list is out of date"
        found.append(matching[0])
    return found


@pytest.mark.parametrize("name", PLACES)
def test_what_is_stopped_ends_as_if_it_had_not_been(faults, name) -> None:
    server, commands = faults
    whole, operations = reference(server, commands[name], runs=1)
    found: list[Outcome] = []
    for fault, places in PLACES[name].items():
        found += stopped(server, commands[name], fault, numbers(operations, places), whole)
    assert not [one for one in found if one.verdict != "exact" or one.line or one.left], found


def test_what_is_killed_at_a_moment_ends_as_if_it_had_not_been(faults) -> None:
    server, commands = faults
    whole, _ = reference(server, commands["score"], runs=1)
    found = list(killed(server, commands["score"], [0.05, 60], whole))
    assert [one.verdict for one in found] == ["exact", "exact"], found
    assert found[0].operation.startswith("0.050 s, after "), "the first moment is before the end"


def test_the_harness_sees_what_is_wrong(faults, monkeypatch) -> None:
    """A result that differs, one that is refused, and a place that can be neither resumed nor overwritten."""
    server, commands = faults
    embed = commands["embed"]
    whole, operations = reference(server, embed, runs=1)
    [number] = numbers(operations, [("rename", "place/out.safetensors")])
    [one] = stopped(server, embed, "killed", [number], "another")
    assert one.verdict == "different"
    run = server.run
    for wrong, verdict in ((["--resume"], "refused"), (["--resume", "--overwrite"], "stuck")):

        def refused(arguments, *rest, wrong=tuple(wrong)):
            what = [name for name in wrong if name in arguments]
            return Result(2, f"error: {what[0]}: no", []) if what else run(arguments, *rest)

        monkeypatch.setattr(server, "run", refused)
        [one] = stopped(server, embed, "killed", [number], whole)
        assert one.verdict == verdict and one.line.startswith("error: --resume: no")
    assert digest(server.fresh(), embed) == ""
