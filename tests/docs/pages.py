"""The blocks of code of a page, and how each is run.

Python blocks of a page run in order in one namespace, shell blocks command by command in this process, all of them in
one folder. A block of `output` after a block shows what that block prints. A comment before a block says why it is not
run here:

    <!-- not run: eight GPUs -->                    its options are still read
    <!-- run by tests/cli/test_imports.py -->       another test runs it
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import click
import typer
from typer.testing import CliRunner

from irm_fast.cli.commands import app

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^>]*) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


class Block(NamedTuple):
    """A block of code of a page.

    Attributes:
        place: The page and the line of the block's first line of code.
        language: The word after the fence.
        code: The text of the block.
        mark: What the comment before it says; empty where there is none.
        adjacent: Whether nothing but empty lines is between this block and the one before it.
    """

    place: str
    language: str
    code: str
    mark: str
    adjacent: bool


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    text, found, end = page.read_text(encoding="utf-8"), [], 0
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        adjacent = end > 0 and not text[end : match.start()].strip()
        language, mark = match["language"], match["mark"] or ""
        found.append(Block(f"{page.relative_to(ROOT)}:{line}", language, match["code"], mark, adjacent))
        end = match.end()
    return found


def run_page(page: Path) -> list[str]:
    """Run the blocks of a page in the current folder, and compare what they print with what the page shows.

    Args:
        page: The page.

    Returns:
        The blocks that were run.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    printed, ran = None, []
    for block in blocks(page):
        if block.language == "output":
            assert block.adjacent and printed is not None, f"{block.place}: shows the output of no block that was run"
            check_output(block, printed)
            printed = None
            continue
        printed = None
        if block.mark:
            check_mark(block, page)
        elif block.language in RUNNERS:
            printed = RUNNERS[block.language](block, names)
            ran.append(block.place)
        else:
            assert block.language == "text", f"{block.place}: no way to run {block.language!r}; see tests/docs/pages.py"
    return ran


def run_python(block: Block, names: dict[str, Any]) -> str:
    """Run a block of Python; an error names its line of the page."""
    page, line = block.place.rsplit(":", 1)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile("\n" * (int(line) - 1) + block.code, ROOT / page, "exec"), names)
    return out.getvalue()


def run_shell(block: Block, _: dict[str, Any]) -> str:
    """Run the commands of a block."""
    return "".join(run_command(words, block.place) for words in commands(block.code))


def commands(code: str) -> Iterator[list[str]]:
    """The words of each command."""
    for line in code.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def run_command(words: list[str], place: str) -> str:
    """Run one command in this process; returns what it prints on the standard output."""
    if words[0] in ("torchrun", "accelerate"):  # one process
        words = ["irm-fast", *words[words.index("irm_fast") + 1 :]]
    if words[0] == "irm-fast":
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, f"{place}: {shlex.join(words)}: {result.output}{result.exception!r}"
        return str(result.stdout)
    if words[:2] == ["python", "-m"]:
        out = io.StringIO()
        with mock.patch.object(sys, "argv", words[2:]), contextlib.redirect_stdout(out):
            runpy.run_module(words[2], run_name="__main__")
        return out.getvalue()
    assert words[:2] == ["pip", "install"], f"{place}: cannot be run here: {shlex.join(words)}"
    check_installation(words[2:], place)
    return ""


def check_installation(words: list[str], place: str) -> None:
    """What is installed is this package, with extras that it has."""
    known = re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    for word in words:
        match = re.fullmatch(r"(?:irm-fast|\.)(?:\[([\w,-]+)\])?", word)
        assert match, f"{place}: installs {word}"
        assert set((match[1] or "docs").split(",")) <= set(known), f"{place}: no extra of {word}"


def run_json(block: Block, _: dict[str, Any]) -> str:
    """Rows of a log are read, and so are pairs."""
    from irm_fast.data.pairs import read_pairs
    from irm_fast.data.read import read_log

    rows = [json.loads(row) for row in re.split(r"(?<=\})\n(?=\{)", block.code)]
    if "feedback" in rows[0]:  # a log has silent rows too
        silent = {**rows[0], "id": "silent", "feedback": dict.fromkeys(rows[0]["feedback"], 0)}
        rows.append({key: value for key, value in silent.items() if key != "acted_at"})
    path = Path("block.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(read_pairs(path) if "chosen" in rows[0] else read_log(path)) == len(rows), block.place
    return ""


def run_yaml(block: Block, _: dict[str, Any]) -> str:
    """A file of settings gets the name that its first line says."""
    name = re.match(r"# (\S+\.yaml)\n", block.code)
    assert name, f"{block.place}: the first line says the name, as '# run.yaml'"
    Path(name[1]).write_text(block.code)
    return ""


RUNNERS: dict[str, Callable[[Block, dict[str, Any]], str]] = {
    "python": run_python,
    "sh": run_shell,
    "json": run_json,
    "yaml": run_yaml,
}


def check_mark(block: Block, page: Path) -> None:
    """A block that is not run here is run elsewhere, or at least of the right form."""
    kind, _, rest = block.mark.partition(" by " if block.mark.startswith("run by ") else ": ")
    if kind == "run":
        assert page.name in (ROOT / rest).read_text(encoding="utf-8"), f"{block.place}: {rest} does not name the page"
        return
    assert kind == "not run" and rest, f"{block.place}: the mark {block.mark!r} says no reason"
    if block.language == "python":
        compile(block.code, block.place, "exec")
    if block.language == "sh":
        for words in commands(block.code):
            if "irm-fast" in words[0] or "irm_fast" in words:
                place = 1 if words[0] == "irm-fast" else words.index("irm_fast") + 1
                check_options(words[place:], block.place)


def check_options(words: list[str], place: str) -> None:
    """The command and its options exist."""
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    command = group.commands.get(words[0])
    assert command is not None, f"{place}: no command {words[0]}"
    command.make_context(words[0], words[1:])


def check_output(block: Block, printed: str) -> None:
    """What was printed is what the page shows."""
    assert matches(block.code, printed), f"{block.place} shows\n{block.code}\nbut printed was\n{printed}"


def matches(shown: str, printed: str) -> bool:
    """Whether a text is one that was shown, up to spaces, line breaks, and what "..." leaves out.

    A number may be one unit of its last digit off, as it was rounded when it was written down.

    Args:
        shown: What the page shows.
        printed: What was printed.
    """
    pieces = [piece.split() for piece in re.split(r"(?<!\S)\.\.\.(?!\S)|\.\.\.$", shown, flags=re.MULTILINE)]
    words, first = printed.split(), True
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        at = [0] if first else range(len(words) - len(piece) + 1)
        if last and not first:
            at = [len(words) - len(piece)]
        places = [i for i in at if i >= 0 and all(map(same, piece, words[i : i + len(piece)]))]
        places = [i for i in places if i + len(piece) <= len(words)]
        if not places or (first and last and len(piece) != len(words)):
            return False
        words, first = words[places[0] + len(piece) :], False
    return True


def same(shown: str, printed: str) -> bool:
    """Whether a printed word is the one that was shown, its numbers to the digits that were shown."""
    if NUMBER.sub("#", shown) != NUMBER.sub("#", printed):
        return False
    return all(map(_near, NUMBER.findall(shown), NUMBER.findall(printed)))


def _near(shown: str, printed: str) -> bool:
    digits = re.fullmatch(r"[-+]?[\d,]*(?:\.(\d*))?(?:e([-+]?\d+))?", shown)
    assert digits
    if digits[1] is None:  # a whole number is exact
        return shown == printed
    unit = 10.0 ** (int(digits[2] or 0) - len(digits[1]))
    return abs(float(shown.replace(",", "")) - float(printed.replace(",", ""))) <= 1.0001 * unit
