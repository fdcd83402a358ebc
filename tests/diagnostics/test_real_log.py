"""A real log that breaks everything: several actions of paid workers on answers that they had to compare.

IFLLM names the file (JSONL in our layout: copied, long_gaze, continued; user, session, time); without it this is
skipped.
"""

import gzip
import json
import os
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest

from examples.identification.ifllm import measured, read_ifllm
from irm_fast.data.features import text_features
from irm_fast.diagnostics import diagnose
from irm_fast.evaluation.log_diagnosis import diagnose_file
from tests.diagnostics.made import failed

FOLDER = Path(os.environ.get("IFLLM", "ifllm"))
SOURCE = FOLDER / "log.jsonl.gz" if FOLDER.is_dir() else FOLDER
pytestmark = pytest.mark.skipif(not SOURCE.is_file(), reason="IFLLM names no file")
SIGNALS = ("copied", "long_gaze", "continued")


def seconds(text):
    """Return seconds since 1970, NaN for a year that is none."""
    return float("nan") if text < "1970" else datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()


def test_what_is_wrong_with_it_is_named():
    with gzip.open(SOURCE, "rt") as file:
        rows = [json.loads(line) for line in file]
    values = [[row["feedback"][name] for name in SIGNALS] for row in rows]
    found = diagnose(
        np.array([[-1 if value is None else value for value in row] for row in values]),
        signals=SIGNALS,
        propensity_design="hidden",
        users=[row["user_id"] for row in rows],
        sessions=[row["session_id"] for row in rows],
        times=np.array([seconds(row["timestamp"]) for row in rows]),
    )
    assert found.kind == found.ranking == found.scale == "contradicted"
    assert {"one choice a session", "broken button", "place in session"} <= failed(found)
    choice = next(test for test in found.tests if test.name == "one choice a session")
    assert choice.text.startswith("copied acts in two rows of a session 0.28 times as often")  # one copy was the task
    assert "continued in the last row of a session" in " ".join(found.remedies)


def test_the_command_does_not_claim_it():
    with pytest.warns(UserWarning, match="timestamp: 1 rows name a day before 1970"):
        found = diagnose_file(SOURCE)
    assert found.kind in ("contradicted", "not identified")
    assert failed(found)


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the truth lies beside the log in a folder")
def test_kept_figures_of_what_is_no_model_are_those_of_the_log(tmp_path):
    log, truth = read_ifllm(FOLDER, tmp_path / "log.jsonl")
    kept = json.loads((Path(__file__).parents[2] / "examples" / "identification" / "results.json").read_text())["ifllm"]
    for name, logit in (("length alone", text_features(log.messages)[:, 0]), ("user alone", None)):
        found = measured(logit, log, truth)
        assert found.keys() == kept[name][0].keys()
        assert all(found[key] == pytest.approx(kept[name][0][key], abs=1e-4) for key in found), name
