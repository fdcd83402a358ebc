"""Every block of code of the README and of the pages in docs/ does what it says, on tiny data and without a network."""

from __future__ import annotations

import re
import shutil
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Block, blocks, check_output, commands, matches, run_page

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = [page for page in PAGES if blocks(page)]
NOT_RUN = 3  # blocks that nothing runs; think before you raise it


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages name: a log, rated answers, answers to score, pairs, and a decoder."""
    from irm_fast.experiments.small_log import make_small_log

    folder = make_small_log(tmp_path_factory.mktemp("files"), prompts=75, hidden_size=32)
    (folder / "decoder").rename(folder / "MODEL")
    (folder / "log.test.jsonl").rename(folder / "rated.jsonl")
    shutil.copy(folder / "rated.jsonl", folder / "answers.jsonl")
    make_tables(folder)
    return folder


def make_tables(folder: Path) -> None:
    """Tables of what was shown and of what users did, as docs/how/importing.md has them."""
    import pyarrow as pa
    from pyarrow import parquet

    (folder / "shown").mkdir()
    (folder / "actions").mkdir()
    start = datetime(2026, 2, 1, tzinfo=timezone.utc)
    names = [f"r{i}" for i in range(20)]
    texts = {"prompt": [f"question {i}" for i in range(20)], "completion": [f"answer {i}" for i in range(20)]}
    shown = {"response_id": names, **texts, "timestamp": [start + timedelta(days=i) for i in range(20)]}
    acted = {"response_id": names[:6], "action": ["copy", "share"] * 3, "time": shown["timestamp"][:6]}
    parquet.write_table(pa.table(shown), folder / "shown" / "part.parquet")
    parquet.write_table(pa.table(acted), folder / "actions" / "part.parquet")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page(page: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name != "README.md":  # which makes its files itself
        shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    run_page(page)


def test_few_blocks_are_run_by_nothing() -> None:
    marks = [block.mark for page in PAGES for block in blocks(page) if block.mark]
    assert len([mark for mark in marks if mark.startswith("not run: ")]) <= NOT_RUN
    assert all(mark.startswith(("not run: ", "run by ")) for mark in marks)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_a_page_is_fenced_and_found(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"^\s*```", text, re.MULTILINE)) == 2 * len(blocks(page))
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert not re.findall(r"^\n {4,}(?![-*|\s]|\d+\.)\S.*(?:irm-fast|python|pip|=)", prose, re.MULTILINE)


def test_output_is_compared_by_words_and_by_the_digits_that_are_shown() -> None:
    assert matches("loss 0.83 of 2 rows\nend\n", "loss  0.8349 of 2 rows end")
    assert not matches("loss 0.83\n", "loss 0.85")
    assert not matches("loss 0.83\n", "loss 0.83 more")
    assert not matches("2 rows", "3 rows")
    assert matches("begin\n...\nend", "begin a b c end")
    assert not matches("begin\n...\nend", "begin a b c")
    assert not matches("...\nauroc 0.87\n...", "nothing of the kind")
    assert matches("[0.4, 0.40] 1.5e-3", "[0.39, 0.4049] 1.52e-3")
    assert not matches("1.5e-3", "1.5e-2")


def test_a_wrong_output_and_a_wrong_command_are_found() -> None:
    with pytest.raises(AssertionError, match="printed was"):
        check_output(Block("page.md:1", "output", "1.00\n", "", True), "2.00\n")
    assert list(commands("irm-fast train \\\n  --data 'a b' # why\n\npip install .\n")) == [
        ["irm-fast", "train", "--data", "a b"],
        ["pip", "install", "."],
    ]
