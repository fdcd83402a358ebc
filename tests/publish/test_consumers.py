"""Who reads a saved model reads our reward: transformers, OpenRLHF, sentence-transformers, TRL."""

import json
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.data.writing.manifest import MANIFEST
from irm_fast.embeddings.text_model import EmbeddedRewardModel
from irm_fast.evaluation.scoring import load, score
from irm_fast.models.tokens import encode
from irm_fast.publish.consumers import BY_SOURCE, CONSUMERS, check_consumers
from irm_fast.publish.export import export_model
from irm_fast.publish.samples import made_conversations, sorted_out
from tests.docs.pages import ROOT, blocks, commands, run_command
from tests.models.saved_bases import save_base


@pytest.fixture(scope="module")
def readings(classifier):
    return {one.consumer: one for one in check_consumers(classifier)}


def test_all_programs_read_the_reward_of_rows_within_the_limit(readings, classifier):
    bos = load(classifier).tokenizer.bos_token
    for name in ("transformers, messages", "transformers, text", "transformers pipeline", "OpenRLHF"):
        reading = readings[name]
        assert reading.same and reading.within < 1e-5, reading
        assert (reading.beyond < 1e-5) == (bos is None), reading  # truncation by others loses the BOS
    assert (readings["verl's text"].within < 1e-5) == (bos is None)


@pytest.mark.parametrize(("name", "module"), [("CrossEncoder", "sentence_transformers"), ("TRL, GRPO", "trl")])
def test_programs_that_are_installed_read_it_and_others_are_said_not_to_be(readings, name, module):
    reading = readings[name]
    if find_spec(module) is None:
        assert reading.how == "not installed" and reading.within is None and reading.same is None
    else:
        assert reading.same and reading.within < 1e-5, reading


def test_a_linear_reward_on_the_last_token_is_read_as_well(save_embedded, tmp_path):
    """The saved tokenizer adds no BOS, and the folder is known as that of its embeddings all the same."""
    folder = save_embedded(save_base("BOS twice", tmp_path / "base"))
    saved = load(folder)
    assert isinstance(saved, EmbeddedRewardModel) and saved.is_checkpoint
    found = {one.consumer: one for one in check_consumers(folder)}
    assert found["transformers, text"].within < 1e-5 and found["OpenRLHF"].within < 1e-5
    export_model(folder, tmp_path / "out")
    assert "AutoModelForSequenceClassification" in (tmp_path / "out" / "README.md").read_text()


def test_samples_lie_on_both_sides_of_the_limit(classifier):
    tokenizer, limit = load(classifier).tokenizer, 48
    samples = sorted_out(made_conversations(limit), lambda row: len(encode(tokenizer, [row], 10**6)[0][0]), limit)
    assert 2 < samples.longer.sum() < len(samples.conversations) - 2
    assert samples.worst(samples.longer.astype(float)) == (0.0, 1.0)


def test_a_checkpoint_that_others_read_otherwise_is_found(classifier, tmp_path):
    """With a second BOS, and the last layer behind a sigmoid, as such checkpoints were."""
    folder = shutil.copytree(classifier, tmp_path / "saved")
    (folder / MANIFEST).unlink()
    config = json.loads((folder / "config.json").read_text())
    config["problem_type"] = None
    (folder / "config.json").write_text(json.dumps(config))
    found = {one.consumer: one for one in check_consumers(folder)}
    assert found["transformers pipeline"].same is False and found["transformers, text"].same
    result = CliRunner().invoke(app, ["export", str(folder), "--check", "--json"])
    assert result.exit_code == 1 and json.loads(result.stdout)["wrong"] == ["transformers pipeline"]


def test_a_second_bos_is_found(classifier, tmp_path):
    folder = shutil.copytree(classifier, tmp_path / "saved")
    if load(folder).tokenizer.bos_token is None:
        return
    (folder / MANIFEST).unlink()
    shutil.copy(classifier.parent / "base" / "tokenizer.json", folder / "tokenizer.json")
    found = {one.consumer: one for one in check_consumers(folder)}
    assert found["transformers, text"].same is False and found["transformers, messages"].same


def test_the_command_prints_a_table(classifier):
    result = CliRunner().invoke(app, ["export", "--check", str(classifier)])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    for consumer in (*CONSUMERS, *BY_SOURCE):
        name = consumer.name if hasattr(consumer, "name") else consumer.consumer
        assert any(line.startswith(name) for line in lines), name
    assert "by source" in result.stdout and "by its rules" in result.stdout


def test_rows_of_a_file_are_compared(classifier, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": f"Hi {i}", "completion": "good " * (1 + 5 * i)}) + "\n" for i in range(12))
    )
    readings = {one.consumer: one for one in check_consumers(classifier, str(data))}
    assert readings["transformers, text"].within < 1e-5 and readings["transformers, text"].beyond is not None
    data.write_text(json.dumps({"prompt": "Hi", "completion": "good"}) + "\n")
    result = CliRunner().invoke(app, ["export", str(classifier), "--check", "--data", str(data), "--json"])
    found = json.loads(result.stdout)["readings"][0]
    assert result.exit_code == 0 and found["within"] < 1e-5 and found["beyond"] is None
    result = CliRunner().invoke(app, ["export", str(classifier), "--data", str(data), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2 and "data: got it without --check" in result.output


def test_what_no_program_loads_is_refused(save_embedded, tmp_path):
    with pytest.raises(ValueError, match=r"a reward on embeddings, which no other program loads"):
        check_consumers(save_embedded())
    result = CliRunner().invoke(app, ["export", str(tmp_path), "--check", "--out", str(tmp_path / "out")])
    assert result.exit_code == 2 and "check: writes nothing" in result.output
    result = CliRunner().invoke(app, ["export", str(tmp_path)])
    assert result.exit_code == 2 and "expected --out DIR to write, or --check" in result.output


def test_the_command_exports(classifier, tmp_path):
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["export", str(classifier), "--out", str(out)])
    assert result.exit_code == 0 and f"wrote {out}: a sequence classifier" in result.stdout
    result = CliRunner().invoke(
        app, ["export", str(classifier), "--out", str(tmp_path / "again"), "--push-to-hub", "me/rm"]
    )
    assert result.exit_code == 2 and "push-to-hub: me/rm was not uploaded" in result.output
    assert '"me/rm"' in (tmp_path / "again" / "README.md").read_text()


def test_the_commands_of_the_page(classifier, save_embedded, tmp_path, monkeypatch):
    page = ROOT / "docs" / "how" / "consumers.md"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(classifier, "reward_model")
    shutil.copytree(save_embedded(), "on_encoder")
    [block] = [block for block in blocks(page) if block.mark.endswith("test_consumers.py")]
    printed = [run_command(words, block.place) for words in commands(block.code)]
    assert "transformers, messages" in printed[0] and "wrote rm: a sequence classifier" in printed[1]
    assert "wrote sentence_rm: a model of sentence-transformers" in printed[2]
    assert "whole" in run_command(["irm-fast", "verify", "rm"], block.place)
    assert "whole" in run_command(["irm-fast", "verify", "sentence_rm"], block.place)


def test_trl_trains_by_the_reward(classifier, tmp_path):
    """Two real steps of GRPO, whose rewards are ours for what the policy has written."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, seen = classifier.parent / "base", []
    prompts = Dataset.from_dict({"prompt": [[{"role": "user", "content": f"Hi {i}"}] for i in range(4)]})
    settings = trl.GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        report_to=[],
        use_cpu=True,
        logging_steps=1,
        bf16=False,
    )

    def keep(completions, prompts, **_):
        seen.extend([*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True))
        return [0.0] * len(completions)

    trainer = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(base),
        processing_class=AutoTokenizer.from_pretrained(base),
        reward_funcs=[str(classifier), keep],
        args=settings,
        train_dataset=prompts,
    )
    calculated = []
    inner = trainer._calculate_rewards
    trainer._calculate_rewards = lambda *args: calculated.append(inner(*args)) or calculated[-1]
    trainer.train()
    theirs = torch.cat(calculated)[:, 0].float().numpy()
    assert len(theirs) == len(seen) == 8
    np.testing.assert_allclose(theirs, score(load(classifier), seen), rtol=1e-5, atol=1e-5)
    assert np.ptp(theirs) > 1e-3
