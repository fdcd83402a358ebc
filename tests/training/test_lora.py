"""Low-rank adapters: what is trained, what is saved, and that nothing else changes."""

from __future__ import annotations

import copy
import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSequenceClassification

from irm_fast.data.signals import RewardSpec
from irm_fast.models import adapters
from irm_fast.models.adapters import Lora, check_four_bits, target_names
from irm_fast.models.backbone import load_backbone, skeleton
from irm_fast.models.computation import computing
from irm_fast.models.packed import two_rows
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.training import prepare
from irm_fast.training.config import TrainConfig
from irm_fast.training.run import train_log
from irm_fast.training.run_folder import CHECKPOINTS
from irm_fast.training.trainer import ImplicitTrainer
from tests.training.training_cases import interrupt, largest_difference, metrics_of, train_until

LORA = {"lora_rank": 4, "learning_rate": 1e-2}
TOKENS = {"input_ids": torch.arange(3, 40)[None], "attention_mask": torch.ones(1, 37, dtype=torch.long)}


@pytest.fixture
def adapted(tiny_model) -> ImplicitRewardModel:
    """A model with adapters that change its states."""
    torch.manual_seed(0)
    model = ImplicitRewardModel.from_backbone(tiny_model, RewardSpec("constant", ("copy",), (1,), (0.0,)))
    model.add_adapters(Lora(4, 32.0), tiny_model)
    for name, parameter in model.named_parameters():
        if adapters.is_of_adapter(name):
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def scores(model: ImplicitRewardModel) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(**two_rows(model, packed=False)).reward


def test_adapters_and_heads_alone_are_trained(adapted):
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    layers = 2 * len(["q", "k", "v", "o", "gate", "up", "down"])
    assert len([name for name in trained if adapters.is_of_adapter(name)]) == 2 * layers
    assert {name for name in trained if not adapters.is_of_adapter(name)} == {
        "heads.reward.weight",
        "heads.reward_bias",
        "heads.propensity_design.bias",
    }
    assert adapted.state_dict().keys() == trained


def test_merged_scores_are_those_of_the_adapters(adapted):
    before = scores(adapted)
    adapted.merge_adapters()
    torch.testing.assert_close(scores(adapted), before, rtol=0, atol=1e-5)
    assert not any(adapters.is_of_adapter(name) for name in adapted.state_dict())


def test_frozen_bfloat16_is_merged_in_float32(tiny_model):
    """Rounded to bfloat16 the sums would differ by 1/256 of the weights."""
    model = ImplicitRewardModel.from_backbone(
        tiny_model, RewardSpec("constant", ("copy",), (1,), (0.0,)), torch.bfloat16
    )
    model.add_adapters(Lora(4, 32.0), tiny_model)
    kinds = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert {kind for name, kind in kinds.items() if adapters.is_of_adapter(name)} == {torch.float32}
    assert {kind for name, kind in kinds.items() if name.startswith("heads.")} == {torch.float32}
    layer = model.backbone.layers[0].self_attn.q_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    expected = layer.base_layer.weight.float() + layer.get_delta_weight("default")
    model.merge_adapters()
    torch.testing.assert_close(model.backbone.layers[0].self_attn.q_proj.weight, expected)


def test_the_result_is_an_ordinary_checkpoint(make_log, make_config, tiny_model):
    config = make_config(lora_keep_adapter=True, **LORA)
    result = train_log(make_log(), config)
    folder = Path(config.output)
    rewards = [
        AutoModelForSequenceClassification.from_pretrained(folder).eval()(**TOKENS).logits,
        result.model.classifier(**TOKENS).logits,
    ]
    torch.testing.assert_close(*rewards)
    moved = load_file(folder / "model.safetensors")
    base = load_backbone(tiny_model)[0].state_dict()
    assert moved.keys() == base.keys()
    same = {name for name in base if torch.equal(base[name], moved[name])}
    assert same == {name for name in base if "norm" in name or "embed" in name}

    from peft import PeftModel

    whole = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1, pad_token_id=2)
    kept = PeftModel.from_pretrained(whole, folder / "adapter").eval()
    torch.testing.assert_close(kept(**TOKENS).logits, rewards[0], rtol=0, atol=1e-5)
    again = ImplicitRewardModel.load(folder)
    again.save(folder.parent / "copy")
    assert (folder.parent / "copy" / "adapter" / "adapter_config.json").is_file()


def test_no_adapter_is_kept_unasked(make_log, make_config):
    config = make_config(**LORA)
    train_log(make_log(), config)
    assert not (Path(config.output) / "adapter").exists()


@pytest.mark.parametrize(
    ("settings", "step", "checkpoint"), [({}, 10, 6), ({"objective": "stratified", "stratification": "ema"}, 10, 6)]
)
def test_resume_gives_the_uninterrupted_result(make_log, make_config, monkeypatch, settings, step, checkpoint):
    log, settings = make_log(64), {"epochs": 3, **LORA, **settings}
    whole = train_log(log, make_config("whole", **settings))
    cut = make_config("cut", **settings)
    train_until(step, log, cut)
    (weights,) = Path(cut.output, CHECKPOINTS).rglob("checkpoint-*/model.safetensors")
    assert {name for name in load_file(weights) if name.startswith("backbone.")}
    assert all(adapters.is_of_adapter(name) for name in load_file(weights) if name.startswith("backbone."))
    with pytest.raises(ValueError, match=r"lora_alpha: got 8\.0.*32\.0"):
        train_log(log, replace(cut, resume=True, lora_alpha=8))
    with monkeypatch.context() as patch:
        interrupt(patch, checkpoint - 1)
        resumed = train_log(log, replace(cut, resume=True))
    assert largest_difference(whole, resumed) < 1e-6


@pytest.mark.parametrize("settings", [{"attn": "sdpa"}, {"gradient_checkpointing": "full"}])
def test_packing_and_recomputing_change_nothing(make_log, make_config, settings):
    """All rows are in every step, so that padded and packed ones are the same step."""
    common = {"batch_size": 64, "epochs": 4, **LORA}
    one, other = (make_config(name, **common, **more) for name, more in (("one", {}), ("other", settings)))
    assert largest_difference(train_log(make_log(), one), train_log(make_log(), other)) < 1e-5
    losses = [entry["loss"] for entry in metrics_of(one) if "loss" in entry]
    assert losses[0] - losses[-1] > 1e-3


def test_bfloat16_learns(make_log, make_config):
    config = make_config(precision="bfloat16", epochs=10, **LORA)
    result = train_log(make_log(), config)
    assert result.attention == "varlen"
    losses = [entry["eval_nll"] for entry in metrics_of(config) if "eval_nll" in entry]
    assert min(losses) < losses[0]
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("compiled", [False, True])
def test_adapters_compute_in_bfloat16(tiny_model, monkeypatch, compiled):
    """Their float32 weights are masters, as those of a model that is trained whole."""
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    model = ImplicitRewardModel.from_backbone(
        tiny_model, RewardSpec("constant", ("copy",), (1,), (0.0,)), torch.bfloat16
    )
    model.add_adapters(Lora(4, 32.0), tiny_model)
    model.backbone.layers.extend(copy.deepcopy(list(model.backbone.layers)))
    model.backbone.config.num_hidden_layers = 4
    dtypes = set()

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func._schema.name == "aten::mm":
                dtypes.update(arg.dtype for arg in args)
            return func(*args, **(kwargs or {}))

    batch = two_rows(model, packed=False)
    with computing(model.train(), torch.bfloat16, compiled=compiled), nullcontext() if compiled else Products():
        model("states", **batch).sum().backward()
    assert dtypes == (set() if compiled else {torch.bfloat16})
    grads = {p.grad.dtype for p in model.backbone.parameters() if p.requires_grad}
    assert grads == {torch.float32}
    assert counter.frame_count <= 2  # the states before the first layer have no gradient


def test_default_learning_rate():
    rates = [TrainConfig(model="m", output="o", **more).peak_learning_rate for more in ({}, {"lora_rank": 8})]
    assert rates[1] == pytest.approx(10 * rates[0])
    assert TrainConfig(model="m", output="o", lora_rank=8, learning_rate=1e-5).peak_learning_rate == 1e-5


def test_targets(tiny_model):
    backbone = skeleton(tiny_model).base_model
    assert {p.device.type for p in backbone.parameters()} == {"meta"}
    everything = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert target_names(backbone, None) == everything
    assert target_names(backbone, ["v_proj", "mlp.up_proj"]) == ["mlp.up_proj", "v_proj"]
    with pytest.raises(
        ValueError, match=r"no linear layer 'qproj'; did you mean 'q_proj'\?; the model has down_proj, "
    ):
        target_names(backbone, ["v_proj", "qproj"])
    with pytest.raises(ValueError, match="no linear layer 'embed_tokens'"):
        target_names(backbone, ["embed_tokens"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lora_targets": "q_proj"}, ["lora_targets", "'q_proj'", "no effect", "lora_rank"]),
        ({"load_in_4bit": True}, ["load_in_4bit", "no effect", "lora_rank"]),
        ({"lora_rank": 0}, ["lora_rank", "above 0"]),
        ({"lora_rank": 4, "lora_targets": "q_proj,"}, ["lora_targets", "'q_proj,'", "names of linear layers"]),
        ({"lora_rank": 4, "load_in_4bit": True, "fsdp": True}, ["load_in_4bit", "fsdp"]),
        (
            {"lora_rank": 4, "load_in_4bit": True, "objective": "stratified", "stratification": "ema"},
            ["stratification", "'ema'", "current"],
        ),
    ],
)
def test_settings_that_do_not_go_together(settings, words):
    with pytest.raises(ValueError) as caught:
        TrainConfig(model="m", output="o", **settings)
    assert all(word in str(caught.value) for word in words), caught.value


def test_weights_of_4_bits_are_not_sharded_by_accelerate_either(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"load_in_4bit: weights of 4 bits are not sharded"):
        TrainConfig(model="m", output="o", lora_rank=4, load_in_4bit=True)


def test_lists_of_targets_in_yaml():
    config = TrainConfig(model="m", output="o", lora_rank=4, lora_targets=["q_proj", " v_proj"])
    assert (config.lora_targets, config.targets) == ("q_proj,v_proj", ["q_proj", "v_proj"])


def test_what_is_refused_before_anything_is_written(make_log, make_config, monkeypatch):
    config = make_config(lora_rank=4, lora_targets="q_prj")
    monkeypatch.setattr(ImplicitTrainer, "training_step", None)
    with pytest.raises(ValueError, match="did you mean 'q_proj'"):
        train_log(make_log(), config)
    with pytest.raises(ValueError, match=r"load_in_4bit: needs .*leave load_in_4bit out"):
        train_log(make_log(), make_config(lora_rank=4, load_in_4bit=True))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"lora_rank: needs the package peft.*pip install 'irm-fast\[lora\]'"):
        train_log(make_log(), make_config(lora_rank=4))
    assert not Path(config.output).exists()


def test_a_run_says_what_it_trains(make_log, make_config):
    result = train_log(make_log(), make_config(**LORA))
    rank, hidden, inner, layers = 4, 32, 64, 2
    adapted = rank * layers * (4 * (hidden + hidden) + 3 * (hidden + inner))
    heads = hidden + 1 + 1  # the reward, its bias; known propensities have none
    trained = result.trained["trained_parameters"]
    assert adapted + hidden + 1 <= trained <= adapted + heads + 1
    assert 8 * trained <= result.trained["optimizer_bytes"] < 8 * trained + 1000  # and a count for each tensor
    assert result.trained["parameters"] > trained


def test_weights_of_four_bits(make_log, make_config, monkeypatch, tiny_model):
    """bitsandbytes has kernels for CPUs, by which the mechanism is tested; there it is too slow to be offered."""
    pytest.importorskip("bitsandbytes")
    model = ImplicitRewardModel.from_backbone(
        tiny_model, RewardSpec("constant", ("copy",), (1,), (0.0,)), four_bits=True
    )
    matrices = sum(p.numel() for p in model.backbone.parameters() if p.dtype == torch.uint8)
    whole = skeleton(tiny_model).base_model
    assert 2 * matrices == sum(p.numel() for n, p in whole.named_parameters() if "proj" in n)
    model.add_adapters(Lora(4, 32.0), tiny_model)
    for name, parameter in model.named_parameters():
        if adapters.is_of_adapter(name):
            torch.nn.init.normal_(parameter, std=0.1)
    before = scores(model.eval())
    model.merge_adapters()
    torch.testing.assert_close(scores(model), before, rtol=0, atol=1e-5)
    assert {p.dtype for p in model.parameters()} == {torch.float32}

    monkeypatch.setattr(prepare, "check_four_bits", lambda: None)
    config = make_config(load_in_4bit=True, epochs=4, batch_size=64, **LORA)
    result = train_log(make_log(), config)
    losses = [entry["loss"] for entry in metrics_of(config) if "loss" in entry]
    assert losses[-1] < losses[0]
    assert (
        result.trained["parameters"]
        == sum(p.numel() for p in whole.parameters()) + result.trained["trained_parameters"]
    )
    rewards = AutoModelForSequenceClassification.from_pretrained(config.output).eval()(**TOKENS).logits
    torch.testing.assert_close(rewards, result.model.classifier(**TOKENS).logits)


def test_what_four_bits_need(monkeypatch):
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"load_in_4bit: needs the package bitsandbytes.*pip install bitsandbytes"):
        check_four_bits()
    monkeypatch.setattr(adapters, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="load_in_4bit: needs a CUDA device"):
        check_four_bits()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_four_bits()


def test_an_adapter_is_no_model(make_log, make_config, tmp_path, tiny_model):
    """The remedy that the error names is carried out."""
    first = make_config("first", lora_keep_adapter=True, **LORA)
    train_log(make_log(), first)
    folder = str(Path(first.output) / "adapter")
    with pytest.raises(ValueError) as caught:
        train_log(make_log(), replace(make_config("second"), model=folder))
    text = str(caught.value)
    assert text.startswith(f"model {folder!r}: an adapter of {tiny_model!r}, no whole model")
    merged = str(tmp_path / "merged")
    exec(text.partition("in Python: ")[2].rpartition("; and give MERGED")[0].replace("MERGED", merged), {})
    reward = load_file(Path(first.output) / "model.safetensors")
    for name, weight in load_backbone(merged)[0].state_dict().items():
        torch.testing.assert_close(weight, reward[name], rtol=0, atol=1e-6)
    config = Path(folder) / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"task_type": "CAUSAL_LM"}))
    with pytest.raises(ValueError, match="AutoPeftModelForCausalLM as Model"):
        load_backbone(folder)
