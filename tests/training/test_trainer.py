"""The loop and the main job, on tiny models and a few steps."""

import gc
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from irm_fast.evaluation.evaluation import evaluate_log, evaluate_rated
from irm_fast.evaluation.scoring import load, score
from irm_fast.models import attention
from irm_fast.models.backbone import load_backbone
from irm_fast.models.tokens import encode
from irm_fast.training import run_folder
from irm_fast.training.config import TrainConfig
from irm_fast.training.run import train, train_log
from irm_fast.training.trainer import ImplicitTrainer


@pytest.fixture(scope="module", autouse=True)
def quick():
    """One thread, and no collection of what was imported: accelerate collects garbage before every run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


def parameters(result) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in result.model.parameters()])


def largest_difference(one, other) -> float:
    return float((parameters(one) - parameters(other)).abs().max())


def metrics_of(config) -> list[dict]:
    return [json.loads(line) for line in (Path(config.output) / "metrics.jsonl").read_text().splitlines()]


def test_learns_and_saves(make_log, make_config):
    config = make_config(epochs=12, propensity_design="auto")
    log = make_log(160)
    result = train_log(log, config)
    names = {path.name for path in Path(config.output).iterdir()}
    assert {"model.safetensors", "irm_fast.json", "metrics.jsonl", "train.yaml"} <= names
    assert not names & {"checkpoints", "training_args.bin"}

    assert set(result.designs) == {"constant", "hidden"}
    assert result.metrics["nll"] == result.designs[result.design]
    record = json.loads((Path(config.output) / "irm_fast.json").read_text())
    assert record["designs"] == pytest.approx(dict(result.designs))
    assert record["design"] == result.design
    assert record["training"]["epochs"] == 12

    fresh = make_log(60, seed=5)
    good = np.array([turns[-1]["content"].startswith("good") for turns in fresh.messages])
    rewards = score(load(config.output), fresh.messages)
    assert rewards[good].min() > rewards[~good].max()
    np.testing.assert_allclose(rewards, score(result.model, fresh.messages), atol=1e-6)

    rate = 0.5 * 0.6  # of a log in which half the responses please and 0.6 of the users act
    naive = -2 * (rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert evaluate_log(result.model, fresh)["nll"] < naive - 0.2


def test_eval_nll_is_the_marginal_likelihood(make_log, make_config):
    """Whatever the objective, evaluation in the loop, after it, and by hand agree."""
    config = make_config(objective="stratified", stratification="ema", ema_decay=0.5)
    heldout = make_log(13, seed=1)
    weight = np.linspace(0, 2, 13, dtype=np.float32)
    heldout = replace(heldout, weight=weight)
    result = train_log(make_log(), config, heldout=heldout)
    again = evaluate_log(result.model, heldout, batch_size=4)
    assert again["nll"] == pytest.approx(result.metrics["nll"], rel=1e-5)
    assert again["copy_observed"] == pytest.approx(heldout.feedback[:, 0].mean())

    bias = float(result.model.reward_bias.detach())
    propensity = result.model.propensity_design.bias.detach().double()
    g = torch.sigmoid(torch.from_numpy(score(result.model, heldout.messages)).double() + bias)
    m, f = torch.sigmoid(propensity), torch.from_numpy(heldout.feedback)
    likelihood = g * torch.where(f == 1, m, 1 - m).prod(1) + (1 - g) * (f == 0).all(1)
    expected = -(likelihood.log().numpy() * weight).sum() / weight.sum()
    assert again["nll"] == pytest.approx(expected, rel=1e-5)
    assert again["copy_predicted"] == pytest.approx(float((g * m[0]).mean()), rel=1e-5)


def use_sgd(monkeypatch):
    def create_optimizer(self, model=None):
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        return self.optimizer

    monkeypatch.setattr(ImplicitTrainer, "create_optimizer", create_optimizer)


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
    with path.open("w") as file:
        for name, turns, given in zip(log.ids, log.messages, log.feedback.tolist(), strict=True):
            row = {"id": name, "messages": turns, "feedback": dict(zip(log.signals, given, strict=True))}
            file.write(json.dumps(row) + "\n")
    one = train(make_config("one", data=str(path), batch_size=16))
    two = make_config("two", data=str(path), batch_size=8)
    two.save(tmp_path / "two.yaml")
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "irm_fast", "train"]
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


class Interrupted(Exception):
    pass


def interrupt(monkeypatch, step: int, design: str | None = None):
    """Make training stop, as by a crash, when it is about to do this step."""
    training_step = ImplicitTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == step and design in (None, self.core.spec.design):
            raise Interrupted
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(ImplicitTrainer, "training_step", interrupted)


@pytest.mark.parametrize(
    ("settings", "step", "checkpoint"),  # 6 steps an epoch
    [
        ({}, 10, 6),
        ({"eval_steps": 4}, 11, 8),
        ({"eval_steps": 4, "gradient_accumulation": 2, "batch_size": 4}, 9, 8),
        ({"objective": "stratified", "stratification": "ema"}, 10, 6),
        ({"objective": "stratified", "stratification": "frozen", "eval_steps": 4}, 11, 8),
        ({"objective": "stratified", "stratification": "frozen", "eval_steps": 6}, 8, 6),
        ({"eval_steps": 50}, 3, None),
    ],
)
def test_resume_gives_the_uninterrupted_result(make_log, make_config, monkeypatch, settings, step, checkpoint):
    log = make_log(64)
    settings = {"epochs": 3, **settings}
    whole = train_log(log, make_config("whole", **settings))
    cut = make_config("cut", **settings)
    with monkeypatch.context() as patch:
        interrupt(patch, step)
        with pytest.raises(Interrupted):
            train_log(log, cut)
    with pytest.raises(ValueError, match=r"interrupted run; --resume .* --overwrite"):
        train_log(log, cut)
    with pytest.raises(ValueError, match=r"learning_rate: got 0\.5.*0\.001"):
        train_log(log, replace(cut, resume=True, learning_rate=0.5))
    with monkeypatch.context() as patch:
        if checkpoint is not None:
            interrupt(patch, checkpoint - 1)  # would raise if earlier steps were done again
        resumed = train_log(log, replace(cut, resume=True))
    assert largest_difference(whole, resumed) < 1e-6
    steps = [entry["step"] for entry in metrics_of(cut) if "eval_nll" in entry]
    assert steps == sorted(set(steps))


def test_resume_with_dropout(make_log, make_config, monkeypatch, tmp_path, save_llama, save_tokenizer):
    model = tmp_path / "model"
    save_llama(model, save_tokenizer(model), dropout=0.3)
    whole = train_log(make_log(), replace(make_config("whole"), model=str(model)))
    cut = replace(make_config("cut"), model=str(model))
    with monkeypatch.context() as patch:
        interrupt(patch, 7)
        with pytest.raises(Interrupted):
            train_log(make_log(), cut)
    assert largest_difference(whole, train_log(make_log(), replace(cut, resume=True))) < 1e-6


def test_resume_of_auto_keeps_the_first_design(make_log, make_config, monkeypatch, tmp_path):
    whole = train_log(make_log(), make_config("whole", propensity_design="auto"))
    cut = make_config("cut", propensity_design="auto")
    with monkeypatch.context() as patch:
        interrupt(patch, 6, "hidden")
        with pytest.raises(Interrupted):
            train_log(make_log(), cut)
    with monkeypatch.context() as patch:
        interrupt(patch, 0, "constant")  # raises if that design is trained again
        with pytest.raises(Interrupted):
            copy = shutil.copytree(cut.output, tmp_path / "copy")
            train_log(make_log(), replace(cut, output=copy, overwrite=True))
        resumed = train_log(make_log(), replace(cut, resume=True))
    assert resumed.designs == pytest.approx(dict(whole.designs))
    assert largest_difference(whole, resumed) < 1e-6


def test_output_folder(make_log, make_config, tmp_path):
    config = make_config()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    for settings in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(ValueError, match="not empty"):
            train_log(make_log(), replace(config, **settings))
    assert (tmp_path / "out" / "mine.txt").exists()

    config = make_config("new", epochs=1)
    train_log(make_log(), config)
    for settings in ({}, {"resume": True}):
        with pytest.raises(ValueError, match=r"not empty.*finished.*--overwrite"):
            train_log(make_log(), replace(config, **settings))
    (tmp_path / "new" / "notes.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"holds 'notes\.txt'.*--overwrite does not delete"):
        train_log(make_log(), replace(config, overwrite=True))
    (tmp_path / "new" / "notes.txt").rename(tmp_path / "notes.txt")
    for settings in ({"model": config.output}, {"data": str(tmp_path / "new" / "train.yaml")}):
        with pytest.raises(ValueError, match=rf"holds {next(iter(settings))} "):
            train_log(make_log(), replace(config, overwrite=True, **settings))
    train_log(make_log(), replace(config, overwrite=True))


def test_resume_notices_another_log(make_log, make_config, monkeypatch):
    log, config = make_log(), make_config()
    with monkeypatch.context() as patch:
        interrupt(patch, 6)
        with pytest.raises(Interrupted):
            train_log(log, config)
    again = replace(config, resume=True)
    feedback = log.feedback.copy()
    feedback[0, 0] ^= 1
    for other, text in [
        (make_log(47), "47 rows instead of 48"),
        (replace(log, feedback=feedback), "48 rows as before, but other content"),
        (replace(log, messages=[*log.messages[1:], log.messages[0]]), "other content"),
    ]:
        with pytest.raises(ValueError, match=f"log has changed.*{text}.*--overwrite"):
            train_log(other, again)
    assert train_log(log, again).metrics


def test_resume_finds_the_same_logging_steps(make_log, make_config, monkeypatch):
    """Transformers warns where the steps in the arguments are not those that its checkpoint holds."""
    seen = []
    training_step = ImplicitTrainer.training_step

    def watched(self, *args, **kwargs):
        seen.append((self.args.logging_steps, self.state.logging_steps))
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(ImplicitTrainer, "training_step", watched)
    train_log(make_log(150), make_config(epochs=1, batch_size=1, validation_fraction=0))
    assert set(seen) == {(3, 3)}


def test_parts_without_evidence(make_log, make_config):
    log = make_log(16)
    _, heldout = log.split(0.25, 0)
    in_heldout = np.isin(log.ids, heldout.ids)
    config = make_config(seed=0)
    silent = replace(log, feedback=np.stack([in_heldout, in_heldout], axis=1).astype(np.int8))
    with pytest.raises(ValueError, match=r"no action and no preference in the training part.*--seed"):
        train_log(silent, config)
    with pytest.raises(ValueError, match=r"weight: no row of the held-out part.*--validation-fraction"):
        train_log(replace(log, weight=(~in_heldout).astype(np.float32)), config)
    with pytest.raises(ValueError, match=r"weight: no row of the training part"):
        train_log(replace(log, weight=in_heldout.astype(np.float32)), config)


def test_signal_that_never_acts_is_left_out(make_log, make_config):
    log = make_log(160)
    feedback = log.feedback.copy()
    feedback[:, 0] = 0
    dead = replace(log, feedback=feedback, propensity=np.full(feedback.shape, 0.6, np.float32))
    config = make_config(propensity_design="auto", misclick_rate={"copy": 0.1})
    with pytest.warns(UserWarning, match="copy: never acts"):
        result = train_log(dead, config)
    assert result.design == "constant"
    assert not set(result.designs) - {"constant"}
    assert result.model.spec.signals == ("share",)
    assert result.diagnosis.kind == "not identified"
    with pytest.warns(UserWarning, match="left out copy"):
        assert evaluate_log(result.model, dead)["share_observed"] == pytest.approx(feedback[:, 1].mean())
    with pytest.warns(UserWarning, match="act in the same rows"):
        twice = replace(log, feedback=log.feedback[:, [0, 0]])
        train_log(twice, make_config("twice", epochs=1), heldout=twice)


def test_hidden_must_be_better_beyond_noise(make_log, make_config, monkeypatch):
    from irm_fast.training import run as trainer

    chosen = {}
    for gain, error in [(0.2, 0.1), (0.2, 0.3), (-0.2, 0.1)]:
        monkeypatch.setattr(trainer, "paired_difference", lambda *losses, got=(gain, error): got)
        config = make_config(f"{gain}-{error}", propensity_design="auto", epochs=1)
        chosen[gain, error] = train_log(make_log(), config).design
    assert list(chosen.values()) == ["hidden", "constant", "constant"]


def test_losses_of_the_kept_model(make_log, make_config, monkeypatch):
    """What designs are compared by is the held-out likelihood that is reported."""
    from irm_fast.training import run as trainer

    seen = []
    monkeypatch.setattr(trainer, "paired_difference", lambda *losses: seen.append(losses) or (0.0, 1.0))
    result = train_log(make_log(), make_config(propensity_design="auto"))
    constant, hidden, weight = seen[0]
    assert constant.sum() / weight.sum() == pytest.approx(result.designs["constant"], rel=1e-5)
    assert hidden.sum() / weight.sum() == pytest.approx(result.designs["hidden"], rel=1e-5)


def test_run_that_cannot_start_leaves_nothing(make_log, make_config, tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        train_log(make_log(), replace(make_config(), model=str(tmp_path / "nowhere")))
    assert not (tmp_path / "out").exists()


def test_early_stopping_keeps_the_best(make_log, make_config):
    log = make_log(64)
    noise = np.random.default_rng(0).integers(0, 2, log.feedback.shape).astype(np.int8)
    log = replace(log, feedback=noise)  # nothing to learn: the held-out likelihood soon gets worse
    config = make_config(epochs=40, patience=2, learning_rate=1e-2)
    result = train_log(log, config)
    evaluations = [entry["eval_nll"] for entry in metrics_of(config) if "eval_nll" in entry]
    assert len(evaluations) < 40
    assert int(np.argmin(evaluations)) == len(evaluations) - 3
    assert result.metrics["nll"] == min(evaluations)
    _, heldout = log.split(config.validation_fraction, config.seed)
    assert evaluate_log(result.model, heldout)["nll"] == pytest.approx(min(evaluations), rel=1e-5)


def test_known_propensities(make_log, make_config):
    log = make_log(40)
    with pytest.raises(ValueError, match=r"propensity\.copy.*'row-0'.*known"):
        train_log(log, make_config(propensity_design="known"))
    given = np.full(log.feedback.shape, 0.6, np.float32)
    given[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"propensity\.share.*'row-3'.*1 lack"):
        train_log(replace(log, propensity=given), make_config(propensity_design="known"))
    feedback = log.feedback.copy()
    feedback[3, 1] = -1
    log = replace(log, feedback=feedback, propensity=given)
    assert np.isfinite(train_log(log, make_config(propensity_design="known")).metrics["nll"])


def test_features(make_log, make_config):
    with pytest.raises(ValueError, match="features"):
        train_log(make_log(), make_config(propensity_design="features"))
    log = make_log(signals=("copy",))
    features = np.random.default_rng(0).normal(5, 3, (len(log), 2)).astype(np.float32)
    log = replace(log, features=features, feature_names=("length", "hour"))
    with pytest.warns(UserWarning, match=r"features.*not identified without assuming.*length, hour only"):
        result = train_log(log, make_config(propensity_design="features"))
    swapped = replace(log, features=features[:, ::-1], feature_names=("hour", "length"))
    assert evaluate_log(result.model, swapped) == evaluate_log(result.model, log)
    with pytest.raises(ValueError, match=r"features: the log has none"):
        evaluate_log(result.model, make_log(signals=("copy",)))
    with pytest.raises(ValueError, match=r"signals: the log lacks copy.*has share.*trained on copy"):
        evaluate_log(result.model, make_log(signals=("share",)))


def test_one_signal_with_hidden_propensity_warns(make_log, make_config):
    with pytest.warns(UserWarning, match=r"'hidden'.*not identified without assuming that the fit split"):
        train_log(make_log(signals=("copy",)), make_config(propensity_design="hidden", epochs=1))


def test_explicit_preferences_only(make_log, make_config):
    log = make_log(160, signals=())
    result = train_log(log, make_config(epochs=10, propensity_design="auto"))
    assert result.design == "constant"
    assert set(result.metrics) == {"nll"}
    assert result.metrics["nll"] < 0.3
    from irm_fast.data.read import Rated

    rated = Rated(log.ids, log.messages, log.preference.astype(float), log.preference, np.full(160, -1))
    assert evaluate_rated(result.model, rated)["auroc"] > 0.99


def test_misclicks(make_log, make_config):
    log = replace(make_log(), signals=("copy", "dislike"), polarity=(1, -1))
    with pytest.raises(ValueError, match=r"row 'row-\d+' contradicts itself"):
        train_log(log, make_config())
    with pytest.raises(ValueError, match=r"misclick_rate: no signal 'clik'.*copy, dislike"):
        train_log(log, make_config(misclick_rate={"clik": 0.1}))
    result = train_log(log, make_config(misclick_rate={"copy": 0.1}))
    assert result.model.spec.misclick_rate == (0.1, 0.0)
    assert np.isfinite(result.metrics["nll"])


def test_precision_and_checkpointing(make_log, make_config):
    plain = train_log(make_log(), make_config("plain"))
    saving = train_log(make_log(), make_config("saving", gradient_checkpointing=True))
    assert largest_difference(plain, saving) < 1e-6
    low = train_log(make_log(), make_config("low", precision="bfloat16"))
    assert {p.dtype for p in low.model.parameters()} == {torch.float32}
    assert largest_difference(plain, low) > 1e-6
    rewards = score(low.model, make_log(5).messages)  # no autocast is left behind
    again = score(load(make_config("low").output), make_log(5).messages)
    np.testing.assert_allclose(again, rewards, atol=1e-6)


def test_several_gpus_in_one_process_are_refused(make_log, make_config, monkeypatch):
    from transformers import TrainingArguments

    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(RuntimeError, match="torchrun"):
        train_log(make_log(), make_config())


def test_divergence_is_an_error(make_log, make_config):
    with pytest.raises(RuntimeError, match="diverged"):
        train_log(make_log(), make_config(learning_rate=1e30))


def test_overlong_rows_are_truncated_or_dropped(make_log, make_config):
    log = make_log(60)
    _, tokenizer = load_backbone(make_config().model)
    lengths = np.array([len(row) for row in encode(tokenizer, log.messages, 1000)[0]])
    limit = int(np.quantile(lengths, 0.7))
    settings = {"epochs": 1, "max_length": limit}
    cut = train_log(log, make_config("cut", **settings))
    assert (cut.truncated > 0, cut.dropped) == (True, 0)
    dropped = train_log(log, make_config("dropped", overlong="drop", **settings))
    assert (dropped.truncated, dropped.dropped) == (0, (lengths > limit).sum())
    record = json.loads((Path(make_config("dropped").output) / "irm_fast.json").read_text())
    assert record["dropped"] == dropped.dropped
    kept = train_log(log.subset(np.flatnonzero(lengths <= limit)), make_config("kept", **settings))
    assert largest_difference(dropped, kept) == 0
    with pytest.raises(ValueError, match=r"overlong: all 60 rows are longer than 3 tokens.*max_length"):
        train_log(log, make_config("none", overlong="drop", max_length=3))


def test_token_budget(make_log, make_config):
    with pytest.raises(ValueError, match=r"token_budget: got 20; the longest row has \d+ tokens"):
        train_log(make_log(), make_config(batch_size=None, token_budget=20))
    assert not any(path.is_file() for path in Path(make_config().output).rglob("*"))
    result = train_log(make_log(), make_config(batch_size=None, token_budget=400))
    entries = [entry for entry in metrics_of(make_config()) if "loss" in entry]
    assert {"examples_per_second", "tokens_per_second", "non_padding"} <= entries[0].keys()
    assert result.throughput["non_padding"] == 1
    assert result.throughput["tokens_per_second"] > 10 * result.throughput["examples_per_second"]
    padded = train_log(make_log(), make_config("padded", batch_size=None, token_budget=400, attn="sdpa"))
    assert 0.4 < padded.throughput["non_padding"] < 1


def test_padding_does_not_change_the_steps_of_one_batch(make_log, make_config, monkeypatch):
    """All rows in every step: in whatever form and order, the same loss and gradient."""
    use_sgd(monkeypatch)
    settings = {"batch_size": 48, "validation_fraction": 0, "propensity_design": "hidden"}
    packed = train_log(make_log(), make_config("packed", **settings))
    for attn in ("sdpa", "eager"):
        assert largest_difference(packed, train_log(make_log(), make_config(attn, attn=attn, **settings))) < 1e-6


def test_compiled_backbone(make_log, make_config, monkeypatch):
    use_sgd(monkeypatch)
    settings = {"epochs": 1, "batch_size": 24, "validation_fraction": 0, "attn": "sdpa"}
    plain = train_log(make_log(), make_config("plain", **settings))
    compiled = train_log(make_log(), make_config("compiled", compile=True, **settings))
    assert largest_difference(plain, compiled) < 1e-6
    rewards = [score(result.model, make_log(3).messages) for result in (plain, compiled)]
    np.testing.assert_allclose(*rewards, atol=1e-6)


def test_what_cannot_be_had_is_said_before_anything_is_written(make_log, make_config):
    with pytest.raises(ValueError, match=r"attn: not available: flash_attention_2: its package is not installed"):
        train_log(make_log(), make_config(attn="flash_attention_2"))
    with pytest.raises(ValueError, match=r"fsdp: one process has nothing to shard over; expected several"):
        train_log(make_log(), make_config(fsdp=True))
    assert not any(path.is_file() for path in Path(make_config().output).rglob("*"))


def test_resume_takes_the_rows_in_the_same_order(make_log, make_config, monkeypatch):
    """Also where another order would have as many steps."""
    config = make_config(eval_steps=4)
    with monkeypatch.context() as patch:
        interrupt(patch, 6)
        with pytest.raises(Interrupted):
            train_log(make_log(), config)
    for name, value, message in [
        ("rows_per_pass", 16, "steps: got 3; the interrupted run had 5"),
        ("seed", 1, r"order: got \d+; the interrupted run had \d+"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(run_folder, "_NO_RESULT", {*run_folder._NO_RESULT, "seed"})
            if name == "rows_per_pass":
                patch.setattr(TrainConfig, name, value)
            other = replace(config, resume=True, **({} if name == "rows_per_pass" else {name: value}))
            with pytest.raises(ValueError, match=f"resume: {message}"):
                train_log(make_log(), other)
    with monkeypatch.context() as patch:
        patch.setattr(attention, "obstacle", lambda name, *args: None if name == "sdpa" else "not here")
        with pytest.raises(ValueError, match=r"resume: rows: got padded; the interrupted run had packed"):
            train_log(make_log(), replace(config, resume=True))
    assert train_log(make_log(), replace(config, resume=True)).metrics


def test_held_out_rows_must_fit_the_budget_too(make_log, make_config):
    long = make_log(4)
    long.messages[0][-1]["content"] = "good " * 60
    with pytest.raises(ValueError, match=r"token_budget: got 200; the longest row has 256 tokens"):
        train_log(make_log(), make_config(batch_size=None, token_budget=200, max_length=500), heldout=long)
    assert not any(path.is_file() for path in Path(make_config().output).rglob("*"))
    config = make_config(batch_size=None, token_budget=200, max_length=200, overlong="drop")
    assert train_log(make_log(), config, heldout=long).metrics  # the folder counts as new


def test_signals_of_dropped_rows_alone_are_left_out(make_log, make_config):
    log = make_log(60)
    _, tokenizer = load_backbone(make_config().model)
    lengths = np.array([len(row) for row in encode(tokenizer, log.messages, 1000)[0]])
    limit = int(np.quantile(lengths, 0.7))
    log.feedback[lengths <= limit, 1] = 0
    with pytest.warns(UserWarning, match="share: never acts"):
        result = train_log(log, make_config(epochs=1, max_length=limit, overlong="drop"))
    assert result.model.spec.signals == ("copy",)
