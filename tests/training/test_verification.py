"""What is not as it was written is refused: models, checkpoints, embeddings; and `verify` says what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.data.writing import manifest
from irm_fast.data.writing.manifest import MANIFEST, damage, files_of, refuse_damage, write_manifest
from irm_fast.evaluation.scoring import load
from irm_fast.training.run import train_log
from tests.training.test_checkpoints import DAMAGE, flip
from tests.training.training_cases import train_until


def verified(path: Path, code: int) -> str:
    result = CliRunner().invoke(app, ["verify", str(path)])
    assert result.exit_code == code, result.output
    return str(result.output)


@pytest.fixture(scope="module")
def model(make_log, tiny_model, tmp_path_factory):
    from irm_fast.training.config import TrainConfig

    quick = {"epochs": 1, "batch_size": 8, "progress": False, "lora_rank": 2, "lora_keep_adapter": True}
    output = str(tmp_path_factory.mktemp("model") / "model")
    train_log(make_log(), TrainConfig(model=tiny_model, output=output, propensity_design="constant", **quick))
    return Path(output)


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_model_is_refused_with_the_file(model, tmp_path, how) -> None:
    names = files_of(model)
    assert {"model.safetensors", "irm_fast.json", "propensity.safetensors", "adapter/adapter_config.json"} <= set(names)
    listed = manifest.read_manifest(model / MANIFEST)
    for_people = {"metrics.jsonl", "train.yaml", "train_data.json", "report.html", "report.json"}
    assert set(names) - set(listed) == for_people
    for name in listed:
        folder = tmp_path / f"{how}-{name.replace('/', '-')}"
        shutil.copytree(model, folder)
        DAMAGE[how](folder / name)
        assert f": model: DAMAGED: {name} " in verified(folder, 1)
        with pytest.raises(ValueError, match=rf"{folder}"):
            load(folder)


def test_a_whole_model_a_run_and_old_models(model, make_log, make_config, tmp_path) -> None:
    text = verified(model, 0)
    assert f"{model}: model: whole, " in text and " files, " in text
    load(model)

    config = make_config()
    train_until(6, make_log(), config)
    lines = verified(Path(config.output), 0).splitlines()
    assert len(lines) == 2 and "interrupted run: whole, irm-fast train --resume goes on with it" in lines[0]
    assert f"{config.output}/checkpoints/constant/checkpoint-5: checkpoint: whole, " in lines[1]
    newest = Path(config.output) / "checkpoints" / "constant" / "checkpoint-5"
    flip(newest / "optimizer.pt")
    assert "checkpoint: DAMAGED: optimizer.pt holds other bytes than were written" in verified(Path(config.output), 1)
    (newest / MANIFEST).unlink()
    assert f"checkpoint: DAMAGED: {MANIFEST} is missing, which is written last" in verified(newest, 1)

    old = tmp_path / "old"
    shutil.copytree(model, old)
    (old / MANIFEST).unlink()
    assert f"model: whole, no {MANIFEST}: written by an earlier version" in verified(old, 0)
    load(old)
    (tmp_path / "empty").mkdir()
    for path, said in ((tmp_path / "empty", "holds no saved model"), (tmp_path / "nowhere", "not found")):
        result = CliRunner().invoke(app, ["verify", str(path)])
        assert result.exit_code == 2 and said in result.stderr


def test_a_quick_look_compares_sizes_of_all_and_bytes_of_small_files(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(manifest, "QUICK", 10)
    (tmp_path / "large").write_bytes(b"0123456789abc")
    (tmp_path / "small").write_bytes(b"01234")
    write_manifest(tmp_path, ["large", "small"])
    assert damage(tmp_path) == damage(tmp_path, quick=True) == ""
    flip(tmp_path / "large")
    assert damage(tmp_path) and not damage(tmp_path, quick=True)
    refuse_damage(tmp_path, "a test")
    (tmp_path / "large").write_bytes(b"0123456789ab")
    with pytest.raises(ValueError, match=r"large has 12 bytes instead of 13: damaged or edited since a test wrote it"):
        refuse_damage(tmp_path, "a test")


@pytest.mark.parametrize("how", ["half", "empty", "a bit"])
def test_embeddings(tiny_model, make_log, tmp_path, how) -> None:
    from irm_fast.embeddings.embedder import Embedder
    from irm_fast.embeddings.writing import write_embeddings

    log, out = make_log(12), tmp_path / "e.safetensors"
    write_embeddings(log.ids, log.messages, Embedder(tiny_model), out, progress=False)
    assert "embeddings: whole\n" in verified(out, 0)
    DAMAGE[how](out)
    assert "embeddings: DAMAGED" in verified(out, 1)
