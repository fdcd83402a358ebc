"""What is saved is read by others as it is: the raw reward, and the tokens of training."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from irm_fast.data.signals import RewardSpec
from irm_fast.data.writing.manifest import MANIFEST
from irm_fast.embeddings.embedder import Embedder, fingerprint
from irm_fast.embeddings.text_model import open_source
from irm_fast.evaluation.scoring import load, score
from irm_fast.models.checkpoint import add_no_tokens
from irm_fast.models.record import RECORD
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.models.tokens import encode, render
from tests.models.saved_bases import KINDS, save_base

SPEC = RewardSpec("constant", ("copy",), (1,), max_length=48)


def talk(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


ROWS = [talk("Hi", "good answer"), talk("é <s> ß", "bad\n\n"), talk("why " * 40, "good")]


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tmp_path_factory):
    """A model of each kind, as made and as saved."""
    folder = tmp_path_factory.mktemp("model")
    model = ImplicitRewardModel.from_backbone(save_base(request.param, folder / "base"), SPEC).eval()
    model.save(folder / "saved")
    return model, folder


def test_text_and_messages_give_the_tokens_of_training(saved):
    from transformers import AutoTokenizer

    model, folder = saved
    base, again = (AutoTokenizer.from_pretrained(folder / name) for name in ("base", "saved"))
    ids, _ = encode(model.tokenizer, ROWS, 10**6)
    for messages, expected in zip(ROWS, ids, strict=True):
        text = render(model.tokenizer, messages)
        assert again(text)["input_ids"] == expected
        assert again.apply_chat_template(messages, tokenize=True, return_dict=False) == expected
        assert base(text, add_special_tokens=False)["input_ids"] == expected
        assert (base(text)["input_ids"] != expected) == (base.bos_token is not None)  # so that the test can fail
    assert again.model_max_length == SPEC.max_length


def test_tokenizer_files_say_so_to_transformers_4(saved):
    _, folder = saved
    told = json.loads((folder / "saved" / "tokenizer_config.json").read_text())
    assert told["add_bos_token"] is False and told["add_eos_token"] is False
    assert told["model_max_length"] == SPEC.max_length


def test_no_sigmoid_is_applied_to_the_reward(saved):
    _, folder = saved
    config = json.loads((folder / "saved" / "config.json").read_text())
    assert config["sentence_transformers"] == {"activation_fn": "torch.nn.modules.linear.Identity"}
    assert config["problem_type"] == "regression"
    assert "sentence_transformers" not in json.loads((folder / "base" / "config.json").read_text())


def test_what_is_cut_keeps_its_bos_and_its_end(saved):
    model, _ = saved
    (whole,), _ = encode(model.tokenizer, ROWS[2:], 10**6)
    (cut,), count = encode(model.tokenizer, ROWS[2:], 48)
    bos = model.tokenizer.bos_token_id
    assert count == 1 and len(cut) == 48
    assert cut == (whole[-48:] if bos is None else [bos, *whole[-47:]])
    assert encode(model.tokenizer, ROWS[2:], 1)[0] == [whole[-1:]]
    assert encode(model.tokenizer, ROWS[2:], 48, keeps_bos=False)[0] == [whole[-48:]]


def test_models_of_earlier_versions_cut_as_they_were_trained(saved, tmp_path):
    model, folder = saved
    record = json.loads((folder / "saved" / RECORD).read_text())
    assert record.pop("keeps_bos") is True
    for path in (folder / "saved").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / RECORD).write_text(json.dumps(record))
    (tmp_path / MANIFEST).unlink()
    (whole,), _ = encode(model.tokenizer, ROWS[2:], 10**6)
    with torch.no_grad():
        [expected] = model.score(model.pool(torch.tensor([whole[-48:]]), torch.ones(1, 48))).tolist()
    assert score(load(tmp_path), ROWS[2:]) == pytest.approx([expected], rel=1e-5)
    now = score(load(folder / "saved"), ROWS[2:])
    assert (now == pytest.approx([expected], rel=1e-3)) == (model.tokenizer.bos_token is None)


def test_a_saved_model_embeds_as_its_base_did_and_earlier_fingerprints_are_known(saved):
    """The saved tokenizer adds no BOS, of which the fingerprints of earlier versions were made, too."""
    _, folder = saved
    base, again = Embedder(folder / "base", max_length=48), Embedder(folder / "saved", max_length=48)
    assert base.source.fingerprint == again.source.fingerprint
    np.testing.assert_allclose(base.embed(ROWS)[0], again.embed(ROWS)[0], rtol=1e-5, atol=1e-5)
    earlier = fingerprint(base.body, base.tokenizer, base.tokenizer.get_chat_template())
    assert (earlier != base.source.fingerprint) == (base.tokenizer.bos_token is not None)
    old = replace(base.source, fingerprint=earlier, keeps_bos=False)
    without, _ = open_source(old).embed(ROWS)
    differs = (without - base.embed(ROWS)[0]).abs().amax(1) > 1e-3
    assert differs.tolist() == [False, False, base.tokenizer.bos_token is not None]


def test_a_tokenizer_that_goes_on_adding_tokens_is_warned_of(tmp_path, monkeypatch):
    from irm_fast.models import checkpoint

    model = ImplicitRewardModel.from_backbone(save_base("BOS twice", tmp_path / "base"), SPEC)
    monkeypatch.setattr(checkpoint, "add_no_tokens", lambda tokenizer: None)
    with pytest.warns(UserWarning, match=r"adds tokens of its own.*add_special_tokens=False"):
        model.save(tmp_path / "saved")


def test_a_model_is_saved_though_its_tokenizer_cannot_be_compared(tmp_path, monkeypatch):
    import transformers

    model = ImplicitRewardModel.from_backbone(save_base("no BOS", tmp_path / "base"), SPEC)
    with monkeypatch.context() as patch:
        patch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: 1 / 0)
        with pytest.warns(UserWarning, match=r"could not be compared with that of training \(division by zero\)"):
            model.save(tmp_path / "saved")
    assert np.isfinite(score(load(tmp_path / "saved"), ROWS)).all()


@pytest.mark.parametrize("kind", ["Llama", "Gemma"])
def test_tokenizers_of_a_class_that_adds_bos_add_none_once_saved(tmp_path, kind, save_llama):
    import transformers

    letters = [f"<0x{byte:02X}>" for byte in range(256)] + ["\u2581", *"abcdefghijklmnopqrstuvwxyz", "\u2581g", "go"]
    words = {"Llama": ["<unk>", "<s>", "</s>"], "Gemma": ["<pad>", "<eos>", "<bos>", "<unk>"]}[kind]
    vocabulary = {token: number for number, token in enumerate([*words, *letters])}
    merges = [("\u2581", "g"), ("g", "o")]
    tokenizer = getattr(transformers, f"{kind}Tokenizer")(vocab=vocabulary, merges=merges)
    tokenizer.add_bos_token = True
    tokenizer.save_pretrained(tmp_path / "base")
    save_llama(tmp_path / "base", len(tokenizer))
    model = ImplicitRewardModel.from_backbone(tmp_path / "base", SPEC)
    assert model.tokenizer("go")["input_ids"][0] == model.tokenizer.bos_token_id
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save(tmp_path / "saved")
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    (expected,), _ = encode(model.tokenizer, ROWS[:1], 100)
    assert saved(render(saved, ROWS[0]))["input_ids"] == expected
    assert expected.count(saved.bos_token_id) == 1


def test_what_a_post_processor_does_beside_stays(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(save_base("BOS twice", tmp_path))
    add_no_tokens(tokenizer)
    kept = json.loads(tokenizer.backend_tokenizer.to_str())["post_processor"]["processors"]
    assert [part["type"] for part in kept] == ["ByteLevel", "TemplateProcessing"]
    assert tokenizer("good")["input_ids"] == tokenizer("good", add_special_tokens=False)["input_ids"]
