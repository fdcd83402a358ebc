"""The run: what each piece is given, and how a run goes on where it ended."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from irm_fast.experiments.downstream import run as running
from irm_fast.experiments.downstream.rewards import (
    OURS,
    REWARDS,
)
from irm_fast.experiments.downstream.settings import SMALL
from tests.experiments.downstream.points import point, worth


@pytest.fixture
def pieces(monkeypatch):
    """Pieces that take no time, and what was done of them."""
    done = []

    def leave(job, settings) -> None:
        done.append((job.kind, job.seed, job.name))
        if job.place.suffix != ".json":
            job.place.mkdir()
        elif job.kind == "policy":
            job.place.write_text(json.dumps([point(step, 0.5 + job.seed / 100) for step in (0, 1)]))
        else:
            job.place.write_text(json.dumps([{"reward": name, "n": 16, **worth(0.6)} for name in REWARDS]))

    monkeypatch.setattr(running, "_PIECES", dict.fromkeys(running._PIECES, leave))
    monkeypatch.setattr(running, "need", lambda *_: None)
    return done


def test_a_run_goes_on_where_it_ended(tmp_path, pieces) -> None:
    output = tmp_path / "out"
    points = running.run_downstream(output, SMALL, seeds=2, processes=1)
    assert len(points) == 2 * len(REWARDS) * 3 and len(pieces) == 2 * (1 + 6 + len(REWARDS) + 1)
    order = [kind for kind, *_ in pieces]
    assert order.index("reward") == 2 and order.index("policy") == 2 + 2 * 6
    (output / "seed-1" / "policies" / f"{OURS}.json").unlink()
    pieces.clear()
    with pytest.raises(ValueError, match="--resume goes on with it, --overwrite replaces it"):
        running.run_downstream(output, SMALL, seeds=2, processes=1)
    with pytest.raises(ValueError, match=r"prompts: got 301; .* was run with 300"):
        running.run_downstream(output, replace(SMALL, prompts=301), seeds=2, processes=1, resume=True)
    assert running.run_downstream(output, SMALL, seeds=2, processes=1, resume=True) == points
    assert pieces == [("policy", 1, OURS)]
    running.run_downstream(output, SMALL, seeds=3, processes=1, resume=True)
    assert {seed for _, seed, _ in pieces[1:]} == {2}
    three = running.run_downstream(output, SMALL, seeds=2, processes=1, resume=True)  # all that the folder holds whole
    assert [one for one in three if one["seed"] < 2] == points and len(three) == len(points) * 3 // 2
    assert "mean over 3 worlds" in running.write_report(three, output)
    (output / "seed-2" / "policies" / f"{OURS}.json").unlink()  # half done
    (output / "seed-of my own").mkdir()
    assert running.run_downstream(output, SMALL, seeds=2, processes=1, resume=True) == points
    left = output / "seed-1" / ".unfinished policy"  # by a run that was killed
    left.mkdir()
    (output / "seed-1" / "policy").rmdir()
    running.run_downstream(output, SMALL, seeds=2, processes=1, resume=True)
    assert pieces[-1] == ("start", 1, "") and not left.exists()
    report = running.write_report(points, output)
    assert (output / "downstream.md").read_text() in report and "wrote" in report
    pieces.clear()
    running.run_downstream(output, SMALL, seeds=2, processes=1, overwrite=True)
    assert len(pieces) == 2 * (1 + 6 + len(REWARDS) + 1) and not (output / "downstream.md").exists()


def test_what_is_refused(tmp_path, pieces) -> None:
    with pytest.raises(ValueError, match="seeds: got 1; expected 2 or more"):
        running.run_downstream(tmp_path / "out", SMALL, seeds=1)
    with pytest.raises(ValueError, match="both are set"):
        running.run_downstream(tmp_path / "out", SMALL, seeds=2, resume=True, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="holds no earlier run"):
        running.run_downstream(tmp_path / "mine", SMALL, seeds=2, overwrite=True)
    assert not pieces
