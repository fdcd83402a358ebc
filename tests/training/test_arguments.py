"""Arguments of transformers' loop: any that irm-fast does not set itself, and its optimisers."""

import fnmatch
from dataclasses import fields

import pytest
import torch
from transformers import TrainingArguments
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.training.arguments import _OURS, _REFUSED, training_arguments
from irm_fast.training.config import TrainConfig
from irm_fast.training.run import train_log
from tests.training.training_cases import largest_difference


def arguments(tmp_path, **settings):
    config = TrainConfig(model="m", output=str(tmp_path / "out"), **settings)
    return training_arguments(config, tmp_path, evaluate=False)


def test_other_arguments_are_passed_on(tmp_path):
    made = arguments(tmp_path, trainer=["max_grad_norm=0.5", "adam_epsilon=1e-5", "lr_scheduler_type=cosine"])
    assert (made.max_grad_norm, made.adam_epsilon, made.lr_scheduler_type) == (0.5, 1e-5, "cosine")
    assert arguments(tmp_path, optim="adafactor").optim == "adafactor"
    assert arguments(tmp_path).optim == "adamw_torch_fused"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"trainer": ["learning_rate=1"]},
            "learning_rate, which irm-fast sets itself; use the setting learning_rate",
        ),
        ({"trainer": ["bf16=true"]}, "got bf16, which irm-fast sets itself; use the setting precision"),
        ({"trainer": ["max_steps=3"]}, "use the setting epochs"),
        ({"trainer": ["use_cpu=true"]}, "it is part of how irm-fast trains; leave it out"),
        (
            {"trainer": ["push_to_hub=true"]},
            "got push_to_hub, which is not for irm-fast: it would send .*; leave it out",
        ),
        ({"trainer": ["hub_model_id=a/b"]}, "irm-fast uploads nothing"),
        ({"trainer": ["dataloader_num_workers=4"]}, "orders the rows itself, by token_budget"),
        ({"trainer": ["train_sampling_strategy=sequential"]}, "orders the rows itself, by token_budget"),
        ({"trainer": ["data_seed=1"]}, "orders the rows itself, by token_budget, batch_size and seed"),
        ({"trainer": ["label_smoothing_factor=0.1"]}, "the loss of irm-fast is a likelihood"),
        ({"trainer": ["neftune_noise_alpha=5"]}, "the loss of irm-fast is a likelihood"),
        ({"trainer": ["average_tokens_across_devices=false"]}, "divides by the rows of the step"),
        ({"trainer": ["prediction_loss_only=true"]}, "evaluates by the held-out likelihood"),
        ({"trainer": ["eval_delay=2"]}, "evaluates by the held-out likelihood"),
        ({"trainer": ["eval_steps=2"]}, "use the setting eval_steps"),
        ({"trainer": ["do_train=true"]}, "irm-fast does not read it"),
        ({"trainer": ["max_gradnorm=1"]}, "unknown argument 'max_gradnorm'; did you mean 'max_grad_norm'"),
        ({"trainer": ["max_grad_norm=much"]}, "got max_grad_norm='much'; expected float"),
        ({"trainer": ["lr_scheduler_type=step"]}, "got lr_scheduler_type='step'; transformers says"),
        ({"optim": "adamw_8bits"}, "got 'adamw_8bits', which transformers does not know; did you mean 'adamw_8bit'"),
        ({"optim": "lomo"}, "got optim='lomo'; transformers says"),
    ],
)
def test_arguments_that_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **settings)


def test_every_refused_pattern_names_an_argument():
    known = [field.name for field in fields(TrainingArguments)]
    assert [pattern for pattern in _REFUSED if not fnmatch.filter(known, pattern)] == []
    left = [name for name in known if not any(fnmatch.fnmatch(name, pattern) for pattern in (*_OURS, *_REFUSED))]
    assert {"max_grad_norm", "adam_beta2", "lr_scheduler_type", "optim_args", "run_name", "ddp_timeout"} <= set(left)


def test_they_are_refused_before_anything_is_written(make_log, make_config, tmp_path):
    config = make_config(trainer={"bf16": True})
    with pytest.raises(ValueError, match="use the setting precision"):
        train_log(make_log(), config)
    assert not (tmp_path / "out").exists()


def test_a_run_with_another_optimiser(make_log, make_config):
    quick = {"epochs": 1, "validation_fraction": 0}
    plain = train_log(make_log(), make_config("plain", **quick))
    other = train_log(make_log(), make_config("other", optim="adafactor", trainer={"max_grad_norm": 0.1}, **quick))
    assert largest_difference(plain, other) > 1e-4
    assert all(torch.isfinite(parameter).all() for parameter in other.model.parameters())


def test_the_command_line(tmp_path):
    """Options that are given more than once, and a switch of earlier versions."""
    start = ["train", "--model", "m", "--output", str(tmp_path / "out"), "--gradient-checkpointing"]
    given = ["--trainer", "max_grad_norm=1", "--trainer", "bf16=true"]
    path = tmp_path / "run.yaml"
    path.write_text("trainer: {max_grad_norm: 2}\n")
    for more in ([], ["--no-gradient-checkpointing"], ["--config", str(path)]):
        found = CliRunner().invoke(app, [*start, *more])
        assert "data: none given" in found.output  # all settings were read
    found = CliRunner().invoke(app, [*start, *given, "--optim", "adamw_torch", "--gradient-checkpointing", "some"])
    assert "'some' is not one of 'none', 'full', 'selective'" in found.output
