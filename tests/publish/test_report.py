"""The page of a run: all of it is there, it asks for nothing, and what users wrote is text in it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.data.problems import REDACT
from irm_fast.data.signals import RewardSpec
from irm_fast.models.heldout import HeldOut
from irm_fast.models.record import read_record
from irm_fast.publish import evidence, report
from irm_fast.publish.charts import Chart, Series
from irm_fast.publish.evidence import evidence_of
from irm_fast.publish.names import EVIDENCE, PAGE
from irm_fast.publish.png import write_pngs
from irm_fast.publish.report import write_report
from irm_fast.training import reporting
from irm_fast.training.run import train_log
from tests.publish.conftest import HOSTILE

HEADINGS = (
    "Rewards of rows that acted, and of rows that did not",
    "Did it learn?",
    "How likely pleased users act",
    "What a policy would exploit",
    "The best and the worst answers",
    "The log",
    "All checks",
    "Settings and versions",
)


class Elements(HTMLParser):
    """Tags, attributes and texts of a page; a tag that is not closed by its own is kept in `crossed`."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.crossed: list[str] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            self.crossed.append(tag)

    def handle_data(self, data):
        self.words += data


def page_in(folder: Path) -> str:
    return (folder / PAGE).read_text(encoding="utf-8")


def test_train_leaves_a_page_with_every_part(finished):
    page = Elements(page_in(finished))
    assert not page.crossed and not page.open
    for heading in HEADINGS:
        assert heading in page.words, heading
    record = json.loads((finished / "irm_fast.json").read_text())
    assert f"The reward is {record['diagnosis']['verdict']}." in page.words
    assert page.tags.count("svg") >= 8  # loss; rewards, reliability and propensities of two signals; exploits
    assert {"script", "img", "link", "iframe"}.isdisjoint(page.tags)


def test_the_page_asks_for_no_other_file(finished):
    page = page_in(finished)
    names = dict.fromkeys(name for name, _ in Elements(page).attributes)
    assert {"src", "srcset", "style", "onload"}.isdisjoint(names)
    assert all(value.startswith("#") for name, value in Elements(page).attributes if name == "href")
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in page


def test_what_users_wrote_is_text(finished):
    page = page_in(finished)
    assert "&lt;script&gt;alert(1)" in page  # it is shown
    assert "<script" not in page and "<img" not in page
    assert "{{ 7 * 7 }}" in Elements(page).words
    assert HOSTILE[:20] not in (finished / EVIDENCE).read_text()


def test_neither_texts_nor_ids_in_a_redacted_page(shown_log, make_config, monkeypatch):
    monkeypatch.setenv(REDACT, "1")
    config = make_config(epochs=1)
    train_log(shown_log, config)
    kept = page_in(Path(config.output)) + (Path(config.output) / EVIDENCE).read_text()
    assert "--redact keeps them out" in kept
    for private in ("alert", "question 1", *shown_log.ids, *shown_log.user_ids):
        assert not re.search(rf"\b{re.escape(private)}\b", kept), private


def test_a_report_that_fails_fails_no_training(make_log, make_config, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no room\nfor a page")

    monkeypatch.setattr(reporting, "evidence_of", fail)
    config = make_config(epochs=1)
    with pytest.warns(UserWarning, match=r"report: not written, though the model is: no room; irm-fast report "):
        train_log(make_log(), config)
    assert (Path(config.output) / "irm_fast.json").is_file() and not (Path(config.output) / PAGE).exists()


def test_without_a_held_out_part_the_page_says_so(make_log, make_config):
    config = make_config(epochs=1, validation_fraction=0)
    train_log(make_log(), config)
    words = Elements(page_in(Path(config.output))).words
    assert "nothing was held out" in words
    assert "not tested" in words and "Train with a held-out part" in words
    assert "What a policy would exploit" not in words


def test_a_folder_of_an_earlier_version_gets_a_page_too(finished, tmp_path):
    earlier = shutil.copytree(finished, tmp_path / "earlier")
    (earlier / EVIDENCE).unlink()
    (earlier / PAGE).unlink()
    write_report(earlier)
    words = Elements(page_in(earlier)).words
    assert f"no {EVIDENCE}" in words and "Did it learn?" in words and "Rewards of rows" not in words
    (earlier / EVIDENCE).write_text("{")
    with pytest.raises(ValueError, match=rf"{EVIDENCE}: is no JSON .*train again"):
        write_report(earlier)


def test_texts_come_from_the_log_of_the_settings(finished, shown_log, tmp_path):
    """The command knows answers by their hashes, and says what it does not find."""
    folder = shutil.copytree(finished, tmp_path / "moved")
    record = json.loads((folder / "irm_fast.json").read_text())
    path = tmp_path / "log.jsonl"
    record["training"]["data"] = str(path)
    (folder / "irm_fast.json").write_text(json.dumps(record))

    def written(log) -> str:
        rows = zip(log.ids, log.messages, log.feedback.tolist(), strict=True)
        fields = [{"id": i, "messages": m, "feedback": dict(zip(log.signals, f, strict=True))} for i, m, f in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in fields))
        write_report(folder)
        return Elements(page_in(folder)).words

    assert "cannot be read" in Elements(report.page_of(folder, {})).words
    whole = written(shown_log)
    assert "question" in whole and "Text not shown" not in whole and "does not hold" not in whole
    changed = [[turns[0], {**turns[1], "content": f"{turns[1]['content']}!"}] for turns in shown_log.messages]
    assert "it has changed since the training" in written(replace(shown_log, messages=changed))


def test_the_command(finished, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["report", str(finished), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert out.is_file()
    pictures = sorted(path.name for path in (tmp_path / "page-charts").iterdir())
    assert {"learning", "exploits", "reward-copy", "reliability-share"} <= {name[3:-4] for name in pictures}
    for path in (tmp_path / "page-charts").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    assert CliRunner().invoke(app, ["report", str(finished), "--out", str(out)]).exit_code == 0  # its own page


def test_files_of_other_content_are_one_line(finished, tmp_path):
    other = shutil.copytree(finished, tmp_path / "other")
    kept = json.loads((other / EVIDENCE).read_text())
    for wrong in ({"heldout": {}}, {"heldout": [1]}, {"heldout": {**kept["heldout"], "reward": None}}, {"data": 3}):
        (other / EVIDENCE).write_text(json.dumps({**kept, **wrong}))
        with pytest.raises(ValueError, match=r"is not as irm-fast train writes it .*irm-fast verify "):
            write_report(other)


def test_names_of_signals_lead_to_no_other_folder(tmp_path):
    pytest.importorskip("matplotlib")
    series = [Series("bars", (0, 1), (1,)), Series("points", (0.5,), (1,), "a", low=(0,), high=(1,))]
    charts = [Chart(f"reward-{name}", "t", "x", "y", series) for name in ("../../up", "a b", "\u8d5e")]
    assert write_pngs(charts, tmp_path / "in" / "charts") == 3
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert names == [f"in/charts/{name}.png" for name in ("01-reward-_up", "02-reward-a_b", "03-reward-\u8d5e")]


def test_pictures_of_an_earlier_longer_report_go_and_those_of_others_stay(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    charts = [Chart(name, "t", "x", "y", [Series("line", (0, 1), (1, 2))]) for name in ("a", "b", "c")]
    write_pngs(charts, tmp_path)
    Figure().savefig(tmp_path / "04-mine.png")
    (tmp_path / "03-link.png").symlink_to(tmp_path / "03-c.png")
    write_pngs(charts[1:], tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir() if not path.is_symlink())
    assert names == ["01-b.png", "02-c.png", "04-mine.png"]
    assert (tmp_path / "03-link.png").is_symlink()


def test_a_file_of_others_is_not_replaced(finished, tmp_path):
    mine = tmp_path / "thesis.html"
    mine.write_text("mine")
    with pytest.raises(ValueError, match=r"thesis\.html exists and is no report of irm-fast"):
        write_report(finished, mine)
    with pytest.raises(ValueError, match="is a folder; expected a file"):
        write_report(finished, tmp_path)
    assert mine.read_text() == "mine"
    with pytest.raises(ValueError, match=r"irm_fast\.json"):
        write_report(tmp_path)


def test_rows_of_weight_0_and_of_many_some(shown_log, monkeypatch):
    """Rows that do not count are not shown, not even as the best; of many the extremes are still found."""
    count = len(shown_log)
    reward = np.random.default_rng(0).permutation(np.arange(count, dtype=float))
    weight = np.where(reward < count - 10, 1, 0).astype(np.float32)
    log, spec = replace(shown_log, weight=weight), RewardSpec("constant", shown_log.signals, (1, 1), (0.0, 0.0))
    predicted = HeldOut(np.zeros(count), weight, reward, np.zeros((count, 2)))
    whole = evidence_of(log, spec, predicted)["heldout"]
    assert whole["rows"] == sum(whole["reward"]["all"]) == count - 10
    assert [entry["reward"] for entry in whole["answers"]["best"]] == [count - 11.0 - i for i in range(5)]
    assert [entry["reward"] for entry in whole["answers"]["worst"]] == [0.0, 1.0, 2.0, 3.0, 4.0]
    monkeypatch.setattr(evidence, "MANY", 40)
    some = evidence_of(log, spec, predicted)["heldout"]
    assert sum(some["reward"]["all"]) == 40 and some["answers"] == whole["answers"]


def test_groups_of_the_report_have_the_weights_of_the_rows(shown_log):
    log = replace(shown_log.subset(np.arange(2)), feedback=np.array([[1, -1], [0, -1]], np.int8))
    log = replace(log, weight=np.array([1.0, 3.0], np.float32))
    predicted = HeldOut(np.zeros(2), log.weight, np.zeros(2), np.zeros((2, 2)))
    spec = RewardSpec("constant", log.signals, (1, 1), (0.0, 0.0))
    found = evidence_of(log, spec, predicted)["heldout"]["groups"]
    assert found == {"copy": pytest.approx([1 / 4, 1 / 4, 1 / 4, 1 / 4])}


def test_facts_of_a_log_stand_in_one_place(finished):
    """In the record; the evidence of an earlier version still serves where the record has counts alone."""
    record, kept = read_record(finished), json.loads((finished / EVIDENCE).read_text())
    assert "data" not in kept
    assert sum(part["users"] for part in record["data"]) == 20
    shown = report._data(record, kept)
    assert shown == record["data"] and shown[0]["characters"][1] > 10 and len(shown[0]["times"]) == 2
    earlier = {**record, "data": [{key: part[key] for key in ("rows", "labels", "signals")} for part in shown]}
    assert report._data(earlier, {"data": [{"users": 7}, {"users": 3}]})[1]["users"] == 3
    assert report._data(record, {"data": [{"users": 7}, {"users": 3}]}) == record["data"]
