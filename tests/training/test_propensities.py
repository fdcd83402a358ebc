"""Propensities first: fitted to states of the untrained model, held constant in training, kept for other logs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from irm_fast.data.signals import known_logits
from irm_fast.embeddings.embedder import Embedder
from irm_fast.embeddings.text_model import EmbeddedRewardModel
from irm_fast.evaluation.evaluation import evaluate, evaluate_log
from irm_fast.evaluation.log_diagnosis import diagnose_file
from irm_fast.evaluation.propensities import with_propensities
from irm_fast.evaluation.scoring import load, score
from irm_fast.models.heads import FirstPropensity, HiddenPropensity
from irm_fast.models.passes import Passes
from irm_fast.training import propensities, run
from irm_fast.training.run import train_log
from irm_fast.training.trainer import ImplicitTrainer
from tests.training.test_checkpoints import flip
from tests.training.training_cases import Interrupted, largest_difference, train_until, write_log


@pytest.fixture
def fitted(make_log, make_config):
    """A model whose propensities were fitted first, and its settings."""
    config = make_config(propensity_design="auto")
    return train_log(make_log(160), config), config


def test_training_holds_what_the_estimator_fitted(make_log, make_config, monkeypatch):
    seen = {}

    def noting(self, model, inputs, *args, **kwargs):
        seen.update(zip(inputs["row"].tolist(), inputs["propensity"].tolist(), strict=True))
        return compute_loss(self, model, inputs, *args, **kwargs)

    compute_loss = ImplicitTrainer.compute_loss
    monkeypatch.setattr(ImplicitTrainer, "compute_loss", noting)
    config = make_config(propensity_design="auto", epochs=1)
    log, heldout = make_log(160).split(0.25, seed=0)
    result = train_log(log, config, heldout=heldout)
    assert set(seen) == set(range(len(log)))

    model = EmbeddedRewardModel.load(Path(config.output) / "propensities")
    vectors, _ = model.embedder.embed(log.messages)
    predicted = model.propensities(vectors.numpy(), log)  # of later rows: without context those of the fit
    np.testing.assert_allclose([seen[row] for row in range(len(log))], predicted, atol=1e-5)
    assert isinstance(result.model.propensity_design, FirstPropensity)
    assert not list(result.model.propensity_design.parameters())
    assert result.model.spec.estimator == "two-step"
    assert result.model.spec.design == result.design == model.spec.design


def test_states_are_made_within_the_token_budget_of_the_run(make_log, make_config, monkeypatch):
    seen, whole = [], Passes.run

    def stop(*args, **settings):
        raise Interrupted

    def full(*args, **tokens):
        raise torch.OutOfMemoryError("CUDA out of memory")

    log, config = make_log(160), make_config(propensity_design="auto", epochs=1, token_budget=200)
    with monkeypatch.context() as passes, pytest.raises(Interrupted):
        passes.setattr(Passes, "run", lambda self, *args: seen.append(self.token_budget) or whole(self, *args))
        passes.setattr(run, "train_design", stop)
        train_log(log, config)
    assert set(seen) == {200}
    monkeypatch.setattr(Embedder, "_pool", full)
    with pytest.raises(RuntimeError, match=r"rows and \d+ tokens does not fit .* \(--token-budget\) below"):
        train_log(log, replace(config, overwrite=True))


def test_the_saved_folder(fitted, make_log, tmp_path):
    result, config = fitted
    names = {path.name for path in Path(config.output).iterdir()}
    assert {"propensities", "model.safetensors", "irm_fast.json"} <= names
    assert not names & {"checkpoints", "trackers"}
    kept = {path.name for path in (Path(config.output) / "propensities").iterdir()}
    own = {"embedding_model.safetensors", "embedding_model.json", "irm_fast.json", "irm_fast_files.json"}
    assert kept == own  # no second language model
    assert json.loads((Path(config.output) / "irm_fast.json").read_text())["estimator"] == "two-step"
    rewards = score(load(config.output), make_log(20, seed=3).messages)
    np.testing.assert_allclose(rewards, score(result.model, make_log(20, seed=3).messages), atol=1e-6)
    train_log(make_log(), replace(config, overwrite=True, propensity_design="constant"))
    assert not (Path(config.output) / "propensities").exists()


def test_another_log_is_evaluated_by_the_untrained_model(fitted, make_log, tmp_path):
    result, config = fitted
    fresh = make_log(80, seed=5)
    write_log(fresh, tmp_path / "fresh.jsonl")
    found = evaluate(config.output, tmp_path / "fresh.jsonl")
    filled, context = with_propensities(fresh, result.model.spec, config.output)
    assert context == ()
    logit = torch.from_numpy(score(result.model, fresh.messages)).double() + float(result.model.reward_bias.detach())
    g, m = logit.sigmoid(), known_logits(torch.from_numpy(filled.propensity)).double().sigmoid()
    f = torch.from_numpy(fresh.feedback)
    likelihood = g * torch.where(f == 1, m, 1 - m).prod(1) + (1 - g) * (f == 0).all(1)
    assert found["nll"] == pytest.approx(-float(likelihood.log().mean()), rel=1e-5)
    assert diagnose_file(tmp_path / "fresh.jsonl", config.output).kind != "contradicted"
    with pytest.raises(ValueError, match=r"propensity: got none.*with_propensities"):
        evaluate_log(result.model, fresh)


def test_the_untrained_model_has_moved_or_changed(
    make_log, make_config, tiny_model, tmp_path, save_llama, save_tokenizer
):
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    config = replace(make_config(propensity_design="auto", epochs=1), model=str(base))
    train_log(make_log(160), config)
    write_log(make_log(40, seed=5), tmp_path / "fresh.jsonl")
    there = evaluate(config.output, tmp_path / "fresh.jsonl")
    base.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"trained from.*not at hand.*--base.*rated responses"):
        evaluate(config.output, tmp_path / "fresh.jsonl")
    moved = evaluate(config.output, tmp_path / "fresh.jsonl", base=tmp_path / "moved")
    assert moved == there
    other = tmp_path / "other"
    save_llama(other, save_tokenizer(other), seed=3)
    with pytest.raises(ValueError, match=r"not those that made the embeddings"):
        diagnose_file(tmp_path / "fresh.jsonl", config.output, base=other)
    joint = make_config("joint", epochs=1)
    train_log(make_log(), joint)
    with pytest.raises(ValueError, match=r"base: got .*no effect"):
        evaluate(joint.output, tmp_path / "fresh.jsonl", base=other)
    with pytest.raises(ValueError, match=r"base: got .*no effect without a model"):
        diagnose_file(tmp_path / "fresh.jsonl", base=other)


def test_resumed_run_keeps_its_propensities(make_log, make_config, monkeypatch, capsys):
    log = make_log(160)
    whole = train_log(log, make_config("whole", propensity_design="auto", progress=True))
    said = "propensities first: one pass of the untrained model"
    assert said in capsys.readouterr().err
    config = make_config("cut", propensity_design="auto", progress=True)
    train_until(20, log, config)
    monkeypatch.setattr(propensities, "fit_embedded", None)  # neither fitted again
    monkeypatch.setattr(propensities, "write_embeddings", None)  # nor embedded
    capsys.readouterr()
    resumed = train_log(log, replace(config, resume=True))
    assert said not in capsys.readouterr().err
    assert largest_difference(whole, resumed) == 0
    assert resumed.metrics == whole.metrics


@pytest.mark.parametrize("name", ["propensities.safetensors", "propensities/embedding_model.safetensors"])
def test_damaged_propensities_are_fitted_anew(make_log, make_config, name):
    log = make_log(160)
    whole = train_log(log, make_config("whole", propensity_design="auto", epochs=1))
    config = make_config("cut", propensity_design="auto", epochs=1)
    train_until(10, log, config)
    flip(Path(config.output) / "checkpoints" / name)
    with pytest.warns(UserWarning, match=r"fitted first are passed over: .* holds other bytes than were written"):
        resumed = train_log(log, replace(config, resume=True))
    assert largest_difference(whole, resumed) == 0


def test_damaged_states_are_made_anew(make_log, make_config, monkeypatch):
    log = make_log(160)
    whole = train_log(log, make_config("whole", propensity_design="auto", epochs=1))
    config = make_config("cut", propensity_design="auto", epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(propensities, "fit_embedded", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_log(log, config)
    flip(Path(config.output) / "checkpoints" / "states.safetensors")
    with pytest.warns(UserWarning, match=r"states.safetensors is passed over: it holds other numbers"):
        assert largest_difference(whole, train_log(log, replace(config, resume=True))) == 0


def test_interrupted_pass_goes_on(make_log, make_config, monkeypatch):
    """A run that stopped between the pass and the fit reads the states of the pass."""
    log, config = make_log(160), make_config(propensity_design="auto", epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(propensities, "fit_embedded", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_log(log, config)
    monkeypatch.setattr(propensities, "write_embeddings", None)
    assert train_log(log, replace(config, resume=True)).model.spec.estimator == "two-step"


def test_a_bounded_number_of_rows_is_fitted(make_log, make_config, monkeypatch):
    sizes = []
    fit = propensities.fit_embedded
    monkeypatch.setattr(
        propensities, "fit_embedded", lambda log, *args, **kw: sizes.append(len(log)) or fit(log, *args, **kw)
    )
    train_log(make_log(160), make_config(propensity_design="auto", epochs=1, propensity_rows=90))
    assert 80 <= sizes[0] <= 90


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"propensity_design": "hidden"}, FirstPropensity),
        ({"propensity_design": "hidden", "estimator": "joint"}, HiddenPropensity),
        ({"propensity_design": "constant", "estimator": "two-step"}, FirstPropensity),
    ],
)
def test_who_asks_for_it_gets_it(make_log, make_config, settings, kind):
    result = train_log(make_log(160), make_config(epochs=1, **settings))
    assert isinstance(result.model.propensity_design, kind)


def test_few_co_actions_show_nothing(make_log, make_config):
    log = make_log(80)
    log.feedback[log.feedback.all(axis=1), 1] = 0
    with pytest.warns(UserWarning, match=r"fewer than 10 co-actions \(copy 0, share 0\).*constant.*hidden, features"):
        result = train_log(log, make_config(propensity_design="auto", epochs=1))
    assert (result.model.spec.estimator, result.design) == ("joint", "constant")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"estimator": "two-step", "signals": ("copy",), "propensity_design": "constant"}, "copy 0.*'joint'"),
        ({"estimator": "two-step", "rows": 30}, "co-actions: got copy .*larger propensity_rows, or estimator 'joint'"),
        ({"propensity_rows": 20}, "and 20 of 120 rows are read"),
        ({"token_budget": 20, "batch_size": None}, "token_budget"),
        ({"fsdp": True}, "fsdp: one process"),
        ({"attn": "flash_attention_2"}, "flash_attention_2"),
        ({"model": "ADAPTER"}, "adapter"),
    ],
)
def test_what_is_refused_is_refused_before_the_pass(make_log, make_config, monkeypatch, tmp_path, settings, words):
    monkeypatch.setattr(propensities, "write_embeddings", None)
    settings = {"propensity_design": "auto", **settings}
    log = make_log(settings.pop("rows", 160), signals=settings.pop("signals", ("copy", "share")))
    config = make_config(**{name: value for name, value in settings.items() if name != "model"})
    if "model" in settings:
        config = replace(config, model=str(tmp_path / "adapter"))
        (tmp_path / "adapter").mkdir()
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "base"}))
    with pytest.raises(ValueError, match=words):
        train_log(log, config)
    assert not Path(config.output).exists()


def test_one_signal_asks_for_the_assumption(make_log, make_config):
    log = make_log(160, signals=("copy",))
    config = make_config(propensity_design="auto", epochs=1)
    with pytest.raises(
        ValueError, match=r"(?s)'copy' is the only signal.*constant.*features.*known.*hidden.*label"
    ) as error:
        train_log(log, config)
    assert max(map(len, str(error.value).splitlines())) <= 120
    assert not Path(config.output).exists()
    good = np.array([turns[-1]["content"].startswith("good") for turns in log.messages])
    labelled = replace(log, preference=np.where(np.arange(160) < 60, good, -1).astype(np.int8))
    assert train_log(labelled, config).model.spec.estimator == "two-step"  # labels choose
    with pytest.raises(ValueError, match=r"estimator: 'two-step'.*'known'"):
        make_config(estimator="two-step", propensity_design="known")


def test_users_who_act_on_everything_are_left_out(make_log, make_config, monkeypatch):
    log = make_log(600)
    log = replace(log, user_ids=[f"user {row % 20}" for row in range(600)])
    robots = np.arange(600) % 20 < 7
    log.feedback[robots] = 1
    seen = []
    # No need to train
    monkeypatch.setattr(run, "train_design", lambda rows, *given, **how: seen.append(rows.log) or 1 / 0)
    with pytest.warns(UserWarning, match=r"act on over"), pytest.raises(ZeroDivisionError):
        train_log(log, make_config(propensity_design="auto"), heldout=make_log(40, seed=1))
    np.testing.assert_array_equal(seen[0].weight, ~robots)
