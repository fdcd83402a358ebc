"""The runs of `reproduce`: they go on where they ended, and do not mix what differs."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.embeddings.optimize import REWARD_SDS
from irm_fast.experiments.reproduce import contest, experiment, redraws
from irm_fast.experiments.reproduce import folder as folder_of_runs
from irm_fast.experiments.reproduce.contest import entrants
from irm_fast.experiments.reproduce.population import semi_synthetic
from tests.experiments.reproduce.small_runs import EXPERIMENT, go, without_time, write_rated


def test_a_run_goes_on_where_it_was_cut_off(tmp_path, few, small):
    whole = go(tmp_path / "one")
    assert [(r["redraw"], r["method"], r["signals"]) for r in whole] == [(i, *key) for i in (0, 1) for key in few]
    file = tmp_path / "one" / "redraws" / "feature-1.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:3], lines[3][:40]]))  # in the middle of a line
    again = go(tmp_path / "one", resume=True)
    assert [without_time(r) for r in again] == [without_time(r) for r in whole]
    assert [json.loads(line)["seconds"] for line in lines[:3]] == [r["seconds"] for r in again[7:10]]  # not run anew


def test_an_error_in_a_child_ends_the_run(tmp_path, small, monkeypatch, forked_children):
    monkeypatch.setattr(redraws, "_in_child", math.sqrt)  # which takes no job
    with pytest.raises(TypeError, match="takes exactly one argument"):
        go(tmp_path / "one", processes=2)


def test_a_run_can_be_extended_and_replaced(tmp_path, few, small):
    whole = go(tmp_path / "one")
    assert len(go(tmp_path / "one", redraws=3, resume=True)) == 3 * len(few)
    assert [without_time(r) for r in go(tmp_path / "one", overwrite=True)] == [without_time(r) for r in whole]


def test_a_run_does_not_write_through_a_link(tmp_path, few, small):
    go(tmp_path / "one")
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "one" / "table.md").symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"holds 'table\.md', not written by an earlier run"):
        go(tmp_path / "one", overwrite=True)
    assert (tmp_path / "one" / "redraws").is_dir() and (tmp_path / "mine").read_text() == "mine"


def test_what_must_not_be_mixed(tmp_path, few, small, monkeypatch):
    folder = tmp_path / "one"
    go(folder)
    with pytest.raises(ValueError, match="not empty: it holds an earlier run; --resume goes on"):
        go(folder)
    with pytest.raises(ValueError, match="both are set"):
        go(folder, resume=True, overwrite=True)
    with pytest.raises(ValueError, match=r"target: got 0\.3; .* was run with 0\.5"):
        redraws.run_redraws(replace(EXPERIMENT, target=0.3), folder, resume=True)
    monkeypatch.setattr(experiment, "semi_synthetic", lambda rows, noise: semi_synthetic(rows, 9, noise))
    with pytest.raises(ValueError, match="was run on other ratings or embeddings"):
        go(folder, resume=True)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no earlier run"):
        go(tmp_path / "two", overwrite=True)
    (tmp_path / "two" / "settings.json").write_text('{"editor.tabSize": 4}')
    with pytest.raises(ValueError, match="is not empty and holds no earlier run"):
        go(tmp_path / "two", overwrite=True)
    (folder / "thesis.tex").write_text("mine")
    monkeypatch.setattr(experiment, "semi_synthetic", lambda rows, noise: semi_synthetic(rows, 8, noise))
    go(folder, overwrite=True)
    assert (folder / "thesis.tex").exists() and (tmp_path / "two" / "thesis.tex").exists()
    monkeypatch.setattr(folder_of_runs, "__version__", "9.9")
    with pytest.raises(ValueError, match=r"version: got '9\.9'; .*; install irm-fast "):
        go(folder, resume=True)
    with pytest.raises(ValueError, match="redraws: got 1"):
        go(tmp_path / "three", redraws=1)
    with pytest.raises(ValueError, match="protocol: got 'ratings'; expected 'rating' or 'feature'"):
        go(tmp_path / "three", protocols=("ratings",))


def test_fewer_redraws_report_all_that_the_folder_holds_whole(tmp_path, few, small):
    whole = go(tmp_path / "one", redraws=3)
    assert go(tmp_path / "one", resume=True) == whole
    file = tmp_path / "one" / "redraws" / "feature-2.jsonl"
    file.write_text(file.read_text().splitlines()[0] + "\n")  # half done
    assert go(tmp_path / "one", resume=True) == [result for result in whole if result["redraw"] < 2]


def test_processes_give_what_one_process_does(tmp_path, small, monkeypatch, forked_children):
    """Real ones, which know nothing of what is patched here: each has one fit left to do."""
    whole = entrants(2)
    monkeypatch.setattr(contest, "entrants", lambda signals: [("naive", 1)])
    [one, *_] = go(tmp_path / "one")
    for seed in (0, 1):
        done = [one | {"redraw": seed, "method": name, "signals": signals} for name, signals in whole[1:]]
        file = tmp_path / "one" / "redraws" / f"feature-{seed}.jsonl"
        file.write_text("".join(json.dumps(result) + "\n" for result in done))
    monkeypatch.undo()
    monkeypatch.setattr(experiment, "semi_synthetic", lambda rows, noise: semi_synthetic(rows, 8, noise))
    found = go(tmp_path / "one", resume=True, processes=2)
    assert {(r["redraw"], r["method"], r["signals"]) for r in found} == {
        (seed, *key) for seed in (0, 1) for key in whole
    }
    fitted = [r for r in found if (r["method"], r["signals"]) == ("naive", 1)]
    assert len(fitted[0]["scores"]) == 2 * len(REWARD_SDS) + 1 and fitted[0]["raw"] != fitted[1]["raw"]


def test_the_command(tmp_path, few, tiny_model):
    data, output = tmp_path / "rated.jsonl", tmp_path / "out"
    write_rated(data)
    command = ["reproduce", "--data", str(data), "--model", tiny_model, "--output", str(output)]
    command += ["--redraws", "2", "--processes", "1", "--target", "0.6"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "## rated.jsonl, protocol rating, 2 redraws" in result.output and "protocol feature" in result.output
    assert "published" not in result.output
    assert {"table.md", "results.csv", "comparison.png", "embeddings.safetensors"} <= {p.name for p in output.iterdir()}
    assert len((output / "results.csv").read_text().splitlines()) == 1 + 2 * 2 * len(few)
    again = CliRunner().invoke(app, [*command, "--resume"])
    assert again.exit_code == 0 and (output / "table.md").read_text() in again.output


def test_what_the_command_refuses(tmp_path):
    def said(*arguments):
        result = CliRunner().invoke(app, ["reproduce", "--output", str(tmp_path / "out"), *arguments])
        assert result.exit_code == 2
        return result.output

    assert "model: none given" in said("--data", "hs")
    offline = said("--data", "hs", "--model", "nowhere")
    assert "nvidia/HelpSteer), which cannot be reached" in offline and "give a file instead" in offline
    assert "no.jsonl is no file; expected one, or semi-synthetic" in said("--data", str(tmp_path / "no.jsonl"))
    assert "did you mean 'semi-synthetic'" in said("--data", "semi-synthetc")
    assert "'both', 'rating', 'feature'" in said("--data", experiment.MADE, "--protocol", "all")
    assert "max_length: got 512, which has no effect" in said("--data", experiment.MADE, "--max-length", "512")
    assert "target: got 2.0; expected a number from" in said("--data", experiment.MADE, "--target", "2")
    write_rated(tmp_path / "few.jsonl", 30)
    assert "holds 30 responses; expected 100 or more" in said(
        "--data", str(tmp_path / "few.jsonl"), "--model", "nowhere"
    )
    assert not (tmp_path / "out").exists()
