"""Liger's kernels: where they can be had, and that a model is as before when they are done with."""

import sys

import pytest
import torch
from transformers import AutoModelForSequenceClassification, Qwen3Config
from transformers.models.qwen3 import modeling_qwen3

from irm_fast.models.liger import liger_kernels, liger_obstacle
from irm_fast.training.run import train_log

CUDA = torch.device("cuda")


@pytest.fixture
def classifier():
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = Qwen3Config(vocab_size=50, num_hidden_layers=2, head_dim=16, num_labels=1, pad_token_id=0, **shape)
    return AutoModelForSequenceClassification.from_config(config).eval()


def test_where_they_cannot_be_had(classifier, make_log, make_config, monkeypatch):
    assert "needs a CUDA device, and this is cpu" in liger_obstacle(classifier, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"liger: not available: it needs a CUDA device.* expected auto or false"):
        train_log(make_log(), make_config(liger=True))
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    assert "pip install 'irm-fast[liger]'" in liger_obstacle(classifier, CUDA)


def test_a_model_is_as_before_afterwards(classifier):
    pytest.importorskip("liger_kernel")
    assert liger_obstacle(classifier, CUDA) is None
    tokens = torch.arange(3, 9)[None]
    before, rotary = classifier(tokens).logits, modeling_qwen3.apply_rotary_pos_emb
    with pytest.raises(ZeroDivisionError), liger_kernels(classifier):
        patched = [module for module in classifier.modules() if "forward" in vars(module)]
        assert len(patched) == 2 * (4 + 1) + 1  # norms and gated layers, and the last norm
        assert modeling_qwen3.apply_rotary_pos_emb is not rotary
        raise ZeroDivisionError
    assert modeling_qwen3.apply_rotary_pos_emb is rotary
    assert not any("forward" in vars(module) for module in classifier.modules())
    assert torch.equal(classifier(tokens).logits, before)
    classifier.config.model_type = "unheard of"
    assert "no kernels for models of the type unheard of" in liger_obstacle(classifier, CUDA)
    assert "liger_kernel" in sys.modules
