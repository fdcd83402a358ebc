"""The loop: transformers.Trainer under the implicit loss, with held-out likelihood as its judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments

from irm_fast.batches import MODEL_INPUTS, Collator, LengthGroupedSampler
from irm_fast.config import TrainConfig
from irm_fast.evaluation import action_rates, heldout_metrics, heldout_step
from irm_fast.functional import implicit_rm_loss
from irm_fast.model import ImplicitRewardModel
from irm_fast.run_folder import read_metrics, write_metrics

if TYPE_CHECKING:
    from datasets import Dataset

STRATIFICATION_FILE = "stratification.safetensors"


def training_arguments(config: TrainConfig, folder: Path, *, evaluate: bool) -> TrainingArguments:
    """The settings of transformers' loop; its checkpoints go to `folder`."""
    interval = "epoch" if config.eval_steps is None else "steps"
    steps = config.eval_steps or 500  # transformers' default, without effect where the interval is an epoch
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_ratio,
        bf16=config.precision == "bfloat16",
        use_cpu=not torch.accelerator.is_available(),
        seed=config.seed,
        eval_strategy=interval if evaluate else "no",
        eval_steps=steps,
        save_strategy=interval,
        save_steps=steps,
        save_total_limit=1,
        load_best_model_at_end=evaluate,
        metric_for_best_model="eval_nll" if evaluate else None,
        greater_is_better=False if evaluate else None,
        logging_nan_inf_filter=False,  # a loss that is not a number must show
        label_names=["feedback"],
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,  # every parameter is used in every step
        dataloader_pin_memory=torch.accelerator.is_available(),
        disable_tqdm=not config.progress,
        report_to=config.report_to,
    )


class ImplicitTrainer(Trainer):
    """transformers.Trainer under `implicit_rm_loss`.

    The loss is the sum over rows divided by the rows of the whole optimiser step, over micro-batches and
    ranks. Evaluation reports the keys of `heldout_metrics`, always of the marginal form: a likelihood.

    train_dataset, eval_dataset: as `batches.as_dataset` makes them.

    Raises:
        RuntimeError: one process sees several GPUs (`nn.DataParallel` would split batches and their mean).
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: ImplicitRewardModel,
        config: TrainConfig,
        args: TrainingArguments,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        if args.n_gpu > 1:
            raise RuntimeError(
                f"{args.n_gpu} GPUs in one process: start one process each, "
                f"torchrun --nproc-per-node {args.n_gpu} -m irm_fast train ..., or set CUDA_VISIBLE_DEVICES=0"
            )
        step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        # About fifty entries. As a share of all steps, transformers would warn of it whenever a run is resumed.
        args.logging_steps = max(1, round(0.02 * args.num_train_epochs * len(train_dataset) / step))
        super().__init__(
            model,
            args,
            data_collator=Collator(model.tokenizer.pad_token_id),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            compute_metrics=self._heldout_metrics,
            callbacks=callbacks,
        )
        self.core, self.config = model, config
        self.lengths = list(train_dataset["length"])
        self.stratifier: StratificationModel | None = None
        if config.stratification != "current":
            self.stratifier = StratificationModel(model, config)
            self.add_callback(self.stratifier)

    def compute_loss(  # type: ignore[override]
        self,
        model: Any,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        arguments = {name: inputs[name] for name in MODEL_INPUTS if name in inputs}
        reward, propensity = model(**arguments)
        loss = implicit_rm_loss(
            reward,
            propensity,
            inputs["feedback"],
            preference=inputs["preference"],
            weight=inputs["weight"],
            stratification=self._stratification(arguments, reward, propensity),
            normalizer=num_items_in_batch,
            **self.core.evidence,
        )
        return (loss, {"reward": reward, "propensity": propensity}) if return_outputs else loss

    def _stratification(
        self, arguments: Mapping[str, Tensor], reward: Tensor, propensity: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Logits for the posterior of the stratified form; None for the marginal form."""
        if self.config.objective == "marginal":
            return None
        if self.stratifier is None:
            return reward.detach(), propensity.detach()
        with torch.no_grad(), self.accelerator.autocast():
            return self.stratifier.average(**arguments)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor]:
        """The micro-batches of one optimiser step, and the rows in it for each rank.

        Gradients are averaged over ranks: each divides its sum by the mean number of rows, not by the total.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        rows = torch.tensor(float(sum(len(batch["feedback"]) for batch in batches)), device=device)
        return batches, self.accelerator.reduce(rows, reduction="mean")

    def prediction_step(  # type: ignore[override]
        self, model: Any, inputs: Mapping[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, tuple[Tensor, ...], Tensor]:
        inputs = self._prepare_inputs(dict(inputs))
        with torch.no_grad():
            loss, logits = heldout_step(model, self.core, inputs)
        return None, (loss, inputs["weight"], logits), inputs["feedback"]

    def _heldout_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        loss, weight, logits = prediction.predictions  # type: ignore[misc]
        feedback: Any = prediction.label_ids
        rates = action_rates(self.core, logits)
        return heldout_metrics(self.core.spec.signals, loss, weight, rates, feedback)

    def heldout_predictions(self) -> np.ndarray:
        """(3 + K, N): loss, weight and logits of the held-out rows, now, in the data set's order."""
        loss, weight, logits = self.predict(self.eval_dataset).predictions  # type: ignore[arg-type, misc]
        return np.stack([loss, weight, *logits.T])

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW in which the few scalars of the heads have a rate of their own.

        A backbone's small rate would not move them: Adam changes each by about the rate a step, while the
        thousands of weights of a linear map move its output together.
        """
        if self.optimizer is None:
            parameters = dict(self.core.named_parameters())
            scalars = self.core.scalar_parameters()
            decayed = set(self.get_decay_parameter_names(self.core)) - scalars
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args)
            groups: list[dict[str, Any]] = [
                {"params": decayed, "weight_decay": self.args.weight_decay},
                {"params": parameters.keys() - decayed - scalars, "weight_decay": 0.0},
                {"params": scalars, "weight_decay": 0.0, "lr": self.config.head_learning_rate},
            ]
            for group in groups:
                names = group["params"]
                group["params"] = [parameter for name, parameter in parameters.items() if name in names]
            self.optimizer = kind(groups, **settings)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return LengthGroupedSampler(self.lengths, step, self.args.seed)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.stratifier is not None and output_dir is not None:
            save_file(self.stratifier.average.state_dict(), Path(output_dir) / STRATIFICATION_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.stratifier is not None:
            state = load_file(Path(resume_from_checkpoint) / STRATIFICATION_FILE)
            self.stratifier.average.load_state_dict(state)


class StratificationModel(TrainerCallback):
    """The separate model whose posteriors the stratified form takes (arXiv:2603.23184, section 3).

    `ema` follows the trained model after every optimiser step; `frozen` is a copy taken as each epoch begins,
    which makes the training the classical EM algorithm with an epoch for each M step.
    """

    def __init__(self, model: ImplicitRewardModel, config: TrainConfig) -> None:
        self.kind = config.stratification
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
        self.average.requires_grad_(False).eval()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.kind == "ema":
            self.average.update_parameters(kwargs["model"])

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        resumed_within = state.global_step % (state.max_steps // state.num_train_epochs)
        if self.kind == "frozen" and not resumed_within:
            self.average.module.load_state_dict(kwargs["model"].state_dict())


class MetricsFile(TrainerCallback):
    """Appends every log entry to a file of JSON lines, each with the propensity design that is trained.

    A resumed run first takes back what was written after its checkpoint.
    """

    def __init__(self, path: Path, design: str) -> None:
        self.path, self.design = path, design

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            others = [line for line in read_metrics(self.path) if line["propensity"] != self.design]
            own = [{"propensity": self.design, **entry} for entry in state.log_history]
            write_metrics(self.path, [*others, *own], append=False)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and state.log_history:
            write_metrics(self.path, [{"propensity": self.design, **state.log_history[-1]}], append=True)
