"""Backbone and tokenizer: padding, templates that end in EOS, and clear errors."""

import pytest
import torch

from irm_fast.models.backbone import load_backbone
from irm_fast.models.tokens import encode, render

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "good answer"}]
CHATML = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + END + '\\n' }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (None, "<s>User: Hi\n\nAssistant: good answer</s>"),
        (CHATML.replace("END", "eos_token"), "<|user|>Hi</s>\n<|assistant|>good answer</s>"),
        (CHATML.replace("END", "'#'"), "<|user|>Hi#\n<|assistant|>good answer#</s>"),
    ],
)
def test_text_ends_in_eos_and_template_gives_the_training_ids(tmp_path, template, text, save_tokenizer, save_llama):
    save_llama(tmp_path, save_tokenizer(tmp_path, template=template))
    _, tokenizer = load_backbone(tmp_path)
    assert render(tokenizer, MESSAGES) == text
    (ids,), truncated = encode(tokenizer, [MESSAGES], 200)
    assert truncated == 0
    assert ids[-1] == tokenizer.eos_token_id
    assert ids == tokenizer.apply_chat_template(MESSAGES, tokenize=True)["input_ids"]


def test_truncation_keeps_the_end(tiny_model):
    _, tokenizer = load_backbone(tiny_model)
    (whole, short), truncated = encode(tokenizer, [MESSAGES, MESSAGES[1:]], 20)
    (full,), _ = encode(tokenizer, [MESSAGES], 200)
    assert truncated == 1
    assert whole == [tokenizer.bos_token_id, *full[-19:]]
    assert len(short) < 20


@pytest.mark.parametrize(("unk", "pad_token"), [(True, "<unk>"), (False, "<|pad|>")])
def test_padding_is_never_the_final_token(tmp_path, unk, pad_token, save_tokenizer, save_llama):
    size = save_tokenizer(tmp_path, pad=False, unk=unk)
    save_llama(tmp_path, size)
    model, tokenizer = load_backbone(tmp_path)
    assert tokenizer.pad_token == pad_token
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.vocab_size == len(model.get_input_embeddings().weight) == size + (not unk)
    assert (tokenizer.padding_side, tokenizer.truncation_side) == ("right", "left")


def test_head(tiny_model):
    model, _ = load_backbone(tiny_model)
    assert model.score.weight.shape == (1, 32)
    assert model.dtype == torch.float32
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")


def test_template_that_rejects_a_conversation(tmp_path, save_tokenizer, save_llama):
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    save_llama(tmp_path, save_tokenizer(tmp_path, template=template + CHATML.replace("END", "''")))
    _, tokenizer = load_backbone(tmp_path)
    with pytest.raises(ValueError, match=r"system, user, assistant.*no system"):
        render(tokenizer, [{"role": "system", "content": "x"}, *MESSAGES])


def error_of(name) -> str:
    with pytest.raises(ValueError) as error:
        load_backbone(name)
    assert str(name) in str(error.value)
    return str(error.value)


def test_unknown_models(tmp_path):
    assert "no such folder" in error_of(tmp_path / "nowhere")
    assert "not found" in error_of("nobody/nothing")
    assert "no such folder" in error_of("nosuch")
    assert "unknown kind" in error_of(tmp_path)


def test_no_tokenizer(tmp_path, save_llama):
    save_llama(tmp_path, 100)
    assert "tokenizer" in error_of(tmp_path)


def test_no_linear_head(tmp_path, save_tokenizer):
    from transformers import BertConfig, BertModel

    size = save_tokenizer(tmp_path)
    tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=size, **tiny)).save_pretrained(tmp_path)
    assert "BertForSequenceClassification" in error_of(tmp_path)


def test_missing_weights(tmp_path, save_tokenizer, save_llama):
    from safetensors.torch import load_file, save_file

    save_llama(tmp_path, save_tokenizer(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "model.norm.weight" in error_of(tmp_path)


def test_head_of_several_outputs(tmp_path, save_tokenizer):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    size = save_tokenizer(tmp_path)
    tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    LlamaForSequenceClassification(LlamaConfig(vocab_size=size, num_labels=3, pad_token_id=2, **tiny)).save_pretrained(
        tmp_path
    )
    assert "(3, 32)" in error_of(tmp_path)
