"""The methods of others that we put ours in the place of are there, and are called.

They have no promise of their libraries: where this test fails, read what has taken their place before the upper bound
in pyproject.toml is raised.
"""

from __future__ import annotations

import inspect
import re
from importlib.metadata import requires

from accelerate import accelerator
from transformers import Trainer

from irm_fast.training.trainer import ImplicitTrainer

HOOKS = {
    *("compute_loss", "create_optimizer", "evaluate", "evaluation_loop", "get_batch_samples", "get_eval_dataloader"),
    *("get_train_dataloader", "log", "_get_grad_norm", "_init_training_state", "_load_best_model"),
    *("_load_from_checkpoint", "_maybe_log_save_evaluate", "_prepare_for_training", "_run_epoch", "_save"),
    "_save_checkpoint",
}
OWN = {  # which transformers must not have, too
    *("_bytes_to_save", "_check_room", "_loader", "_stratification"),
    *("check_reward_varies", "heldout_predictions", "what_is_trained"),
}


def test_every_method_is_a_hook_or_our_own() -> None:
    ours = [kind for kind in ImplicitTrainer.__mro__ if kind.__module__.startswith("irm_fast.")]
    methods = {name for kind in ours for name, value in vars(kind).items() if inspect.isfunction(value)} - {"__init__"}
    assert {name for name in methods if hasattr(Trainer, name)} == HOOKS
    assert {name for name in methods if not hasattr(Trainer, name)} == OWN


def test_transformers_calls_every_hook() -> None:
    source = inspect.getsource(inspect.getmodule(Trainer))
    called = set(re.findall(r"self\.(\w+)\(", source))
    assert not HOOKS - called


def test_accelerate_shards_by_the_function_that_is_replaced() -> None:
    assert callable(accelerator.fsdp2_prepare_model)
    assert "fsdp2_prepare_model(" in inspect.getsource(accelerator.Accelerator)


def test_transformers_has_an_upper_bound() -> None:
    [text] = [text for text in requires("irm-fast") or [] if text.startswith("transformers")]
    assert re.search(r"<6\b", text)
