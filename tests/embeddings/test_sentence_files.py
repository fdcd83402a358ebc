"""What tokens and vectors depend on is read from the model's files, and kept: pooling, prompts, limits, dates."""

import datetime
import json
from dataclasses import replace

import pytest
import torch
import transformers.utils.chat_template_utils as transformers_templates

from irm_fast.embeddings.embedder import Embedder, _earlier_fingerprint
from irm_fast.embeddings.sentence_files import SentenceFiles, read_sentence_files
from irm_fast.embeddings.text_model import open_source

MESSAGES = [
    [{"role": "user", "content": "Why"}, {"role": "assistant", "content": word}] for word in ("good", "bad bad")
]
TEXTS = ["User: Why\n\nAssistant: good", "User: Why\n\nAssistant: bad bad"]
DATED = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"


@pytest.fixture
def encoder(tmp_path):
    """A function that saves a tiny encoder and returns its folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, RobertaConfig, RobertaModel

    def save(kind="bert", positions=40):
        words = [
            "[PAD]",
            "[UNK]",
            "[CLS]",
            "[SEP]",
            "User",
            "Assistant",
            "user",
            ":",
            "good",
            "bad",
            "Why",
            "why",
            "read",
        ]
        tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        ends = [("[CLS]", 2), ("[SEP]", 3)]
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
        special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(tmp_path / kind)
        torch.manual_seed(0)
        tiny = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
        tiny |= {"vocab_size": len(words), "max_position_embeddings": positions, "pad_token_id": 0}
        model = BertModel(BertConfig(**tiny)) if kind == "bert" else RobertaModel(RobertaConfig(**tiny))
        model.save_pretrained(tmp_path / kind)
        return tmp_path / kind

    return save


def describe(folder, modes, *layers, texts=None, limits=None):
    """Write the files of sentence-transformers."""
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), *((kind, f"2_{kind}") for kind in layers)]
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in kinds]
    (folder / "1_Pooling").mkdir(exist_ok=True)
    written = {"modules.json": modules, "1_Pooling/config.json": modes, "sentence_bert_config.json": limits or {}}
    for name, content in {**written, "config_sentence_transformers.json": texts or {}}.items():
        (folder / name).write_text(json.dumps(content))


def states(folder, text):
    """The states (T, D) of the tokens of a text, by transformers alone."""
    from transformers import AutoModel, AutoTokenizer

    with torch.no_grad():
        inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
        return AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state[0]


POOLED = {"cls": lambda states: states[0], "mean": lambda states: states.mean(0), "last": lambda states: states[-1]}


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "cls"}, "cls"),
        ({}, "mean"),
    ],
)
def test_auto_pools_as_the_files_say(encoder, modes, expected):
    folder = encoder()
    describe(folder, modes)
    embedder = Embedder(folder)
    assert embedder.source.pooling == expected
    for vector, text in zip(embedder.embed(MESSAGES)[0], TEXTS, strict=True):
        torch.testing.assert_close(vector, POOLED[expected](states(folder, text)), atol=1e-5, rtol=1e-5)


def test_the_option_goes_before_the_files(encoder):
    folder = encoder()
    describe(folder, {"pooling_mode_mean_tokens": True})
    vectors, _ = Embedder(folder, pooling="cls").embed(MESSAGES)
    torch.testing.assert_close(vectors[1], states(folder, TEXTS[1])[0], atol=1e-5, rtol=1e-5)


def test_prompts_case_length_and_normalisation_are_followed_and_kept(encoder):
    folder = encoder()
    texts = {"prompts": {"document": "read: ", "query": "why: "}, "default_prompt_name": "document"}
    limits = {"max_seq_length": 12, "do_lower_case": True}
    describe(folder, {"pooling_mode_cls_token": True}, "Normalize", texts=texts, limits=limits)
    embedder = Embedder(folder)
    vectors, _ = embedder.embed(MESSAGES)
    expected = states(folder, ("read: " + TEXTS[0]).lower())[0]
    torch.testing.assert_close(vectors[0], expected / expected.norm(), atol=1e-5, rtol=1e-5)
    assert embedder.source.max_length == 12
    for file in folder.glob("*.json"):
        if file.name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
            file.unlink()  # what embeddings were made with is what further ones are made with
    torch.testing.assert_close(open_source(embedder.source).embed(MESSAGES)[0], vectors)


def test_what_cannot_be_followed_is_said(encoder):
    folder = encoder()
    describe(folder, {"pooling_mode_max_tokens": True})
    with pytest.raises(
        ValueError, match=r"files of .* ask for 'max_tokens'.*not available.*one of last, mean, cls, by"
    ):
        Embedder(folder)
    assert Embedder(folder, pooling="mean").source.pooling == "mean"
    describe(folder, {"pooling_mode_mean_tokens": True}, "Dense")
    with pytest.warns(UserWarning, match="before its layers Dense, which are left out"):
        Embedder(folder)
    (folder / "modules.json").write_text("[")
    with pytest.raises(ValueError, match=r"modules\.json is damaged"):
        read_sentence_files(str(folder))
    assert read_sentence_files(str(folder.parent)) == SentenceFiles()


def test_a_normalised_decoder_is_no_checkpoint(tiny_model, tmp_path):
    import shutil

    folder = tmp_path / "decoder"
    shutil.copytree(tiny_model, folder)
    describe(folder, {"pooling_mode_lasttoken": True}, "Normalize")
    embedder = Embedder(folder)
    torch.testing.assert_close(embedder.embed(MESSAGES)[0].norm(dim=1), torch.ones(2))
    assert (embedder.source.pooling, embedder.source.normalize) == ("last", True)


@pytest.mark.parametrize(("kind", "limit"), [("bert", 24), ("roberta", 23)])
def test_positions_behind_the_padding_are_counted(encoder, kind, limit):
    embedder = Embedder(encoder(kind, positions=24))
    assert embedder.source.max_length == limit
    long = [[{"role": "user", "content": "why " * 40}, {"role": "assistant", "content": "good"}]]
    vectors, cut = embedder.embed(long)
    assert cut == 1 and vectors.isfinite().all()


@pytest.fixture
def on_another_day(monkeypatch):
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 11, 23)

    class Day(datetime.date):
        @classmethod
        def today(cls):
            return cls(2031, 11, 23)

    def move():
        monkeypatch.setattr(transformers_templates, "datetime", Clock)
        monkeypatch.setattr("irm_fast.models.template.Date", Day)

    return move


@pytest.fixture
def dated(tmp_path, save_tokenizer, save_llama):
    save_llama(tmp_path / "dated", save_tokenizer(tmp_path / "dated", template=DATED))
    return tmp_path / "dated"


def test_a_model_whose_template_prints_the_date_is_the_same_the_next_day(dated, on_another_day):
    embedder = Embedder(dated)
    vectors, _ = embedder.embed(MESSAGES)
    on_another_day()
    assert Embedder(dated).source.fingerprint != embedder.source.fingerprint  # of the day it is made on
    again = open_source(embedder.source)
    assert again.source == embedder.source and again.source.date
    torch.testing.assert_close(again.embed(MESSAGES)[0], vectors)


def test_fingerprints_of_earlier_versions_are_accepted_or_refused_with_a_remedy(tiny_model, dated):
    embedder = Embedder(tiny_model)
    sample = [[{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "It depends."}]]
    old = _earlier_fingerprint(embedder.body, embedder._tokenise(sample, 256)[0][0])
    assert len(old) == 32 and old != embedder.source.fingerprint
    assert open_source(replace(embedder.source, fingerprint=old)).source.model == tiny_model
    with pytest.raises(ValueError, match="weights or tokenizer are not those"):
        open_source(replace(embedder.source, fingerprint=old[::-1]))
    with pytest.raises(ValueError, match=r"did not keep the date.*irm-fast embed, and the model by"):
        open_source(replace(Embedder(dated).source, fingerprint=old, date=""))
