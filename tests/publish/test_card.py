"""The card of a saved model says what its reward rests on, and its lines for programs give the reward."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from irm_fast.data.signals import RewardSpec
from irm_fast.data.writing.manifest import damage
from irm_fast.evaluation.scoring import load, score
from irm_fast.models.record import read_record
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.models.template import bos_of
from irm_fast.models.tokens import encode
from irm_fast.publish.base import base_facts, base_of, license_in
from irm_fast.publish.card import card_of, model_card
from irm_fast.publish.meaning import meaning_of
from irm_fast.publish.names import CARD
from irm_fast.training.run import train_log
from tests.models.saved_bases import KINDS, save_base

SPEC = RewardSpec("constant", ("copy", "thumbs_down"), (1, -1), max_length=48)
LONG = [{"role": "user", "content": "why " * 40}, {"role": "assistant", "content": "good"}]
ALL = ("transformers", "transformers pipeline", "CrossEncoder", "TRL", "OpenRLHF", "vLLM", "SGLang", "verl")


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tmp_path_factory):
    """A saved model of each kind, and its card, whose snippets load it."""
    folder = tmp_path_factory.mktemp("card")
    model = ImplicitRewardModel.from_backbone(save_base(request.param, folder / "base"), SPEC).eval()
    model.save(folder / "saved", {"training": {"model": str(folder / "base")}}, card_of(model, str(folder / "saved")))
    return model, folder / "saved", (folder / "saved" / CARD).read_text()


def code_of(card, reader):
    [found] = re.findall(rf"### {re.escape(reader)}\n.*?```python\n(.*?)```", card, re.DOTALL)
    return found


def with_long_messages(code):
    changed = re.sub(r"messages = .*", f"messages = {LONG!r}", code)
    assert changed != code
    return changed


@pytest.mark.parametrize("reader", ["transformers", "transformers pipeline"])
def test_lines_for_transformers_give_the_reward(saved, reader):
    _, folder, card = saved
    found: dict = {}
    exec(code_of(card, reader), found)
    [expected] = score(load(folder), [found["messages"]])
    assert abs(expected) > 1e-3
    assert found["reward"] == pytest.approx(expected, abs=1e-5)


def test_lines_for_transformers_cut_as_we_do(saved):
    _, folder, card = saved
    found: dict = {}
    exec(with_long_messages(code_of(card, "transformers")), found)
    assert found["reward"] == pytest.approx(score(load(folder), [LONG])[0], abs=1e-5)


@pytest.mark.parametrize("reader", ["vLLM", "SGLang"])
@pytest.mark.parametrize("long", [False, True])
def test_lines_for_engines_send_the_tokens_of_training(saved, monkeypatch, reader, long):
    model, _, card = saved
    sent = []
    answers = SimpleNamespace(json=lambda: {"data": [{"probs": [0.5], "embedding": [0.5]}]})
    stub = SimpleNamespace(post=lambda url, json: sent.append(json) or answers)
    monkeypatch.setitem(sys.modules, "requests", stub)
    found: dict = {}
    code = code_of(card, reader)
    exec(with_long_messages(code) if long else code, found)
    (expected,), cut = encode(model.tokenizer, [found["messages"]], SPEC.max_length)
    assert sent[0]["input"] == expected and found["reward"] == 0.5
    assert cut == long


def test_a_card_names_all_readers_and_no_folder(saved):
    model, folder, _ = saved
    record = read_record(folder) | {"training": {"model": str(folder / "base"), "data": str(folder / "log.jsonl")}}
    record["training"]["trainer"] = {"logging_dir": str(folder / "events")}
    card = model_card(record, "rm", "classifier")
    assert all(f"### {reader}" in card or f"### sentence-transformers {reader}" in card for reader in ALL)
    assert str(folder.parent) not in card and "log.jsonl" in card and "logging_dir: events" in card
    assert "copy (pleased), thumbs_down (displeased)" in card and "of at most 48 tokens" in card
    head = yaml.safe_load(card.split("---")[1])
    assert ModelCard(card).data.to_dict() == head  # as the hub reads it
    assert head["license"] == "unknown" and head["library_name"] == "transformers" and "base_model" not in head
    bos = model.tokenizer.bos_token
    assert (f"`{bos}`" in model_card(record, "rm", "classifier", bos or "")) == (bos is not None)


def test_a_hub_id_is_named_as_the_base():
    record = {**SPEC.__dict__, "reward_bias": -0.5, "training": {"model": "maker/base-1b", "lora_rank": 8}}
    record["base"] = {"kind": "hub", "name": "maker/base-1b"}
    card = model_card(record, "rm", "classifier")
    head = yaml.safe_load(card.split("---")[1])
    assert (head["base_model"], head["base_model_relation"]) == ("maker/base-1b", "finetune")
    assert "lora" in head["tags"] and "sigmoid(reward - 0.5)" in card
    assert "model: maker/base-1b" in card
    assert "not judged" in card and "not tested" in card and "Not kept by the version" in card


def test_a_folder_that_looks_like_a_hub_id_is_none(tmp_path, monkeypatch):
    """It is told where the model is trained; afterwards the folder need not lie there any more."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "llama").mkdir(parents=True)
    (tmp_path / "models" / "llama" / CARD).write_text("---\nlicense: mit\n---\n")
    known = base_facts("models/llama")
    assert known == {"kind": "folder", "name": "llama", "license": "mit"}
    record = {**SPEC.__dict__, "reward_bias": 0.0, "training": {"model": "models/llama"}, "base": known}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    card = model_card(record, "rm", "classifier")
    head = yaml.safe_load(card.split("---")[1])
    assert "base_model" not in head and head["license"] == "mit" and "models/llama" not in card
    assert base_of({"training": {"model": "models/llama"}}) == ("", "llama", {})  # of an earlier version: not known


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({}, ""),
        ({"training": {"model": "maker/base"}}, ""),
        ({"training": {"model": "maker/base"}, "used": {"model": "maker/base"}}, "hub"),
        ({"training": {"model": "models/llama"}, "used": {"model": "/data/models/llama"}}, ""),
        ({"training": {"model": "~/llama"}, "used": {"model": "~/llama"}}, ""),
        ({"training": {"model": "/data/llama"}}, "folder"),
        ({"training": {"model": ""}, "embeddings": {"model": "/data/encoder"}}, "folder"),
        ({"training": {"model": ""}, "embeddings": {"model": "maker/encoder"}}, ""),
    ],
)
def test_of_earlier_records_nothing_is_claimed_that_is_not_known(record, kind):
    found = base_of(record)
    assert found.kind == kind and ("/" in found.name) == (kind == "hub")


def test_the_licence_of_a_hub_base_is_that_of_its_card_in_the_cache(tmp_path, monkeypatch):
    """As the cache of the hub holds it; where it does not, none is known."""
    snapshot = tmp_path / "models--maker--base" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--maker--base" / "refs").mkdir()
    (tmp_path / "models--maker--base" / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert base_facts("maker/base") == {"kind": "hub", "name": "maker/base"}
    (snapshot / CARD).write_text("---\nlicense: apache-2.0\n---\n# Base")
    assert base_facts("maker/base") == {"kind": "hub", "name": "maker/base", "license": "apache-2.0"}
    record = {"training": {"model": "maker/base"}, "used": {"model": "maker/base"}}
    assert base_of(record).license == {"license": "apache-2.0"}


PROBABILITY = "is the estimated probability"


@pytest.mark.parametrize(
    ("diagnosis", "said", "unsaid"),
    [
        (None, "is not judged", PROBABILITY),
        ({"kind": "identified", "learned": "learned"}, f"sigmoid(reward - 0.5) {PROBABILITY}", "independent"),
        ({"kind": "identified", "learned": "not tested"}, "Nobody has tested", "means nothing"),
        ({"kind": "conditional", "learned": "learned"}, "Rely on its order", PROBABILITY),
        ({"kind": "conditional", "sensitivity": {"mean_g_range": [0.2, 0.65]}}, "may be 20% to 65%", PROBABILITY),
        ({"kind": "contradicted", "ranking": "conditional", "scale": "contradicted"}, "Its order alone", PROBABILITY),
        ({"kind": "not identified"}, "other rewards explain", PROBABILITY),
        ({"kind": "contradicted"}, "neither its order nor sigmoid", PROBABILITY),
        ({"kind": "not learned", "scale": "conditional"}, "means nothing", "sigmoid"),
    ],
)
def test_what_the_number_means_goes_no_further_than_the_verdict(diagnosis, said, unsaid):
    found = meaning_of({"reward_bias": -0.5, "diagnosis": diagnosis})
    assert said in found and unsaid not in found


@pytest.mark.parametrize("keeps_bos", [True, False])
def test_lines_for_long_rows_follow_the_training(saved, monkeypatch, keeps_bos):
    """Models of earlier versions lost the BOS token of rows that they cut."""
    model, folder, _ = saved
    record, bos = {**read_record(folder), "keeps_bos": keeps_bos}, bos_of(model.tokenizer)
    card = model_card(record, str(folder), "classifier", bos)
    found: dict = {}
    exec(with_long_messages(code_of(card, "transformers")), found)
    [expected], cut = encode(model.tokenizer, [LONG], SPEC.max_length, keeps_bos=keeps_bos)
    assert cut and found["ids"] == expected
    assert ("our own cut keeps" in " ".join(card.split())) == bool(bos and keeps_bos)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nlicense: apache-2.0\ntags: [x]\n---\n# A", {"license": "apache-2.0"}),
        ("---\nlicense: other\nlicense_name: own\n---\n", {"license": "other", "license_name": "own"}),
        ("# A card without a head\nlicense: mit", {}),
        ("---\nlicense: [a, b]\n---\n", {}),
        ("---\n{: bad\n---\n", {}),
        ("", {}),
    ],
)
def test_the_licence_is_that_of_the_base(tmp_path, text, expected):
    (tmp_path / CARD).write_text(text)
    assert license_in(tmp_path / CARD) == expected
    assert base_facts(str(tmp_path)) == {"kind": "folder", "name": tmp_path.name, **expected}
    assert license_in(tmp_path) == license_in(None) == {}


def test_training_writes_a_card_that_belongs_to_the_model(make_log, make_config):
    log, config = make_log(60), make_config(epochs=1)
    train_log(log, config)
    folder = Path(config.output)
    record = read_record(folder)
    parts = record["data"]
    acted = int((np.asarray(log.feedback)[:, 0] == 1).sum())
    assert sum(part["rows"] for part in parts) == 60 and len(parts) == 2
    assert sum(part["signals"]["copy"]["acted"] for part in parts) == acted
    assert record["base"] == {"kind": "folder", "name": Path(config.model).name}
    card = (folder / CARD).read_text()
    assert f"| copy | 60 | {acted} | {acted / 60:.4f} |" in card
    assert f"**Learned**: {record['learned']}" in card and "**Identification**: " in card
    assert record["diagnosis"]["verdict"] in card and all(one in card for one in record["diagnosis"]["assumed"])
    assert record["versions"]["torch"] in card and "epochs: 1" in card
    assert damage(folder) == ""
    (folder / CARD).write_text(card + "edited")
    assert CARD in damage(folder)
