"""Who reads a saved model reads our reward: transformers, OpenRLHF, sentence-transformers, TRL."""

import json
import shutil
import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.data.writing.manifest import MANIFEST
from irm_fast.embeddings.sentence_files import SentenceFiles
from irm_fast.embeddings.text_model import EmbeddedRewardModel
from irm_fast.evaluation.scoring import load, score
from irm_fast.models.tokens import encode
from irm_fast.publish.classifier_readers import CLASSIFIER_READERS
from irm_fast.publish.consumers import check_consumers
from irm_fast.publish.engine_rules import classifier_engines
from irm_fast.publish.export import export_model
from irm_fast.publish.readings import ROUNDING, Consumer, Reading, read_by
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


def test_a_checkpoint_that_others_read_otherwise_is_found(with_bos, tmp_path):
    """With a second BOS, and the last layer behind a sigmoid, as such checkpoints were."""
    folder = shutil.copytree(with_bos, tmp_path / "saved")
    (folder / MANIFEST).unlink()
    config = json.loads((folder / "config.json").read_text())
    config["problem_type"] = None
    (folder / "config.json").write_text(json.dumps(config))
    result = CliRunner().invoke(app, ["export", str(folder), "--check", "--json"])
    found = json.loads(result.stdout)
    assert result.exit_code == 1 and found["wrong"] == ["transformers pipeline"]
    same = {one["consumer"]: one["same"] for one in found["readings"]}
    assert same["transformers pipeline"] is False and same["transformers, text"]


def test_a_second_bos_is_found(with_bos, tmp_path):
    folder = shutil.copytree(with_bos, tmp_path / "saved")
    (folder / MANIFEST).unlink()
    shutil.copy(with_bos.parent / "base" / "tokenizer.json", folder / "tokenizer.json")
    found = {one.consumer: one for one in check_consumers(folder)}
    assert found["transformers, text"].same is False and found["transformers, messages"].same


def test_the_command_prints_a_table(with_bos):
    result = CliRunner().invoke(app, ["export", "--check", str(with_bos)])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    for name in (*(one.name for one in CLASSIFIER_READERS), *(one.consumer for one in classifier_engines(with_bos))):
        assert any(line.startswith(name) for line in lines), name
    assert "by source" in result.stdout and "by its rules" in result.stdout


def test_rows_of_a_file_are_compared(with_bos, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": f"Hi {i}", "completion": "good " * (1 + 5 * i)}) + "\n" for i in range(12))
    )
    readings = {one.consumer: one for one in check_consumers(with_bos, str(data))}
    assert readings["transformers, text"].within < 1e-5 and readings["transformers, text"].beyond is not None
    data.write_text(json.dumps({"prompt": "Hi", "completion": "good"}) + "\n")
    result = CliRunner().invoke(app, ["export", str(with_bos), "--check", "--data", str(data), "--json"])
    found = json.loads(result.stdout)["readings"][0]
    assert result.exit_code == 0 and found["within"] < 1e-5 and found["beyond"] is None
    result = CliRunner().invoke(app, ["export", str(with_bos), "--data", str(data), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2 and "data: got it without --check" in result.output


FORMS = {
    "linear": {},
    "network": {"hidden_layers": (8, 5)},
    "first token": {"pooling": "cls"},
    "normalised": {"files": SentenceFiles(pooling="mean", normalize=True, prompt="judge: ", lower_case=True)},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_reward_on_an_encoder_has_a_table_of_its_own(save_embedded, form, tmp_path):
    """Both of the folder of the run, and of the export, of which our number is what its files stand for."""
    folder = save_embedded(**FORMS[form])
    export_model(folder, tmp_path / "out", "sentence-transformers")
    for checked in (folder, tmp_path / "out"):
        found = {one.consumer: one for one in check_consumers(checked)}
        theirs = found["sentence-transformers"]
        if find_spec("sentence_transformers") is None:
            assert theirs.how == "not installed" and theirs.same is None
        else:
            assert theirs.same and theirs.within < 1e-4 and theirs.beyond is not None, theirs
        assert not [one for one in found.values() if one.wrong or one.failed]
        tei = found["text-embeddings-inference, /embed"].note
        assert ("not served" in tei) == (form == "network")
        assert ("put 'judge: ' before" in found["vLLM, /v1/embeddings"].note) == (form == "normalised")
    assert found.keys() == {
        *("sentence-transformers", "text-embeddings-inference, /embed", "vLLM, /v1/embeddings"),
        "programs that load a classifier",
    }


def test_an_export_that_gives_another_reward_is_found(save_embedded, tmp_path):
    pytest.importorskip("sentence_transformers")
    folder = save_embedded()
    export_model(folder, tmp_path / "out", "sentence-transformers")
    told = tmp_path / "out" / "1_Pooling" / "config.json"
    read = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    from irm_fast.publish.consumers import compare_export

    assert all(one.same for one in compare_export(EmbeddedRewardModel.load(folder), tmp_path / "out"))
    told.write_text(json.dumps(json.loads(told.read_text()) | read))
    assert all(one.wrong for one in compare_export(EmbeddedRewardModel.load(folder), tmp_path / "out"))


def test_an_export_that_gives_another_reward_is_not_finished(save_embedded, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "irm_fast.publish.export.compare_export", lambda model, out: [Reading("one", "1", 0.5, same=False)]
    )
    with pytest.raises(ValueError, match=r"gives another reward than .*differs by at most 5.0e-01; do not use it"):
        export_model(save_embedded(), tmp_path / "out", "sentence-transformers")
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_a_reward_that_nobody_else_reads_is_said_to_be_such(save_embedded, tiny_model):
    found = check_consumers(save_embedded(tiny_model, pooling="mean"))
    assert [one.how for one in found] == ["does not load it", "do not load it"]
    assert "on a decoder, which reads its chat template" in found[0].note


def test_an_exported_classifier_is_checked_as_well(readings, classifier, tmp_path):
    """Of rows within the limit the readings are those of the run; of longer ones, where no BOS token is lost."""
    export_model(classifier, tmp_path / "out")
    result = CliRunner().invoke(app, ["export", "--check", str(tmp_path / "out"), "--json"])
    found = json.loads(result.stdout)
    assert result.exit_code == 0 and found["wrong"] == []
    of_export = {one["consumer"]: one for one in found["readings"]}
    assert readings.keys() == of_export.keys()
    for name, one in readings.items():
        other = of_export[name]
        assert (other["same"], other["note"], other["within"] is None) == (one.same, one.note, one.within is None)


def test_a_program_that_crashes_reads_no_other_reward(with_bos, monkeypatch):
    """It could not run, which is said with its reason, and decides nothing."""

    def crashes(loaded, rows):
        raise RuntimeError("no kernel image\nis available")

    broken = Consumer("broken", "transformers", crashes)
    monkeypatch.setattr("irm_fast.publish.consumers.CLASSIFIER_READERS", (broken, CLASSIFIER_READERS[0]))
    result = CliRunner().invoke(app, ["export", "--check", str(with_bos)])
    assert result.exit_code == 0, result.output
    assert "could not run: RuntimeError: no kernel image" in " ".join(result.stdout.split())
    assert "another reward" not in result.stdout and "so not compared: broken" in result.stdout
    found = json.loads(CliRunner().invoke(app, ["export", "--check", str(with_bos), "--json"]).stdout)
    assert (found["wrong"], found["failed"], found["readings"][0]["same"]) == ([], ["broken"], None)
    redacted = CliRunner().invoke(app, ["export", "--check", str(with_bos), "--redact"])
    assert "could not run: RuntimeError" in redacted.stdout and "kernel image" not in redacted.stdout


def test_a_difference_beyond_rounding_is_another_reward():
    samples = sorted_out(made_conversations(10**6)[:3], lambda row: 1, 2)
    ours = np.array([1.0, -20.0, 3.0])
    for share, same in ((0.5, True), (2.0, False)):
        moved = ours + np.array([0, 0, share * ROUNDING * 20])
        reading = read_by(Consumer("one", "", lambda loaded, rows, moved=moved: moved), None, samples, ours)
        assert reading.same is same and reading.wrong is not same
    assert ROUNDING == 1e-5


def test_the_row_of_trl_says_what_of_it_runs(with_bos, monkeypatch):
    """Its template is TRL's own; how it scores is its rule, in our code."""

    def apply_chat_template(example, tokenizer):
        return {"text": tokenizer.apply_chat_template(example["messages"], tokenize=False)}

    monkeypatch.setitem(sys.modules, "trl", ModuleType("trl"))
    monkeypatch.setitem(sys.modules, "trl.data_utils", SimpleNamespace(apply_chat_template=apply_chat_template))
    monkeypatch.setattr("irm_fast.publish.readings.version", lambda name: "9.9")
    [trl] = [one for one in CLASSIFIER_READERS if one.name.startswith("TRL")]
    monkeypatch.setattr("irm_fast.publish.consumers.CLASSIFIER_READERS", (trl,))
    reading = check_consumers(with_bos)[0]
    assert reading.how == "chat template of 9.9, the rest by its rules" and reading.same


def rewritten(classifier, folder, **changes):
    """A copy of the settings of a classifier, with changes; None takes an entry away."""
    folder.mkdir()
    config = json.loads((classifier / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    shutil.copy(classifier / "tokenizer_config.json", folder)
    return {one.consumer: one.note for one in classifier_engines(folder)}


@pytest.mark.parametrize(
    ("changes", "consumer", "said"),
    [
        ({}, "vLLM, /classify", "identity, as problem_type is regression; rows of more than 48 tokens are refused"),
        ({}, "vLLM, /score", "identity, by sentence_transformers.activation_fn"),
        ({"max_position_embeddings": 40}, "vLLM, /score", "more than 40 tokens"),
        ({"problem_type": None}, "vLLM, /classify", "a sigmoid, as problem_type is not set: another number"),
        ({"id2label": {"0": "a", "1": "b"}, "problem_type": None}, "vLLM, /classify", "a softmax"),
        ({"id2label": {"0": "a", "1": "b"}}, "SGLang", "2 numbers where a reward is one"),
        ({"sentence_transformers": None}, "vLLM, /score", "a sigmoid, as sentence_transformers.activation_fn is not"),
        (
            {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}},
            "vLLM, /score",
            "Sigmoid",
        ),
        ({"sentence_transformers": {"activation_fn": "my.Act"}}, "vLLM, /score", "not served"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "SGLang", "score.weight at the last token"),
        ({"architectures": ["FalconForSequenceClassification"]}, "SGLang", "not served: no class Falcon"),
        ({"architectures": ["LlamaForCausalLM"]}, "vLLM", "not served: config.json names LlamaForCausalLM"),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, "text-embeddings-inference", "not served"),
    ],
)
def test_rules_of_engines_read_the_folder(classifier, tmp_path, changes, consumer, said):
    assert said in rewritten(classifier, tmp_path / "changed", **changes)[consumer]


def test_what_cannot_be_checked_is_refused_with_a_remedy(with_bos, tmp_path):
    with pytest.raises(ValueError, match=r"no model to check; expected a folder that irm-fast train or irm-fast exp"):
        check_consumers(tmp_path)
    rewritten(with_bos, tmp_path / "causal", architectures=["LlamaForCausalLM"])
    with pytest.raises(
        ValueError, match=r"names LlamaForCausalLM of 1 outputs; expected a \*ForSequenceClassification"
    ):
        check_consumers(tmp_path / "causal")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"an adapter, .*irm-fast export DIR --merge --out OUT"):
        check_consumers(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--out", "there"], "--out"),
        (["--to", "hf"], "--to"),
        (["--to", "sentence-transformers", "--merge"], "--to and --merge"),
        (["--push-to-hub", "me/rm"], "--push-to-hub"),
    ],
)
def test_what_has_no_effect_with_check_is_refused_by_name(tmp_path, given, named):
    result = CliRunner().invoke(app, ["export", str(tmp_path), "--check", *given])
    assert result.exit_code == 2 and f"check: writes nothing; got {named} too" in result.output
    result = CliRunner().invoke(app, ["export", str(tmp_path)])
    assert result.exit_code == 2 and "expected --out DIR to write, or --check" in result.output


def test_the_command_exports(with_bos, tmp_path):
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["export", str(with_bos), "--out", str(out)])
    assert result.exit_code == 0 and f"wrote {out}: a sequence classifier" in result.stdout


def test_the_commands_of_the_page(with_bos, save_embedded, tmp_path, monkeypatch):
    page = ROOT / "docs" / "how" / "consumers.md"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(with_bos, "reward_model")
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
