"""What a training step computes does not depend on how its rows come: batches, processes, padding, precision."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from irm_fast.evaluation.scoring import load, score
from irm_fast.training.run import train, train_log
from tests.training.training_cases import largest_difference, metrics_of, parameters, use_sgd, write_log


@pytest.mark.parametrize("rows", [48, 45])  # the second leaves a step of 13 rows, in batches of 8 and 5
def test_gradient_accumulation(make_log, make_config, monkeypatch, rows):
    use_sgd(monkeypatch)
    log, quick = make_log(rows), {"epochs": 1, "validation_fraction": 0}
    whole = train_log(log, make_config("whole", batch_size=16, **quick))
    halves = train_log(log, make_config("halves", batch_size=8, gradient_accumulation=2, **quick))
    assert largest_difference(whole, halves) < 1e-6
    fewer = train_log(log.subset(np.arange(1, rows)), make_config("fewer", batch_size=16, **quick))
    assert largest_difference(whole, fewer) > 1e-3  # one row more or less can be told


def test_two_processes_give_the_result_of_one(make_log, make_config, tmp_path):
    """Sums over ranks, the shared rows of a step, and one writer of the output folder."""
    log = make_log(64)
    path = tmp_path / "log.jsonl"
    write_log(log, path)
    one = train(make_config("one", data=str(path), batch_size=16))
    two = make_config("two", data=str(path), batch_size=8)
    two.save(tmp_path / "two.yaml")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "irm_fast", "train"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command, "--config", tmp_path / "two.yaml"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote") == 1
    parts = load(two.output).parameters()
    flat = torch.cat([parameter.detach().flatten() for parameter in parts])
    assert float((flat - parameters(one)).abs().max()) < 1e-5
    for entry, expected in zip(metrics_of(two), metrics_of(make_config("one")), strict=True):
        for name in {"loss", "grad_norm", "eval_nll"} & entry.keys():  # Adam alone would hide a wrong scale
            assert entry[name] == pytest.approx(expected[name], rel=1e-4)


def test_stratified_by_current_logits_is_the_marginal_form(make_log, make_config, monkeypatch):
    use_sgd(monkeypatch)
    marginal = train_log(make_log(), make_config("marginal", propensity_design="hidden"))
    stratified = train_log(make_log(), make_config("stratified", propensity_design="hidden", objective="stratified"))
    assert largest_difference(marginal, stratified) < 1e-5


def test_stratification_models_differ(make_log, make_config):
    def run(kind):
        config = make_config(kind, objective="stratified", stratification=kind, ema_decay=0.9)
        return train_log(make_log(), config)

    current, ema, frozen = run("current"), run("ema"), run("frozen")
    for one, other in [(current, ema), (current, frozen), (ema, frozen)]:
        assert largest_difference(one, other) > 1e-4


def test_precision_and_checkpointing(make_log, make_config):
    plain = train_log(make_log(), make_config("plain"))
    saving = train_log(make_log(), make_config("saving", gradient_checkpointing="full"))
    assert largest_difference(plain, saving) < 1e-6
    low = train_log(make_log(), make_config("low", precision="bfloat16"))
    assert {p.dtype for p in low.model.parameters()} == {torch.float32}
    assert largest_difference(plain, low) > 1e-6
    rewards = score(low.model, make_log(5).messages)  # no autocast is left behind
    again = score(load(make_config("low").output), make_log(5).messages)
    np.testing.assert_allclose(again, rewards, atol=1e-6)


def test_a_configuration_of_accelerate_that_casts_by_operation_is_refused(make_log, make_config, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match=r"mixed_precision 'bf16'; expected 'no' .* --precision decides"):
        train_log(make_log(), make_config(precision="bfloat16"))


def test_padding_does_not_change_the_steps_of_one_batch(make_log, make_config, monkeypatch):
    """All rows in every step: in whatever form and order, the same loss and gradient."""
    use_sgd(monkeypatch)
    settings = {"batch_size": 48, "validation_fraction": 0, "propensity_design": "hidden"}
    packed = train_log(make_log(), make_config("packed", **settings))
    for attn in ("sdpa", "eager"):
        assert largest_difference(packed, train_log(make_log(), make_config(attn, attn=attn, **settings))) < 1e-6


def test_compiled_backbone(make_log, make_config, monkeypatch):
    use_sgd(monkeypatch)
    settings = {"batch_size": 48, "validation_fraction": 0, "attn": "sdpa"}  # of one shape: each is compiled anew
    plain = train_log(make_log(), make_config("plain", **settings))
    compiled = train_log(make_log(), make_config("compiled", compile=True, **settings))
    assert largest_difference(plain, compiled) < 1e-6
    rewards = [score(result.model, make_log(3).messages) for result in (plain, compiled)]
    np.testing.assert_allclose(*rewards, atol=1e-6)
