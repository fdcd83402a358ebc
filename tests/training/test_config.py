"""Settings: conversion, checks, YAML."""

import inspect
import json
from dataclasses import fields, replace

import pytest

from irm_fast.training.config import EmbeddingTrainConfig, TrainConfig, load_config, saved_config


def make(**settings) -> TrainConfig:
    return TrainConfig(model="m", output="o", **settings)


def test_text_becomes_numbers():
    config = make(learning_rate="1e-5", epochs="2", misclick_rate="0.1", polarity="a=-1, b=1")
    assert (config.learning_rate, config.epochs, config.misclick_rate) == (1e-5, 2, 0.1)
    assert config.polarity == {"a": -1, "b": 1}
    assert make(misclick_rate="a=0.1,b=0.2").misclick_rate == {"a": 0.1, "b": 0.2}
    assert make(misclick_rate={"a": "1e-2"}).misclick_rate == {"a": 0.01}


@pytest.mark.parametrize(
    ("settings", "fragments"),
    [
        ({"epochs": 1.5}, ["epochs", "1.5", "whole number"]),
        ({"epochs": 0}, ["epochs", "above 0"]),
        ({"epochs": True}, ["epochs", "True"]),
        ({"learning_rate": "fast"}, ["learning_rate", "'fast'", "number"]),
        ({"learning_rate": float("nan")}, ["learning_rate", "above 0"]),
        ({"learning_rate": float("inf")}, ["learning_rate: got inf; expected 100 at most"]),
        ({"learning_rate": 2e5}, ["learning_rate: got 200000.0; expected 100 at most"]),  # 2e-5 was meant
        ({"head_learning_rate": 1e30}, ["head_learning_rate: got 1e+30"]),
        ({"weight_decay": "inf"}, ["weight_decay: got inf; expected 1000 at most"]),
        ({"weight_decay": 1e30}, ["weight_decay: got 1e+30"]),
        ({"weight_decay": 100, "learning_rate": 0.1}, ["weight_decay", "product below 1"]),
        ({"lora_rank": 2, "lora_alpha": float("inf")}, ["lora_alpha: got inf"]),
        ({"epochs": 10**400}, ["epochs: got a number of 1329 bits"]),
        ({"learning_rate": 10**400}, ["learning_rate: got 1000", "expected a number"]),
        ({"misclick_rate": 1e-300}, ["misclick_rate", "as float32 holds them"]),
        ({"misclick_rate": "copy=0.999999999"}, ["misclick_rate", "0.99999994"]),
        ({"max_skipped_steps": -1}, ["max_skipped_steps", "0 or more"]),
        ({"on_nonfinite": "ignore"}, ["on_nonfinite: got 'ignore'; expected one of stop, skip"]),
        ({"validation_fraction": 1.0}, ["validation_fraction", "[0, 1)"]),
        ({"misclick_rate": {"copy": 1.0}}, ["misclick_rate", "[0, 1)"]),
        ({"polarity": {"copy": 2}}, ["polarity", "1 or -1"]),
        ({"polarity": "copy"}, ["polarity", "NAME=1"]),
        ({"propensity_design": "hiden"}, ["propensity_design", "'hiden'", "hidden"]),
        ({"precision": "float16"}, ["precision", "bfloat16"]),
        ({"resume": "yes"}, ["resume", "true or false"]),
        ({"data": 3}, ["data", "text"]),
        ({"stratification": "ema"}, ["stratification", "'ema'", "stratified"]),
        ({"stratification": "frozen", "objective": "stratified", "fsdp": True}, ["stratification", "'frozen'", "fsdp"]),
        ({"resume": True, "overwrite": True}, ["resume", "overwrite"]),
    ],
)
def test_bad_settings(settings, fragments):
    with pytest.raises(ValueError) as error:
        make(**settings)
    assert all(fragment in str(error.value) for fragment in fragments), error.value


def test_yaml_with_overrides(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: m\noutput: o\nlearning_rate: 1e-5\nepochs: 7\n")
    config = TrainConfig.load(path, epochs=2, batch_size=None)
    assert (config.learning_rate, config.epochs, config.rows_per_pass) == (1e-5, 2, 16)
    config.save(path)
    assert TrainConfig.load(path) == config


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("model: m\noutput: o\nlearning_rat: 1\n", ["run.yaml", "'learning_rat'", "'learning_rate'"]),
        ("model: m\n", ["run.yaml", "output"]),
        ("- model\n", ["run.yaml", "list"]),
        ("model: [\n", ["run.yaml", "YAML"]),
        ("model: m\noutput: o\nmodel: n\n", ["run.yaml:3", "model", "second time"]),
        ("model: m\noutput: o\npolarity: {a: 1, a: -1}\n", ["run.yaml:3", "a", "second time"]),
    ],
)
def test_bad_yaml(tmp_path, text, fragments):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        TrainConfig.load(path)
    assert all(fragment in str(error.value) for fragment in fragments), error.value


def test_settings_that_were_switches(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: m\noutput: o\ngradient_checkpointing: true\ncompile: false\n")
    config = TrainConfig.load(path)
    assert (config.gradient_checkpointing, config.compile, config.liger) == ("full", False, None)
    assert make(gradient_checkpointing=False).gradient_checkpointing == "none"
    assert make(compile="auto").compile is None
    with pytest.raises(ValueError, match="liger: got true beside compile"):
        make(compile=True, liger=True)


def test_arguments_of_transformers(tmp_path):
    wanted = {"max_grad_norm": 0.5, "lr_scheduler_kwargs": {"power": 2}, "run_name": "a=b"}
    assert make(trainer=["max_grad_norm=0.5", "lr_scheduler_kwargs={power: 2}", "run_name=a=b"]).trainer == wanted
    config = make(trainer=wanted)
    config.save(tmp_path / "run.yaml")
    assert TrainConfig.load(tmp_path / "run.yaml") == config
    for wrong in ("max_grad_norm", 3, ["a={"]):
        with pytest.raises(ValueError, match=r"trainer: got .* expected KEY=VALUE"):
            make(trainer=wrong)


def test_what_is_no_setting_of_the_result_is_not_kept(tmp_path):
    config = make(overwrite=True, progress=False)
    config.save(tmp_path / "run.yaml")
    text = (tmp_path / "run.yaml").read_text()
    assert not any(name in text for name in ("overwrite", "resume", "progress"))
    assert TrainConfig.load(tmp_path / "run.yaml") == make()


@pytest.mark.parametrize("name", ["overwrite", "resume"])
def test_a_file_cannot_ask_for_one_start(tmp_path, name):
    path = tmp_path / "run.yaml"
    path.write_text(f"model: m\noutput: o\n{name}: true\n")
    with pytest.raises(ValueError, match=rf"{name}: it belongs to one start of a run.*--{name}"):
        load_config(path)
    path.write_text(f"model: m\noutput: o\n{name}: false\n")
    assert load_config(path) == make()


def test_what_is_required_may_not_be_empty():
    for settings in ({"model": "", "output": "o"}, {"model": "m", "output": ""}):
        with pytest.raises(ValueError, match=r"(model|output): got an empty one; expected a value"):
            TrainConfig(**settings)


def test_what_a_run_keeps_is_read_back_as_it_was():
    for config in (
        TrainConfig(model="m", output="o", propensity_design="hidden", misclick_rate={"copy": 0.1}, progress=False),
        EmbeddingTrainConfig(embeddings="e.safetensors", output="o", hidden_layers="8"),
    ):
        kept = json.loads(json.dumps(config.to_dict()))
        assert saved_config(kept, "train_data.json") == replace(config, progress=True)


def test_each_program_has_settings_of_its_own():
    assert isinstance(load_config(None, embeddings="e", output="o"), EmbeddingTrainConfig)
    assert isinstance(load_config(None, model="m", output="o", embeddings=""), TrainConfig)
    with pytest.raises(ValueError, match=r"epochs: got 4.*has no effect with embeddings"):
        EmbeddingTrainConfig.from_mapping({"embeddings": "e", "output": "o", "epochs": 4})


def test_settings_that_an_earlier_run_saved_are_read(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("model: m\noutput: o\nembeddings: ''\nhidden_layers: auto\npropensity: hidden\nresume: false\n")
    assert load_config(path) == make(propensity_design="hidden")
    path.write_text("model: m\noutput: o\npropensity: hidden\npropensity_design: known\n")
    with pytest.raises(ValueError, match=r"unknown setting 'propensity'; did you mean 'propensity_rows'"):
        load_config(path)


@pytest.mark.parametrize("config", [TrainConfig, EmbeddingTrainConfig])
def test_help_says_every_setting(config: type) -> None:
    text = inspect.getdoc(config)
    settings = text.partition("Args:\n")[2].partition("\n\nRaises:\n")[0].splitlines()
    assert [line.strip().partition(": ")[::2] for line in settings] == [
        (field.name, field.metadata["help"]) for field in fields(config)
    ]
    assert text.index("Args:") < text.index("Raises:") < text.index("Examples:")
