"""`diagnose` and `label` by two processes: what one of them says and writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from irm_fast.data.signals import RewardSpec
from irm_fast.embeddings.embedder import Embedder
from irm_fast.training.config import EmbeddingTrainConfig
from irm_fast.training.estimation import fit_embedded
from tests.evaluation import command_run
from tests.training import forked
from tests.training.training_cases import write_log


@pytest.fixture(scope="module")
def log(make_log):
    return make_log(120)


@pytest.fixture(scope="module")
def data(log, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "log.jsonl"
    write_log(log, path)
    return path


@pytest.fixture(scope="module")
def saved(log, tiny_model, tmp_path_factory) -> Path:
    """A model on embeddings of the log."""
    folder, embedder = tmp_path_factory.mktemp("saved"), Embedder(tiny_model, pooling="last")
    vectors, _ = embedder.embed(log.messages)
    config = EmbeddingTrainConfig(embeddings="none", output="none")
    spec = RewardSpec("constant", log.signals, log.polarity, (0.0, 0.0))
    fit_embedded(log, vectors.numpy(), spec, embedder.source, config, ()).save(folder)
    return folder


def watch_passes(*arguments: str) -> None:
    """`command_run`, which fails in a process that takes all rows through the model, or none."""
    from irm_fast.models.passes import Passes

    run_packs, rows = Passes._run_packs, []

    def counted(self, all_rows, packs, *others):
        rows.append((sum(map(len, packs)), len(all_rows)))
        return run_packs(self, all_rows, packs, *others)

    Passes._run_packs = counted
    command_run.main(*arguments)
    assert rows and all(0 < mine < total for mine, total in rows)


@pytest.mark.parametrize("command", ["diagnose", "label"])
def test_two_say_what_one_says(command, saved, data, tmp_path) -> None:
    options = ["--model", saved, "--data", data, "--token-budget", "200"]
    drawn = ["--next", "20", "--out", tmp_path / "rows.jsonl", "--overwrite"]
    options += drawn if command == "label" else ["--json"]
    found = []
    for ranks, main in ((1, command_run.main), (2, watch_passes)):
        out = tmp_path / f"said.{ranks}"
        assert forked.run((str(out), command, *map(str, options)), ranks, tmp_path, main) == [0] * ranks
        said, *others = ([Path(f"{out}.{rank}{kind}").read_text() for kind in ("", ".errors")] for rank in range(ranks))
        assert others == [["", ""]] * (ranks - 1)
        found.append([*said, (tmp_path / "rows.jsonl").read_text() if command == "label" else ""])
    assert found[0] == found[1]
    if command == "label":
        chances = [json.loads(line)["label_probability"] for line in found[0][2].splitlines()]
        assert len(chances) == 20 and np.ptp(chances) > 0.01
    else:
        assert "calibration" in found[0][0]
