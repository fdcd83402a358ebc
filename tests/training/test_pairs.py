"""Training on pairs beside a log: the loss of a step, what is held out, and what is kept and refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import set_seed

from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.models.tokens import tokenise
from irm_fast.training.config import TrainConfig, load_config
from irm_fast.training.prepare import prepare_run
from irm_fast.training.run import dry_run, train_log
from irm_fast.training.trainer import ImplicitTrainer
from tests.training.training_cases import (
    interrupt,
    largest_difference,
    metrics_of,
    train_until,
    use_sgd,
    write_log,
    write_pairs,
)


def gradient_by_hand(config, log):
    """The gradient of all rows and pairs in one step, sequence by sequence in float64."""
    set_seed(config.seed)
    prepared = prepare_run(log, config)
    model, pairs = ImplicitRewardModel.from_backbone(config.model, prepared.specs[0]), prepared.pairs
    model.start_at((log.feedback == 1).mean(0))
    model = model.double()

    def states(conversations):
        ids, _ = tokenise(model.tokenizer, conversations, 256)
        return torch.stack([model.backbone(torch.from_numpy(i)[None].long()).last_hidden_state[0, -1] for i in ids])

    reward = model.heads.reward(states(log.messages)).squeeze(-1) + model.reward_bias
    g, m = torch.sigmoid(reward), torch.sigmoid(model.propensity_design.bias)
    f = torch.from_numpy(log.feedback)
    likelihood = g * torch.where(f == 1, m, 1 - m).prod(1) + (1 - g) * (f == 0).all(1)
    rows = -(likelihood.log() * torch.from_numpy(log.weight)).sum()
    chosen, rejected = (model.heads.reward(states(part)).squeeze(-1) for part in (pairs.chosen, pairs.rejected))
    won = torch.sigmoid(chosen - rejected - torch.from_numpy(pairs.margin).double())
    if config.pairs_weight is None:
        loss = (rows - won.log().sum()) / (len(log) + len(pairs))
    else:
        loss = rows / len(log) - config.pairs_weight * won.log().mean()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("attn", "weight"), [("auto", 3.0), ("sdpa", 3.0), ("auto", None)])
def test_the_gradient_of_a_step_is_the_sum_by_hand(make_log, make_config, monkeypatch, tmp_path, attn, weight):
    """Seven rows and three pairs in two passes: one mean of the whole step, or one over rows and one over pairs."""
    log = replace(make_log(7), weight=np.linspace(0.5, 2, 7, dtype=np.float32))
    pairs = write_pairs(tmp_path / "pairs.jsonl", ["a", "b", "c"], margin=0.7)
    settings = {"pairs": pairs, "pairs_weight": weight, "epochs": 1, "validation_fraction": 0, "attn": attn}
    config = make_config(batch_size=8, gradient_accumulation=2, **settings)
    seen, training_step = [], ImplicitTrainer.training_step

    def watched(self, model, inputs, *args, **kwargs):
        result = training_step(self, model, inputs, *args, **kwargs)
        gradients = {name: parameter.grad.clone() for name, parameter in self.core.named_parameters()}
        seen.append((len(inputs["row"]), len(inputs["margin"]), gradients))
        return result

    monkeypatch.setattr(ImplicitTrainer, "training_step", watched)
    use_sgd(monkeypatch)
    train_log(log, config)
    assert len(seen) == 2 and sum(rows for rows, *_ in seen) == 13 and sum(pairs for _, pairs, _ in seen) == 3
    want = gradient_by_hand(make_config("again", **settings), log)
    assert want["heads.reward.weight"].norm() > 0.1
    for name, gradient in seen[-1][2].items():
        torch.testing.assert_close(gradient.double(), want[name], rtol=1e-4, atol=1e-6)


def test_held_out_pairs_are_judged(make_log, make_config, tmp_path):
    log = make_log(160)
    pairs = write_pairs(tmp_path / "pairs.jsonl", [f"of pair {i}" for i in range(40)])
    config = make_config(epochs=6, pairs=pairs)
    result = train_log(log, config)
    assert result.pairs == {"training": 30, "held_out": 10}
    accuracies = [entry["eval_pairs_accuracy"] for entry in metrics_of(config) if "eval_pairs_accuracy" in entry]
    assert len(accuracies) == 6 and result.metrics["pairs_accuracy"] in accuracies
    assert result.metrics["pairs_accuracy"] == 1
    record = json.loads((Path(config.output) / "irm_fast.json").read_text())
    assert record["pairs"] == result.pairs and record["metrics"]["pairs_accuracy"] == 1
    assert record["training"]["pairs"] == pairs
    assert list(result.metrics)[-1] == "pairs_accuracy"
    assert len(result.diagnosis.to_dict()) > 0


def test_pairs_are_learned_from(make_log, make_config, tmp_path):
    """Where all responses of the log are silent but a few, the pairs alone order them."""
    log = make_log(48)
    log = replace(log, feedback=np.random.default_rng(0).integers(0, 2, log.feedback.shape).astype(np.int8))
    pairs = write_pairs(tmp_path / "pairs.jsonl", [f"of pair {i}" for i in range(40)])
    with_pairs = train_log(log, make_config("with", epochs=8, pairs=pairs, patience=0))
    assert with_pairs.metrics["pairs_accuracy"] == 1


def test_a_dry_run_counts_pairs(make_log, make_config, tmp_path):
    write_log(make_log(), tmp_path / "log.jsonl")
    settings = {"data": str(tmp_path / "log.jsonl"), "batch_size": 8}
    without, _ = dry_run(make_config(**settings))
    plan, _ = dry_run(make_config(pairs=write_pairs(tmp_path / "pairs.jsonl", map(str, range(100, 120))), **settings))
    assert plan.pairs == {"training": 15, "held_out": 5} and plan.rows == without.rows
    assert plan.tokens > 1.5 * without.tokens and plan.steps > without.steps
    assert plan.heldout_tokens > without.heldout_tokens


@pytest.mark.parametrize("weight", [None, 1.0])
def test_steps_of_pairs_alone(make_log, make_config, tmp_path, weight):
    """A step of one row and steps of one pair: what there is none of adds nothing, not 0 / 0."""
    pairs = write_pairs(tmp_path / "pairs.jsonl", ["a", "b", "c"])
    config = make_config(epochs=1, batch_size=1, validation_fraction=0, pairs=pairs, pairs_weight=weight)
    train_log(make_log(6), config)
    losses = [entry["loss"] for entry in metrics_of(config) if "loss" in entry]
    assert len(losses) == 9 and np.isfinite(losses).all() and sum(loss > 0 for loss in losses) == 9


def test_a_step_of_pairs_alone_is_their_mean(make_log, make_config, monkeypatch, tmp_path):
    """However many they are; the untrained reward is about 0, and so the mean about log 2."""
    losses, compute_loss = [], ImplicitTrainer.compute_loss

    def watched(self, model, inputs, *args, **kwargs):
        loss = compute_loss(self, model, inputs, *args, **kwargs)
        if 2 * len(inputs["margin"]) == len(inputs["row"]):
            losses.append((len(inputs["margin"]), loss.item()))
        return loss

    monkeypatch.setattr(ImplicitTrainer, "compute_loss", watched)
    given = write_pairs(tmp_path / "pairs.jsonl", map(str, range(100, 200)))
    settings = {"epochs": 1, "learning_rate": 1e-6, "head_learning_rate": 1e-6}
    train_log(make_log(4), make_config(batch_size=40, validation_fraction=0, pairs=given, **settings))
    assert len(losses) > 1 and max(count for count, _ in losses) == 20
    assert [loss for _, loss in losses] == pytest.approx([np.log(2)] * len(losses), abs=0.2)


def test_resume_gives_the_uninterrupted_result(make_log, make_config, monkeypatch, tmp_path):
    pairs = write_pairs(tmp_path / "pairs.jsonl", [f"of pair {i}" for i in range(9)])
    settings = {"pairs": pairs, "eval_steps": 4, "epochs": 3}
    whole = train_log(make_log(64), make_config("whole", **settings))
    cut = make_config("cut", **settings)
    train_until(11, make_log(64), cut)
    again = replace(cut, resume=True)
    with pytest.raises(ValueError, match=r"pairs: got ''; the interrupted run in .* has .*pairs\.jsonl"):
        train_log(make_log(64), replace(again, pairs=""))
    write_pairs(tmp_path / "pairs.jsonl", [f"of pair {i}" for i in range(8)])
    with pytest.raises(ValueError, match=r"log has changed.*: 8 pairs instead of 9; bring back"):
        train_log(make_log(64), again)
    write_pairs(tmp_path / "pairs.jsonl", [f"of pair {i}" for i in range(9)], margin=1)
    with pytest.raises(ValueError, match="64 rows and 9 pairs as before, but other content"):
        train_log(make_log(64), again)
    write_pairs(tmp_path / "pairs.jsonl", [f"of pair {i}" for i in range(9)])
    with monkeypatch.context() as patch:
        interrupt(patch, 7)  # would raise if earlier steps were done again
        resumed = train_log(make_log(64), again)
    assert largest_difference(whole, resumed) < 1e-6


def test_what_cannot_be_is_refused(make_log, make_config, tmp_path):
    log, path = make_log(40), tmp_path / "pairs.jsonl"
    _, heldout = log.split(0.25, 0)
    asked = [turns[0]["content"].removeprefix("question ") for turns in heldout.messages]
    write_pairs(path, asked)
    with pytest.raises(ValueError, match=r"pairs: all 10 are of conversations of the held-out part.*--seed"):
        train_log(log, make_config(pairs=str(path)))
    path.write_text(json.dumps({"prompt": "a", "chosen": "b"}) + "\n")
    with pytest.raises(ValueError, match=r"pairs\.jsonl:1: rejected: missing"):
        train_log(log, make_config(pairs=str(path)))
    write_pairs(path, ["very " * 60, "very " * 50])
    with pytest.raises(ValueError, match="overlong: all 2 pairs are longer than 100 tokens"):
        train_log(log, make_config(pairs=str(path), overlong="drop", max_length=100))
    write_pairs(path, ["very " * 60, "short"])
    with pytest.warns(UserWarning, match="1 of 2 pairs are longer than 100 tokens|none of 1 is held out") as given:
        prepared = prepare_run(log, make_config(pairs=str(path), overlong="drop", max_length=100, seed=1))
    assert prepared.counts_of_pairs == {"training": 1} and len(given) == 2
    with pytest.raises(ValueError, match="pairs_weight: 2 has no effect without pairs"):
        TrainConfig(model="m", output="o", pairs_weight=2)
    with pytest.raises(ValueError, match="pairs: got 'p', which has no effect with embeddings; leave it out"):
        load_config(None, output="o", embeddings="e", pairs="p")
    assert not (tmp_path / "out").exists()
