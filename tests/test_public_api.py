"""The public API is frozen: a renamed or vanished name is a decision. Later changes extend the tables on purpose."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import irm_fast

LOSS = "preference polarity misclick_rate stratification weight reduction normalizer return_groups check_values backend"
NAMES = {  # name: the parameters of a function, "" for what is none
    "Diagnosis": "",
    "EmbeddingRewardModel": (
        "hidden_layers propensity_design estimator polarity misclick_rate after labels_ignorable contradictions "
        "n_folds batch_size learning_rate weight_decay max_epochs patience propensity_sd device random_state verbose"
    ),
    "EmbeddingTrainConfig": "",
    "ImplicitRMLoss": "polarity misclick_rate reduction backend",
    "Log": "",
    "SignalHeads": "hidden_size signals propensity_design rates",
    "TrainConfig": "",
    "backends": "",
    "baselines": "",
    "diagnose": (
        "feedback propensity_design signals polarity misclick_rate reward_logits propensity_logits preference "
        "labels_ignorable weight users fold_rewards feature_names propensity sessions times acted_at segments context "
        "uncorrected_mean misclick_sensitivity mean_error"
    ),
    "evaluate": "model_dir data batch_size token_budget precision base declared distributed progress",
    "hf": "",
    "implicit_rm_loss": f"reward_logits propensity_logits feedback {LOSS}",
    "implicit_scorer": "",
    "linear_implicit_rm_loss": (
        f"hidden reward_weight feedback reward_bias propensity_weight propensity_bias propensity_logits {LOSS}"
    ),
    "load": "directory precision",
    "nuisances": "",
    "read_log": (
        "source absent null polarity signals counts map misclick drop_contradictions on_error max_errors quarantine "
        "fold_system join_turns"
    ),
    "reference": "",
    "score": "model conversations batch_size token_budget lower distributed",
    "stratify": "reward_logits propensity_logits feedback preference polarity misclick_rate",
    "train": "config",
    "train_log": "log config heldout",
}
BASELINES = (
    "causalrm_loss doubly_robust_loss ips_loss naive_loss nnpu_loss pointwise_loss recrec_loss sar_em_loss upu_loss"
)


def test_the_package_shows_its_public_names_alone() -> None:
    assert sorted(irm_fast.__all__) == sorted(NAMES)
    assert sorted(dir(irm_fast)) == sorted([*NAMES, "__version__"])
    assert sorted(irm_fast.baselines.__all__) == BASELINES.split()
    assert sorted(irm_fast.hf.__all__) == ["compute_loss_func", "pack_labels"]


def test_what_helps_a_training_loop_takes_what_it_took() -> None:
    for function, parameters in {
        irm_fast.hf.compute_loss_func: "columns polarity misclick_rate backend",
        irm_fast.hf.pack_labels: "feedback preference weight",
        irm_fast.SignalHeads.start_at: "self feedback",
        irm_fast.SignalHeads.parameter_groups: "self lr model scalar_lr",
        irm_fast.SignalHeads.loss: "self hidden feedback options",
    }.items():
        assert list(inspect.signature(function).parameters) == parameters.split()


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_importable_and_takes_what_it_took(name: str) -> None:
    value = getattr(irm_fast, name)
    assert value.__doc__
    if NAMES[name]:
        assert list(inspect.signature(value).parameters) == NAMES[name].split()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'los'"):
        irm_fast.los  # noqa: B018


@pytest.mark.parametrize("module", ["irm_fast", "irm_fast.cli", "irm_fast.training.config", "irm_fast.data.read"])
def test_what_an_import_takes(module: str) -> None:
    heavy = "torch transformers datasets accelerate sklearn scipy pyarrow triton"
    code = f"import sys, {module}; print(*set({heavy.split()!r}) & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
