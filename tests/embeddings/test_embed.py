"""Embeddings: what is pooled, the file they are kept in, and runs that are interrupted."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, safe_open

from irm_fast.data.signals import RewardSpec
from irm_fast.embeddings.embedder import Embedder
from irm_fast.embeddings.store import read_embeddings, read_source
from irm_fast.embeddings.writing import write_embeddings
from irm_fast.models import parts
from irm_fast.models.passes import Passes, place
from irm_fast.models.reward_model import ImplicitRewardModel
from tests.embeddings.interruption import interrupted_after


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory) -> str:
    """The folder of a tiny random BERT, whose tokenizer has neither EOS nor chat template; 24 positions."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "User", "Assistant", ":", "question", "good", "bad", "why"]
    words += map(str, range(100))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    tiny = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=24, **tiny)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def rows(make_log):
    """(ids, conversations) of 20 rows."""
    log = make_log(20)
    return log.ids, log.messages


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART_ROWS", 8)


def test_last_is_what_the_reward_model_pools(tiny_model, rows):
    _, messages = rows
    embedder = Embedder(tiny_model)
    assert (embedder.source.kind, embedder.source.pooling, embedder.source.max_length) == ("decoder", "last", 256)
    vectors, truncated = embedder.embed(messages, Passes(batch_size=3))
    assert truncated == 0
    model = ImplicitRewardModel.from_backbone(tiny_model, RewardSpec("constant")).eval()
    for row, vector in zip(messages, vectors, strict=True):
        ids = torch.tensor([model.tokenizer.apply_chat_template(row, tokenize=True)["input_ids"]])
        with torch.no_grad():
            torch.testing.assert_close(model.pool(ids, torch.ones_like(ids))[0], vector)


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_mean_is_over_all_tokens_that_are_not_padding(tiny_model, tiny_encoder, rows, kind):
    from transformers import AutoModel, AutoTokenizer

    _, messages = rows
    name = tiny_model if kind == "decoder" else tiny_encoder
    vectors, _ = Embedder(name, pooling="mean").embed(messages, Passes(batch_size=4))
    model, tokenizer = AutoModel.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
    start, end = ("<s>", "</s>") if kind == "decoder" else ("", "")
    for (question, answer), vector in zip(messages, vectors, strict=True):
        text = f"{start}User: {question['content']}\n\nAssistant: {answer['content']}{end}"
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=kind == "encoder")
        with torch.no_grad():
            torch.testing.assert_close(model(**inputs).last_hidden_state[0].mean(0), vector, atol=1e-5, rtol=1e-5)


def test_encoder_truncation_keeps_the_end_and_the_special_tokens(tiny_encoder):
    embedder = Embedder(tiny_encoder)
    assert (embedder.source.kind, embedder.source.pooling, embedder.source.max_length) == ("encoder", "mean", 24)
    question = {"role": "user", "content": " ".join(map(str, range(40)))}
    messages = [[question, {"role": "assistant", "content": "good"}]]
    ids, truncated = embedder._tokenise(messages, 24)
    text = embedder.tokenizer.decode(ids[0]).split()
    assert (len(text), truncated) == (24, 1)
    assert (text[0], text[-5:]) == ("[CLS]", ["39", "Assistant", ":", "good", "[SEP]"])
    assert embedder.embed(messages)[1] == 1


def test_precision(tiny_model, rows):
    exact, _ = Embedder(tiny_model).embed(rows[1])
    rounded, _ = Embedder(tiny_model, precision="bfloat16").embed(rows[1])
    assert rounded.dtype == torch.float32
    assert 1e-4 < (exact - rounded).abs().max() / exact.abs().max() < 0.05


def test_fingerprint_knows_the_weights_wherever_they_lie(tiny_model, tmp_path, save_llama, save_tokenizer):
    moved, other = tmp_path / "moved", tmp_path / "other"
    shutil.copytree(tiny_model, moved)
    save_llama(other, save_tokenizer(other), seed=1)
    marks = [Embedder(folder).source.fingerprint for folder in (tiny_model, moved, other)]
    assert marks[0] == marks[1] != marks[2]
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    save_tokenizer(moved, template=template)
    assert Embedder(moved).source.fingerprint != marks[0]


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_fingerprint_is_of_the_files_and_weights_are_loaded_as_they_are_stored(
    tiny_model, tiny_encoder, rows, tmp_path, monkeypatch, kind
):
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    name, family = (tiny_model, AutoModelForCausalLM) if kind == "decoder" else (tiny_encoder, AutoModel)
    half, whole, shards = (str(tmp_path / end) for end in ("half", "whole", "shards"))
    for folder in (half, whole, shards):
        AutoTokenizer.from_pretrained(name).save_pretrained(folder)
    family.from_pretrained(name, dtype=torch.bfloat16).save_pretrained(half)
    family.from_pretrained(name, dtype=torch.bfloat16).save_pretrained(shards, max_shard_size="8KB")
    family.from_pretrained(half, dtype=torch.float32).save_pretrained(whole)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1

    loaded = []
    monkeypatch.setattr(
        "irm_fast.embeddings.embedder.place",
        lambda body, *how: loaded.append({weight.dtype for weight in body.parameters()}) or place(body, *how),
    )
    models = [Embedder(folder, precision="bfloat16") for folder in (half, shards, whole)]
    assert loaded == [{torch.bfloat16}, {torch.bfloat16}, {torch.float32}]
    assert len({model.source.fingerprint for model in [*models, Embedder(half, precision="float32")]}) == 1
    vectors = [model.embed(rows[1])[0] for model in models]
    assert torch.equal(vectors[0], vectors[2]) and torch.equal(vectors[1], vectors[2])


def test_fingerprint_does_not_trust_the_configuration(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "other")
    path = tmp_path / "other" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "bfloat16"}))
    marks = {Embedder(name, precision="bfloat16").source.fingerprint for name in (tiny_model, tmp_path / "other")}
    assert marks == {Embedder(tiny_model).source.fingerprint}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_file_holds_every_row_in_its_order(tiny_model, rows, tmp_path, small_parts, dtype):
    out, embedder = tmp_path / "e.safetensors", Embedder(tiny_model)
    assert write_embeddings(*rows, embedder, out, dtype=dtype, batch_size=3) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["e.safetensors"]
    vectors = embedder.embed(rows[1])[0]
    content = load_file(out)  # by the library's own reader
    assert content["embeddings"].dtype == getattr(torch, dtype)
    assert content["row_hash"].dtype == torch.int64
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    torch.testing.assert_close(content["embeddings"].float(), vectors, atol=tolerance, rtol=tolerance)
    np.testing.assert_array_equal(read_embeddings(out, *rows), content["embeddings"].float())
    assert (read_source(out).model, read_source(out).dtype) == (tiny_model, dtype)


def test_rows_are_found_by_text(tiny_encoder, rows, tmp_path, small_parts):
    ids, messages = rows
    out = tmp_path / "e.safetensors"
    write_embeddings(ids, messages, Embedder(tiny_encoder), out)
    whole = read_embeddings(out, ids, messages)
    some = np.random.default_rng(0).permutation(20)[:13]
    found = read_embeddings(out, [ids[i] for i in some], [messages[i] for i in some])
    np.testing.assert_array_equal(found, whole[some])

    edited = [*messages[:7], [*messages[7][:1], {"role": "assistant", "content": "another"}], *messages[8:]]
    with pytest.raises(ValueError, match=r"e\.safetensors: no embedding of row 'row-7'.*1 of 20 rows"):
        read_embeddings(out, ids, edited)
    named_anew = [f"row-{number}" for number in range(1, 14)]  # as where a log without ids was shortened
    np.testing.assert_array_equal(read_embeddings(out, named_anew, [messages[i] for i in some]), found)


def test_files_of_the_first_format_are_read_by_id_and_text(tiny_encoder, rows, tmp_path):
    from safetensors.torch import save_file

    ids, messages = rows
    out, old = tmp_path / "e.safetensors", tmp_path / "old.safetensors"
    write_embeddings(ids, messages, Embedder(tiny_encoder), out)
    with safe_open(out, "pt") as file:
        later = {"normalize", "prompt", "lower_case", "date"}
        metadata = {key: value for key, value in file.metadata().items() if key not in later}
    content = load_file(out) | {"row_hash": torch.from_numpy(parts.row_hash(ids, messages))}
    save_file(content, old, metadata=metadata | {"irm_fast_embeddings": "1"})
    np.testing.assert_array_equal(read_embeddings(old, ids[::-1], messages[::-1]), content["embeddings"].flip(0))
    assert read_source(old) == read_source(out)
    with pytest.raises(ValueError, match=r"row 'new'.*2 of 20 rows.*another id or text: run"):
        read_embeddings(old, ["new", *ids[1:19], "newer"], messages)
    with pytest.raises(ValueError, match=r"row 'row-7'.*no ids, line numbers stand for them"):
        read_embeddings(old, [f"row-{number + 7}" for number in range(20)], messages)


@pytest.fixture
def interrupted(tiny_encoder, rows, tmp_path, small_parts):
    """A run that ended in its third part: (path of its file, embedder)."""
    out, embedder = tmp_path / "e.safetensors", Embedder(tiny_encoder)
    with interrupted_after(2):
        write_embeddings(*rows, embedder, out)
    assert [path.name for path in tmp_path.iterdir()] == ["e.safetensors.parts"]
    return out, embedder


def test_resume_computes_only_what_is_not_there(interrupted, rows, tmp_path, monkeypatch):
    out, embedder = interrupted
    write_embeddings(*rows, embedder, tmp_path / "whole.safetensors")
    with pytest.raises(ValueError, match="--resume goes on with it, --overwrite"):
        write_embeddings(*rows, embedder, out)
    computed = []
    embed = embedder.embed
    monkeypatch.setattr(embedder, "embed", lambda part, how: computed.append(len(part)) or embed(part, how))
    write_embeddings(*rows, embedder, out, resume=True)
    assert computed == [4]
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not out.with_name("e.safetensors.parts").exists()


def test_resume_refuses_other_rows_and_settings(interrupted, rows, tiny_encoder, tiny_model):
    out, embedder = interrupted
    ids, messages = rows
    order = [*range(10), 11, 10, *range(12, 20)]
    refused = [
        (embedder, [ids[i] for i in order], [messages[i] for i in order], {}, r"row 'row-11' is not.*part-00001"),
        (embedder, ids[:9], messages[:9], {}, r"row 'row-8' is not.*part-00001"),
        (Embedder(tiny_encoder, max_length=20), ids, messages, {}, "max_length: got 20 instead of 24"),
        (embedder, ids, messages, {"dtype": "bfloat16"}, "dtype: got bfloat16 instead of float32"),
        (Embedder(tiny_model, pooling="mean", max_length=24), ids, messages, {}, "kind: got decoder"),
    ]
    for other, names, texts, settings, words in refused:
        with pytest.raises(ValueError, match=words):
            write_embeddings(names, texts, other, out, resume=True, **settings)
    found = sorted(out.with_name("e.safetensors.parts").iterdir())
    assert [path.name for path in found] == ["part-00000.safetensors", "part-00001.safetensors"]


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("how", ["half", "empty", "a bit"])
def test_resume_computes_damaged_parts_anew(interrupted, rows, tmp_path, how, number):
    out, embedder = interrupted
    part = sorted(out.with_name("e.safetensors.parts").iterdir())[number]
    held = part.read_bytes()
    part.write_bytes({"half": held[: len(held) // 2], "empty": b"", "a bit": held[:-5] + b"\0" + held[-4:]}[how])
    with pytest.warns(UserWarning, match=rf"part-0000{number}.* is passed over: .*; its rows are computed anew"):
        write_embeddings(*rows, embedder, out, resume=True)
    write_embeddings(*rows, embedder, tmp_path / "again.safetensors")
    assert out.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_what_must_not_be_written_over(tiny_encoder, rows, tmp_path):
    embedder, out = Embedder(tiny_encoder), tmp_path / "e.safetensors"
    write_embeddings(*rows, embedder, out)
    cases = [
        (out, {}, "exists already; --overwrite replaces it"),
        (out, {"resume": True}, "exists already"),
        (out, {"resume": True, "overwrite": True}, "choose one"),
        (tmp_path / "e.npy", {}, r"ends in \.safetensors"),
        (tmp_path / "nowhere" / "e.safetensors", {}, "no such folder"),
    ]
    for path, settings, words in cases:
        with pytest.raises(ValueError, match=words):
            write_embeddings(*rows, embedder, path, **settings)
    folder = tmp_path / "f.safetensors.parts"
    folder.mkdir()
    (folder / "diary.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"diary\.txt.*move it elsewhere"):
        write_embeddings(*rows, embedder, tmp_path / "f.safetensors", overwrite=True)


def test_embeddings_that_are_no_numbers(tiny_encoder, rows, tmp_path, monkeypatch):
    embedder = Embedder(tiny_encoder)
    vectors = embedder.embed(rows[1])[0]
    vectors[3, 2] = float("inf")
    monkeypatch.setattr(embedder, "embed", lambda part, how: (vectors, 0))
    with pytest.raises(ValueError, match=r"row 'row-3'.*not finite"):
        write_embeddings(*rows, embedder, tmp_path / "e.safetensors")


def test_files_of_others(tiny_encoder, rows, tmp_path):
    path = tmp_path / "e.safetensors"
    with pytest.raises(ValueError, match=r"e\.safetensors: not found"):
        read_embeddings(path, *rows)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="no safetensors file"):
        read_embeddings(path, *rows)
    with pytest.raises(ValueError, match="not written by irm-fast embed"):
        read_source(f"{tiny_encoder}/model.safetensors")


def test_models_that_cannot_be_pooled(tiny_encoder, tiny_model, tmp_path):
    with pytest.raises(ValueError, match=r"is an encoder.*expected mean or cls"):
        Embedder(tiny_encoder, pooling="last")
    with pytest.raises(ValueError, match=r"is a decoder.*expected last or mean"):
        Embedder(tiny_model, pooling="cls")
    with pytest.raises(ValueError, match=r"pooling: got 'max'; expected one of auto, last, mean, cls"):
        Embedder(tiny_encoder, pooling="max")
    with pytest.raises(ValueError, match="'nobody/nothing': no such folder, and not found"):
        Embedder("nobody/nothing")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ValueError, match="t5 is an encoder with a decoder"):
        Embedder(tmp_path)


def test_encoder_that_lacks_weights(tiny_encoder, tmp_path):
    from safetensors.torch import save_file

    folder = tmp_path / "cut"
    shutil.copytree(tiny_encoder, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 weights.*layer\.1\.output"):
        Embedder(folder)


def test_command(tiny_encoder, make_log, tmp_path):
    from typer.testing import CliRunner

    from irm_fast.cli.commands import app

    data, out = tmp_path / "log.jsonl", tmp_path / "e.safetensors"
    log = make_log(6)
    with data.open("w") as file:
        for name, (question, answer) in zip(log.ids, log.messages, strict=True):
            row = {"id": name, "prompt": question["content"], "completion": answer["content"]}
            file.write(json.dumps(row) + "\n")
    command = ["embed", "--data", str(data), "--model", tiny_encoder, "--out", str(out)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert f"wrote {out}: 6 embeddings of 16 numbers" in result.stdout
    assert "mean pooling, at most 24 tokens" in result.stderr
    assert read_embeddings(out, log.ids, log.messages).shape == (6, 16)
    with safe_open(out, "pt") as file:
        assert file.metadata()["pooling"] == "mean"
    again = CliRunner().invoke(app, command)
    assert (again.exit_code, again.stderr) == (2, f"error: out: {out} exists already; --overwrite replaces it\n")
    assert CliRunner().invoke(app, [*command, "--overwrite"]).exit_code == 0
    onto_itself = CliRunner().invoke(app, [*command[:-1], str(data)])
    assert "is the input" in onto_itself.stderr


def test_interrupted_command_says_how_to_go_on(tiny_encoder, make_log, tmp_path, small_parts, monkeypatch):
    from typer.testing import CliRunner

    from irm_fast.cli.commands import app

    data, out = tmp_path / "log.jsonl", tmp_path / "e.safetensors"
    data.write_text("".join(json.dumps({"prompt": "why", "completion": f"good {i}"}) + "\n" for i in range(20)))
    command = ["embed", "--data", str(data), "--model", tiny_encoder, "--out", str(out)]
    embed, calls = Embedder.embed, []

    def stop_at_second(self, *arguments, **how):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return embed(self, *arguments, **how)

    monkeypatch.setattr(Embedder, "embed", stop_at_second)
    result = CliRunner().invoke(app, command)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        130,
        "interrupted; --resume goes on from the last whole part",
    )
    resumed = CliRunner().invoke(app, [*command, "--resume"])
    assert resumed.exit_code == 0, resumed.output
    assert len(calls) == 4
