"""An export is read by others as the saved model is by us, and holds nothing of the machine that trained it."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.data.messages import Messages
from irm_fast.data.writing.manifest import MANIFEST, damage
from irm_fast.embeddings.dense import dense_layers
from irm_fast.embeddings.embedder import plain_text
from irm_fast.embeddings.sentence_files import SentenceFiles, read_sentence_files
from irm_fast.evaluation.scoring import load, score
from irm_fast.models.record import RECORD
from irm_fast.publish.consumers import check_consumers
from irm_fast.publish.export import export_model, push_to_hub
from irm_fast.publish.names import CARD
from tests.docs.pages import ROOT, blocks, commands, run_command


def talk(question: str, answer: str) -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


ROWS = [talk("Hi", "good answer"), talk("Who \N{GRINNING FACE}", "BAD\n\n"), talk("why " * 40, "good")]
FORMS = {
    "linear": {},
    "network": {"hidden_layers": (8, 5)},
    "cls": {"pooling": "cls"},
    "normalised": {"files": SentenceFiles(pooling="mean", normalize=True, prompt="judge: ", lower_case=True)},
}


@pytest.fixture(scope="module", params=FORMS)
def embedded(request, save_embedded) -> Path:
    """The folder of a reward on the embeddings of an encoder, of each form."""
    return save_embedded(**FORMS[request.param])


def by_its_files(folder: Path, texts: list[str]) -> np.ndarray:
    """The score of an export by its files and transformers alone, a text at a time."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, body = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    limits = json.loads((folder / "sentence_bert_config.json").read_text())
    scores = []
    for text in texts:
        text = settings.get("prompts", {}).get(settings.get("default_prompt_name"), "") + text
        text = text.lower() if limits["do_lower_case"] else text
        ids = tokenizer(text, truncation=True, max_length=limits["max_seq_length"], return_tensors="pt")
        with torch.no_grad():
            value = body(**ids).last_hidden_state[0]
        for module in json.loads((folder / "modules.json").read_text())[1:]:
            told = json.loads((folder / module["path"] / "config.json").read_text())
            kind = module["type"].rpartition(".")[2]
            if kind == "Pooling":
                value = value[0] if told["pooling_mode_cls_token"] else value.mean(0)
            elif kind == "Normalize":
                value = value / value.norm()
            else:
                weights = load_file(folder / module["path"] / "model.safetensors")
                value = weights["linear.weight"] @ value + weights["linear.bias"]
                value = value.relu() if told["activation_function"].endswith("ReLU") else value
        scores.append(float(value.squeeze()))
    return np.array(scores)


def test_a_reward_on_an_encoder_is_a_sentence_transformer(embedded, tmp_path):
    found = export_model(embedded, tmp_path / "out", "sentence-transformers")
    ours = score(load(embedded, precision="float32"), ROWS)
    assert np.ptp(ours) > 1e-2
    np.testing.assert_allclose(
        by_its_files(tmp_path / "out", [plain_text(row) for row in ROWS]), ours, rtol=1e-5, atol=1e-5
    )
    assert damage(tmp_path / "out") == "" and found.kind == "a model of sentence-transformers"
    installed = find_spec("sentence_transformers") is not None
    assert ("not installed" in found.compared) != installed
    card = (tmp_path / "out" / CARD).read_text()
    assert 'SentenceTransformer("out")' in card and str(embedded.parent) not in card
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "sentence-transformers"


def test_sentence_transformers_loads_the_export(embedded, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    found = export_model(embedded, tmp_path / "out", "sentence-transformers")
    reader = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    theirs = reader.encode([plain_text(row) for row in ROWS])
    np.testing.assert_allclose(theirs[:, 0], score(load(embedded, precision="float32"), ROWS), rtol=1e-5, atol=1e-5)
    assert "differs by at most" in found.compared


def test_our_own_reader_of_such_files_knows_the_export(save_embedded, tmp_path):
    export_model(save_embedded(**FORMS["normalised"]), tmp_path / "out", "sentence-transformers")
    with pytest.warns(UserWarning, match=r"before its layers Dense"):
        read = read_sentence_files(str(tmp_path / "out"))
    assert read == SentenceFiles("mean", True, "judge: ", True, 48)


@pytest.mark.parametrize("hidden_layers", [(), (6,), (6, 4)])
def test_layers_with_relu_are_the_reward(make_log, hidden_layers):
    from irm_fast.embeddings.estimator import EmbeddingRewardModel

    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 5)) * [1, 10, 0.1, 1, 0] + [0, 3, 1, 0, 2]  # the last is constant
    feedback = make_log(300).feedback
    estimator = EmbeddingRewardModel(hidden_layers=hidden_layers, random_state=0, max_epochs=10).fit(x, feedback)
    value = x
    layers = dense_layers(estimator._fitted)
    assert len(layers) == len(hidden_layers) + 1
    for number, (weight, bias) in enumerate(layers, 1):
        value = value @ weight.T + bias
        value = value if number == len(layers) else np.maximum(value, 0)
    np.testing.assert_allclose(value[:, 0], estimator.decision_function(x), atol=1e-5)
    assert estimator.decision_function(x).std() > 1e-3


def test_a_classifier_is_exported_without_what_is_of_the_machine(classifier, tmp_path):
    export_model(classifier, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", CARD, MANIFEST} <= names
    assert not names & {RECORD, "propensity.safetensors"}
    for path in (tmp_path / "out").iterdir():
        assert str(classifier.parent).encode() not in path.read_bytes(), path.name
    one, other = (load_file(folder / "model.safetensors") for folder in (classifier, tmp_path / "out"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert damage(tmp_path / "out") == ""


def test_an_adapter_is_merged_into_its_base(make_log, make_config, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    from irm_fast.training.run import train_log

    config = make_config(epochs=1, lora_rank=4, lora_keep_adapter=True)
    train_log(make_log(40), config)
    folder = Path(config.output)
    with pytest.raises(ValueError, match=r"an adapter, which needs its base; expected --merge"):
        export_model(folder / "adapter", tmp_path / "merged")
    with pytest.raises(ValueError, match=r"is no adapter.*leave --merge out"):
        export_model(folder, tmp_path / "merged", merge=True)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "reward_model")
    [block] = [block for block in blocks(ROOT / "docs/how/consumers.md") if block.mark.endswith("test_export.py")]
    [words] = commands(block.code)
    assert "the adapter merged into" in run_command(words, block.place)
    one, other = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "merged"))
    base = load_file(Path(config.model) / "model.safetensors")
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(other[key], one[key], rtol=1e-5, atol=1e-7)
    changed = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(base[changed], other[changed])
    assert (tmp_path / "merged" / "chat_template.jinja").read_text() == (folder / "chat_template.jinja").read_text()
    assert "lora" in (tmp_path / "merged" / CARD).read_text()


def test_what_cannot_be_exported_is_said_before_anything_is_written(with_bos, save_embedded, tiny_model, tmp_path):
    with pytest.raises(ValueError, match=r"CrossEncoder reads as it is; expected --to hf"):
        export_model(with_bos, tmp_path / "out", "sentence-transformers")
    with pytest.raises(ValueError, match=r"no sequence classifier can hold; expected --to sentence-transformers"):
        export_model(save_embedded(), tmp_path / "out")
    with pytest.raises(ValueError, match=r"on a decoder, which reads its chat template"):
        export_model(save_embedded(tiny_model, pooling="mean"), tmp_path / "out", "sentence-transformers")
    with pytest.raises(ValueError, match=r"irm_fast.json"):
        export_model(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"out: .*is not empty.*expected a new or empty folder"):
        export_model(with_bos, tmp_path / "full")
    damaged = shutil.copytree(with_bos, tmp_path / "damaged")
    (damaged / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config.json.*damaged or edited"):
        export_model(Path(damaged), tmp_path / "out")


def test_without_a_hub_the_error_is_one_line_and_the_export_stays(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"push-to-hub: me/rm was not uploaded, the export is whole in") as error:
        push_to_hub(tmp_path, "me/rm")
    assert "\n" not in str(error.value) and (tmp_path / "config.json").is_file()
    assert f"`hf upload me/rm {tmp_path} . --private`" in str(error.value)


@pytest.mark.parametrize(
    ("repository", "said"),
    [
        ("me", "got 'me'; expected OWNER/NAME"),
        ("me/../rm", "expected OWNER/NAME"),
        ("a/b/c", "expected OWNER/NAME"),
        ("me/rm", "nothing is written; log in by `hf auth login`"),
    ],
)
def test_what_cannot_be_uploaded_is_said_before_anything_is_written(with_bos, tmp_path, repository, said):
    """An id that is none, and a hub that is not reached."""
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["export", str(with_bos), "--out", str(out), "--push-to-hub", repository])
    assert result.exit_code == 2 and said in result.output and not out.exists()


class Hub:
    """Stands for the hub: it takes uploads, or refuses them."""

    refuses = True
    taken: ClassVar[list] = []

    def whoami(self):
        return {"name": "me"}

    def create_repo(self, *given, **more): ...

    def upload_folder(self, *, repo_id, folder_path, **more):
        if Hub.refuses:
            raise ConnectionError("the line broke")
        Hub.taken.append((repo_id, Path(folder_path)))


def test_after_a_failed_upload_the_same_command_goes_on(with_bos, save_embedded, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "refuses", True)
    monkeypatch.setattr(Hub, "taken", [])
    out = tmp_path / "out"
    command = ["export", str(with_bos), "--out", str(out), "--push-to-hub", "me/rm"]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 2 and "the line broke" in first.output and "the same command goes on" in first.output
    assert '"me/rm"' in (out / CARD).read_text()
    written = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    monkeypatch.setattr(Hub, "refuses", False)
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0 and "whole as it was written before" in again.stdout, again.output
    assert Hub.taken == [("me/rm", out)]
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == written
    for other in (
        [*command[:-1], "me/other"],
        ["export", str(save_embedded()), *command[2:]],
        ["export", str(with_bos), "--out", str(out)],
    ):
        refused = CliRunner().invoke(app, other)
        assert refused.exit_code == 2 and "holds another export, or one that is damaged" in refused.output, other
    (out / "config.json").write_text("{}")
    assert "one that is damaged" in CliRunner().invoke(app, command).output


def test_an_export_of_an_earlier_model_is_cut_as_it_was_trained(with_bos, tmp_path):
    """Its card says so, and a check of the export reads long rows as the run did."""
    folder = shutil.copytree(with_bos, tmp_path / "earlier")
    (folder / MANIFEST).unlink()
    record = json.loads((folder / RECORD).read_text())
    del record["keeps_bos"]
    (folder / RECORD).write_text(json.dumps(record))
    export_model(folder, tmp_path / "out")
    assert "our own cut keeps" not in " ".join((tmp_path / "out" / CARD).read_text().split())
    [of_run, *_], [of_export, *_] = (check_consumers(path) for path in (folder, tmp_path / "out"))
    assert of_export.within < 1e-5 and of_export.beyond < 1e-5 and of_run.beyond < 1e-5
