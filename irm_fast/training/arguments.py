"""The arguments of transformers' loop: those that our settings make, and any others that are wanted."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from irm_fast.training.config import TrainConfig

# Arguments that are made of our settings, or that would contradict how the loop packs, divides and saves.
_OURS = {
    "output_dir": "output",
    "num_train_epochs": "epochs",
    "max_steps": "epochs",
    "per_device_train_batch_size": "batch_size or token_budget",
    "per_device_eval_batch_size": "batch_size or token_budget",
    "auto_find_batch_size": "batch_size or token_budget",
    "gradient_accumulation_steps": "gradient_accumulation",
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "warmup_steps": "warmup_ratio",
    "warmup_ratio": "warmup_ratio",
    "bf16": "precision",
    "fp16": "precision",
    "bf16_full_eval": "precision",
    "fp16_full_eval": "precision",
    "seed": "seed",
    "eval_strategy": "eval_steps",
    "eval_steps": "eval_steps",
    "save_strategy": "eval_steps",
    "save_steps": "save_steps",
    "torch_compile": "compile",
    "torch_compile_backend": "compile",
    "torch_compile_mode": "compile",
    "use_liger_kernel": "liger",
    "liger_kernel_config": "liger",
    "fsdp": "fsdp",
    "fsdp_config": "fsdp",
    "gradient_checkpointing": "gradient_checkpointing",
    "gradient_checkpointing_kwargs": "gradient_checkpointing",
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing",
    "optim": "optim",
    "disable_tqdm": "progress",
    "report_to": "report_to",
    "resume_from_checkpoint": "resume",
    **dict.fromkeys(("use_cpu", "deepspeed", "parallelism_config", "accelerator_config", "distributed_config")),
    **dict.fromkeys(("save_total_limit", "save_only_model", "ignore_data_skip", "remove_unused_columns")),
    **dict.fromkeys(("load_best_model_at_end", "metric_for_best_model", "greater_is_better")),
    **dict.fromkeys(("logging_strategy", "logging_steps", "logging_nan_inf_filter")),
    **dict.fromkeys(("ddp_find_unused_parameters", "dataloader_pin_memory", "dataloader_drop_last")),
}

# Arguments that would have no effect, or a bad one, by patterns of their names, with the reason.
_ORDER = "irm-fast packs and orders the rows itself, by token_budget, batch_size and seed"
_LOSS = "the loss of irm-fast is a likelihood of rows of which several share a pack"
_JUDGEMENT = "irm-fast evaluates by the held-out likelihood, as often as it makes a checkpoint: eval_steps"
_REFUSED = {
    **dict.fromkeys(("push_to_hub", "hub_*"), "it would send checkpoints to the hub, and irm-fast uploads nothing"),
    **dict.fromkeys(("dataloader_*", "train_sampling_strategy", "length_column_name", "data_seed"), _ORDER),
    **dict.fromkeys(("label_smoothing_factor", "neftune_noise_alpha", "label_names"), _LOSS),
    "average_tokens_across_devices": "irm-fast divides by the rows of the step on all devices",
    **dict.fromkeys(("eval_*", "prediction_loss_only", "include_for_metrics", "batch_eval_metrics"), _JUDGEMENT),
    "do_*": "transformers leaves it to scripts, and irm-fast does not read it",
    "use_cache": "training keeps no cache of keys and values",
    "save_on_each_node": "all nodes share the output folder, and one process writes what belongs to all",
    "restore_callback_states_from_checkpoint": "--resume restores what irm-fast needs",
    "local_rank": "torchrun or accelerate sets it",
}


def training_arguments(config: TrainConfig, folder: Path, *, evaluate: bool) -> TrainingArguments:
    """The arguments of transformers' loop.

    Args:
        config: The settings of the run.
        folder: The folder for checkpoints.
        evaluate: Whether there is a held-out part, by which the best checkpoint is chosen.

    Raises:
        ValueError: Accelerate is configured for mixed precision, the optimiser or an argument of `trainer` is unknown
            or not available, or an argument is one that the settings make, or has no effect or a bad one.
    """
    others = _others(config.trainer or {})
    if config.optim is not None:
        others["optim"] = _optimizer(config.optim)
    try:
        arguments = TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.rows_per_pass or 1,  # without effect: `PackSampler` decides
            gradient_accumulation_steps=config.gradient_accumulation,
            learning_rate=config.peak_learning_rate,
            weight_decay=config.weight_decay,
            warmup_steps=config.warmup_ratio,
            use_cpu=not torch.accelerator.is_available(),
            seed=config.seed,
            logging_nan_inf_filter=False,  # a loss that is not a number must show
            remove_unused_columns=False,
            accelerator_config={  # packs come in whole rounds
                "even_batches": False,
                "non_blocking": torch.accelerator.is_available(),
            },
            fsdp=config.fsdp or None,  # type: ignore[arg-type]
            fsdp_config={"state_dict_type": "SHARDED_STATE_DICT"} if config.fsdp else None,  # each process its own
            ddp_find_unused_parameters=False,  # every parameter is used in every step
            dataloader_pin_memory=torch.accelerator.is_available(),
            disable_tqdm=True,  # `TrainingProgress` says how far it is
            report_to=config.report_to,
            **_checkpoints(config, evaluate=evaluate),
            **others,
        )
        if config.optim is not None:
            Trainer.get_optimizer_cls_and_kwargs(arguments)
    except (ValueError, TypeError, ImportError, AttributeError) as error:
        if not others:
            raise
        wanted = ", ".join(f"{name}={value!r}" for name, value in others.items())
        raise ValueError(f"trainer, optim: got {wanted}; transformers says: {error}") from error
    if arguments.mixed_precision != "no":  # by accelerate launch: casts by operation, on top of ours by layer
        raise ValueError(
            f"accelerate: got mixed_precision {arguments.mixed_precision!r}; expected 'no' in its configuration: "
            "--precision decides"
        )
    return arguments


def _checkpoints(config: TrainConfig, *, evaluate: bool) -> dict[str, Any]:
    """The arguments of when checkpoints are made and judged, and which is kept."""
    interval = "epoch" if config.eval_steps is None else "steps"
    steps = config.eval_steps or 500  # transformers' default, without effect where the interval is an epoch
    return {
        "eval_strategy": interval if evaluate else "no",
        "eval_steps": steps,
        "save_strategy": interval,
        "save_steps": steps,
        "load_best_model_at_end": evaluate,
        "metric_for_best_model": "eval_nll" if evaluate else None,
        "greater_is_better": False if evaluate else None,
    }


def _optimizer(name: str) -> str:
    """The name of an optimiser, if transformers knows it.

    Raises:
        ValueError: It does not.
    """
    known = [str(member.value) for member in OptimizerNames]
    if name in known:
        return name
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
    raise ValueError(f"optim: got {name!r}, which transformers does not know; {hint}")


def _others(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that none of our settings makes, numbers as numbers: YAML reads `1e-5` as text.

    Raises:
        ValueError: An argument is one of ours, or has no effect or a bad one, or is unknown, or of another type.
    """
    known = {field.name: getattr(field.type, "__name__", str(field.type)) for field in fields(TrainingArguments)}
    result = dict(given)
    for name, value in given.items():
        if name in _OURS:
            use = f"use the setting {_OURS[name]}" if _OURS[name] else "it is part of how irm-fast trains; leave it out"
            raise ValueError(f"trainer: got {name}, which irm-fast sets itself; {use}")
        if reasons := [reason for pattern, reason in _REFUSED.items() if fnmatchcase(name, pattern)]:
            raise ValueError(f"trainer: got {name}, which is not for irm-fast: {reasons[0]}; leave it out")
        if name not in known:
            close = difflib.get_close_matches(name, set(known) - set(_OURS), n=1)
            hint = f"did you mean {close[0]!r}?" if close else "see transformers.TrainingArguments"
            raise ValueError(f"trainer: unknown argument {name!r}; {hint}")
        if isinstance(value, str) and "str" not in known[name]:
            try:
                result[name] = float(value) if "float" in known[name] else int(value)
            except ValueError:
                raise ValueError(f"trainer: got {name}={value!r}; expected {known[name]}") from None
    return result
