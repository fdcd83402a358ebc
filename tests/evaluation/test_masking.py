"""A broken button, as a user meets it: the report names it, a command sets it to null, and the reward is repaired."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.data.declarations import Declarations
from irm_fast.data.read import read_log
from irm_fast.embeddings.estimator import EmbeddingRewardModel
from irm_fast.evaluation.masking import Masked, mask_log

ROWS = 4000


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.output + result.stderr


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(("signals", "gain"), [(1, 0.08), (2, 0.005)])
def test_the_advice_can_be_followed_and_repairs_the_reward(tmp_path: Path, signals: int, gain: float) -> None:
    """Feature 3 tells the platforms apart, on one of which nobody can share."""
    random = np.random.default_rng(0)
    x = random.normal(size=(ROWS, 16))
    liked, android = random.random(ROWS) < expit(2 * x[:, 0]), random.random(ROWS) < expit(3 * x[:, 3])
    feedback = (liked[:, None] & (random.random((ROWS, 2)) < 0.4)).astype(int)
    feedback[android, 1] = 0
    names = ["copy", "share"][2 - signals :]
    rows = [
        {
            "id": str(i),
            "prompt": "p",
            "completion": str(i),
            "feedback": dict(zip(names, acts, strict=True)),
            "platform": p,
        }
        for i, (acts, p) in enumerate(
            zip(feedback[:, 2 - signals :].tolist(), np.where(android, "android", "ios").tolist(), strict=True)
        )
    ]
    data, out = write(tmp_path / "log.jsonl", rows), tmp_path / "masked.jsonl"
    report = " ".join(run("diagnose", "--data", data, code=1).split())
    assert "share acts 0 times" in report and "where platform=android" in report
    (advice,) = re.findall(r'irm-fast mask "([^"]+)" does it to a log', report)
    assert advice == "share where platform=android"
    shown = run("mask", advice, "--data", data, "--out", out)
    assert f"{android.sum()} entries of 0 and 0 of 1 are null" in shown
    assert (f"{android.sum()} rows record nothing any more and were left out" in shown) is (signals == 1)
    assert "broken button failed" not in " ".join(run("diagnose", "--data", out).split())  # nor is it contradicted

    def auroc_of(path: Path) -> float:
        log = read_log(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one signal identifies nothing without labels
            fit = EmbeddingRewardModel((), propensity_design="constant", random_state=0)
            fit.fit(x[np.array(log.ids, int)], log.feedback)
        return roc_auc_score(liked, fit.predict_proba(x)[:, 1])

    broken, repaired = auroc_of(data), auroc_of(out)
    assert repaired > broken + gain and repaired > 0.84


COPIED = [0, 1, 1, 0, 0, 1]
LOG = [
    {
        "id": str(i),
        "prompt": "p",
        "completion": str(i),
        "feedback": {"copy": COPIED[i], "share": 1 - COPIED[i]},
        "timestamp": f"2025-04-2{i}T0{i}:30:00Z",
        "session_id": f"s{i // 2}",
        "acted_at": {"copy": "2025-05-01"} if COPIED[i] else {"share": "2025-05-01"},
        "features": {"theme": "dark" if i < 3 else "light", "n": i},
        "preference": None,
    }
    for i in range(6)
]


@pytest.mark.parametrize(
    ("phrase", "rows"),
    [
        ("copy where theme=dark", [0, 1, 2]),
        ("copy on 2025-04-23", [3]),
        ("copy from 4:00 to 5:00 UTC", [4]),
        ("copy in the last row of a session", [1, 3, 5]),
        ("copy before the last row of a session", [0, 2, 4]),
        ("copy before 2025-04-22 02:30:00 UTC", [0, 1]),
        ("copy after 2025-04-22 02:30:00 UTC", [3, 4, 5]),
    ],
)
def test_every_part_that_a_report_names(tmp_path: Path, phrase: str, rows: list[int]) -> None:
    data, out = write(tmp_path / "log.jsonl", LOG), tmp_path / "masked.jsonl"
    acted = sum(COPIED[i] for i in rows)
    assert mask_log(data, out, [phrase]) == Masked(6, {phrase: len(rows) - acted}, {phrase: acted}, 0)
    before, after = read_log(data), read_log(out)
    assert np.flatnonzero(after.feedback[:, 0] < 0).tolist() == rows
    others = np.setdiff1d(np.arange(6), rows)
    assert (after.feedback[others] == before.feedback[others]).all() and (
        after.feedback[:, 1] == before.feedback[:, 1]
    ).all()
    assert np.isnan(after.acted_at[rows, 0]).all()  # which the reader refuses of what did not act
    np.testing.assert_array_equal(after.acted_at[others], before.acted_at[others])
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    for row, line in zip(LOG, lines, strict=True):
        assert {k: v for k, v in row.items() if k not in ("feedback", "acted_at")}.items() <= line.items()


def test_rows_that_record_nothing_any_more_are_left_out_unless_labelled(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    labelled = [row | {"preference": 1 if row["id"] == "1" else None} for row in LOG]
    parquet.write_table(pyarrow.Table.from_pylist(labelled), tmp_path / "log.parquet")
    phrases = ["copy, share where theme=dark", "share on 2025-04-24"]
    out = tmp_path / "masked.parquet"
    found = mask_log(tmp_path / "log.parquet", out, phrases)
    assert (found.silent, found.acted) == (
        dict(zip(phrases, [3, 0], strict=True)),
        dict(zip(phrases, [3, 1], strict=True)),
    )
    assert found.left_out == 2
    log = read_log(out, absent="missing")
    assert log.ids == ["1", "3", "4", "5"]
    assert log.feedback.tolist() == [[-1, -1], [0, 1], [0, -1], [1, 0]]
    old, new = (
        parquet.read_table(tmp_path / name).drop(["feedback", "acted_at"]) for name in ("log.parquet", out.name)
    )
    assert new.equals(old.take([1, 3, 4, 5]))


def test_a_mask_that_would_be_silence_is_refused(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(LOG), tmp_path / "log.parquet")
    data, out = write(tmp_path / "log.jsonl", LOG), tmp_path / "masked.jsonl"
    silent = Declarations(absent="silent")
    with pytest.raises(ValueError, match="null of copy is silence here"):
        mask_log(tmp_path / "log.parquet", tmp_path / "masked.parquet", ["share where theme=dark"], declared=silent)
    with pytest.raises(ValueError, match="null of copy is silence here"):
        mask_log(data, out, ["share where theme=dark"], declared=Declarations(null="silent"))
    assert mask_log(data, out, ["share where theme=dark"], declared=silent).rows == len(LOG)


def test_what_is_refused_leaves_no_file(tmp_path: Path) -> None:
    data, out = write(tmp_path / "log.jsonl", LOG), tmp_path / "masked.jsonl"
    for phrase in ("share where theme=drak", "share on 2020-01-01", "share", "where theme=dark"):
        shown = run("mask", phrase, "--data", data, "--out", out, code=2)
        assert f"got {phrase!r}; expected signals and a part of this log" in shown, shown
    assert "no signal 'shrae'" in run("mask", "shrae where theme=dark", "--data", data, "--out", out, code=2)
    assert "is the input" in run("mask", "share on 2025-04-23", "--data", data, "--out", data, "--overwrite", code=2)
    assert {path.name for path in tmp_path.iterdir()} == {"log.jsonl"}
    run("mask", "share on 2025-04-23", "--data", data, "--out", out)
    assert "--overwrite replaces it" in run("mask", "share on 2025-04-23", "--data", data, "--out", out, code=2)
