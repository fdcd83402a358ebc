"""Arms of a log, by the reward of a saved model."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.data.problems import DataError
from irm_fast.data.signals import RewardSpec
from irm_fast.data.writing.manifest import MANIFEST
from irm_fast.evaluation.arms import caution_of, compare_file, parse_outcome
from irm_fast.evaluation.scoring import load, score
from irm_fast.models.record import RECORD
from irm_fast.models.reward_model import ImplicitRewardModel
from tests.docs.pages import ROOT, blocks, commands


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    spec = RewardSpec("constant", ("copy", "share"), (1, 1), (0.0, 0.0))
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of the head: what other tests have drawn must not decide how far rewards differ
        ImplicitRewardModel.from_backbone(tiny_model, spec).save(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    """Sixty rows of thirty users, two versions and one row without."""
    rows = []
    for i in range(60):
        text = "good " * (1 + i % 7)
        row = {"id": f"r{i}", "prompt": f"question {i}", "completion": text, "user_id": f"u{i % 30}"}
        row |= {"version": ["old", "new"][i % 3 == 0]} if i else {}
        rows.append(row | {"feedback": {"copy": i % 2, "share": int(i % 5 == 0)}})
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_means_are_those_of_the_rewards(saved, data) -> None:
    found = compare_file(data, saved, "version", outcome={"old": 1.0, "new": 2.0})
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    messages = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"].strip()}]
        for row in rows
    ]
    rewards = score(load(saved), messages)
    for arm in found.arms:
        of_arm = [reward for row, reward in zip(rows, rewards, strict=True) if row.get("version") == arm.name]
        assert (arm.rows, arm.reward) == (len(of_arm), pytest.approx(sum(of_arm) / len(of_arm), abs=2e-2))
    best = max(found.arms, key=lambda arm: arm.reward)
    assert found.without == 1 and found.reference == "old" and found.agreement == (1 if best.name == "new" else -1)
    assert [driver.mark for driver in found.drivers] == ["length (log)"]  # nothing else varies


def test_arms_have_a_field_of_their_own(saved, data) -> None:
    by_version = compare_file(data, saved, "version").arms
    data.write_text(data.read_text().replace('"version"', '"arm"'))
    assert compare_file(data, saved, "arm").arms == by_version


def test_feedback_need_not_be_there(saved, data) -> None:
    """A comparison is asked for before anybody has acted: nothing recorded, all silent, or other signals."""
    with_feedback = compare_file(data, saved, "version")
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for feedback in (None, {"copy": 0, "share": 0}, {"copy": 1}, {"stars": 1}, {"copy": None, "share": None}):
        lines = [row | {"feedback": feedback} for row in rows]
        data.write_text("".join(json.dumps({k: v for k, v in row.items() if v is not None}) + "\n" for row in lines))
        assert compare_file(data, saved, "version") == with_feedback
    data.write_text(data.read_text().replace('"completion": "good', '"reply": "good', 1))
    with pytest.raises(DataError, match=r"log\.jsonl:1: completion: missing"):
        compare_file(data, saved, "version")
    data.write_text("")
    with pytest.raises(DataError, match="empty; expected at least one row"):
        compare_file(data, saved, "version")


def test_one_known_user_leaves_the_other_rows_to_their_prompts(saved, data) -> None:
    rows = [json.loads(line) | {"prompt": f"question {place % 10}"} for place, line in enumerate(data.open())]
    for row in rows:
        del row["user_id"]

    def compared(rows):
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return compare_file(data, saved, "version")

    none, one = compared(rows), compared([rows[0] | {"user_id": "u"}, *rows[1:]])
    assert [arm.groups for arm in none.arms] == [arm.groups for arm in one.arms] == [10, 10]  # row 0 has no version
    assert (none.userless, one.userless) == (0, 59) and none.prompts == one.prompts == 10
    widths = [sum(arm.difference_high - arm.difference_low for arm in found.arms) for found in (none, one)]
    assert widths[0] == pytest.approx(widths[1], rel=0.2) and widths[0] > 0
    assert any("59 rows have no user" in said for said in one.cautions)


def test_weights_of_the_log_count(saved, data) -> None:
    """All weight on one row of each arm: the means are theirs."""
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    one_of = {row.get("version"): row["id"] for row in rows}
    for row in rows:
        row["weight"] = 1e6 if row["id"] in one_of.values() else 1e-6
    plain = {arm.name: arm.reward for arm in compare_file(data, saved, "version").arms}
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {arm.name: arm.reward for arm in compare_file(data, saved, "version").arms}
    for row in rows:
        if row["id"] == one_of[row.get("version")] and row.get("version"):
            [alone] = score(
                load(saved),
                [[{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]],
            )
            assert found[row["version"]] == pytest.approx(alone, abs=1e-3)
    assert all(abs(found[name] - plain[name]) > 1e-3 for name in found)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({}, "The model has no verdict on its reward"),
        ({"diagnosis": {"kind": "identified", "verdict": "identified", "learned": "learned"}}, ""),
        (
            {"diagnosis": {"kind": "identified", "verdict": "identified; not tested", "learned": "not tested"}},
            "not tested",
        ),
        ({"diagnosis": {"kind": "conditional", "verdict": "identified if", "learned": "learned"}}, "P(pleases) is no"),
        ({"diagnosis": {"kind": "not identified", "verdict": "not identified"}}, "may come out ahead"),
        ({"diagnosis": {"kind": "contradicted", "verdict": "contradicted by this log: nesting"}}, "nesting"),
    ],
)
def test_the_verdict_is_a_caution(record, said) -> None:
    found = caution_of(record)
    assert said in found and bool(said) == bool(found)


def test_the_command_says_the_verdict(saved, data, tmp_path) -> None:
    folder = shutil.copytree(saved, tmp_path / "judged")
    record = json.loads((folder / RECORD).read_text())
    record["diagnosis"] = {"kind": "not identified", "verdict": "not identified without more", "learned": "learned"}
    (folder / RECORD).write_text(json.dumps(record))
    (folder / MANIFEST).unlink()
    shown = CliRunner().invoke(app, ["compare", "--model", str(folder), "--data", str(data), "--by", "version"])
    assert "the model's reward is not identified without more." in " ".join(shown.stdout.split())


def test_the_command(saved, data, monkeypatch) -> None:
    """That of docs/how/arms.md, with and without what it says of the arms."""
    monkeypatch.chdir(data.parent)
    (data.parent / "reward_model").symlink_to(saved)
    [block] = blocks(ROOT / "docs" / "how" / "arms.md")
    [(program, *words)] = commands(block.code)
    assert program == "irm-fast" and words.pop() == "--randomised"
    command = [data.name if word == "new_log.jsonl" else word for word in words]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert (
        "reward less old" in shown.output and "note: Whether arms were assigned at random is not said" in shown.output
    )
    found = json.loads(CliRunner().invoke(app, [*command, "--json", "--randomised"]).stdout)
    assert {arm["name"] for arm in found["arms"]} == {"old", "new"} and found["randomised"]


def test_what_is_refused(saved, data) -> None:
    def said(*arguments):
        result = CliRunner().invoke(app, ["compare", "--model", str(saved), "--data", str(data), *arguments])
        assert result.exit_code == 2
        return result.output

    assert "the log has no segment 'versoin'; did you mean 'version'?; it has version" in said("--by", "versoin")
    assert "outcome: got 'old'; expected an arm and its number" in said("--by", "version", "--outcome", "old")
    assert "outcome: got 'old' twice" in said("--by", "version", "--outcome", "old=1,new=2,old=3")
    assert "got 'new'; expected an arm" in said("--by", "version", "--outcome", "old=1,new")
    assert "expected values of version: new, old" in said("--by", "version", "--outcome", "a,b=1,new=2")
    assert parse_outcome("a,b=0.1,new=2") == {"a,b": 0.1, "new": 2.0}
    assert parse_outcome("a=b=1, c=-2e-3") == {"a=b": 1.0, "c": -0.002}
