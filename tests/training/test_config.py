"""Settings: conversion, checks, YAML."""

import pytest

from irm_fast.training.config import TrainConfig


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
        ({"validation_fraction": 1.0}, ["validation_fraction", "[0, 1)"]),
        ({"misclick_rate": {"copy": 1.0}}, ["misclick_rate", "[0, 1)"]),
        ({"polarity": {"copy": 2}}, ["polarity", "1 or -1"]),
        ({"polarity": "copy"}, ["polarity", "NAME=1"]),
        ({"propensity_design": "hiden"}, ["propensity_design", "'hiden'", "hidden"]),
        ({"precision": "float16"}, ["precision", "bfloat16"]),
        ({"resume": "yes"}, ["resume", "true or false"]),
        ({"data": 3}, ["data", "text"]),
        ({"stratification": "ema"}, ["stratification", "'ema'", "stratified"]),
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
