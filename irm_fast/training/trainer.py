"""Training loop: transformers.Trainer with the implicit loss; the held-out likelihood chooses the best checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from irm_fast.evaluation.evaluation import heldout_metrics
from irm_fast.evaluation.scoring import logit_inputs
from irm_fast.models.adapters import weights_in
from irm_fast.models.batches import Collator, TokenizedRows
from irm_fast.models.heldout import HeldOut
from irm_fast.models.packing import PackSampler, by_length, check_budget
from irm_fast.models.record import save_tensors
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.training.callbacks import EpochOfPacks, IsolationCheck, StratificationModel
from irm_fast.training.checkpoints import WholeCheckpoints
from irm_fast.training.config import TrainConfig
from irm_fast.training.distributed import (
    check_fsdp,
    check_fsdp_version,
    check_one_gpu,
    check_same_lengths,
    local,
    sharding,
)
from irm_fast.training.group_masses import GroupMasses
from irm_fast.training.parameter_groups import groups_of
from irm_fast.training.predictions import SAMPLE, check_heldout, check_reward_varies, predict_rows
from irm_fast.training.saves import Saves
from irm_fast.training.throughput import Throughput, flops_of
from irm_fast.training.watch import NumericalWatch

STRATIFICATION_FILE = "stratification.safetensors"


class ImplicitTrainer(WholeCheckpoints):
    """transformers.Trainer with the implicit loss, on packed rows if the model's attention supports them.

    The loss is the mean over the rows and pairs of the whole optimiser step, over micro-batches and processes: a pair
    counts as a row. With a `pairs_weight` it is the mean over rows plus this weight times the mean over pairs.
    Evaluation reports the keys of `heldout_metrics`, always of the marginal form: a likelihood.

    Args:
        model: The model, within `packed_attention`.
        config: The settings of the run.
        args: The settings of transformers' loop, by `training_arguments`.
        train_dataset: The training rows.
        eval_dataset: The held-out rows, or None.
        callbacks: Callbacks besides those of the trainer itself, or None.
        names: Two functions that give the id of a training row and of a held-out row by its number, or None.

    Raises:
        RuntimeError: One process sees several GPUs (`nn.DataParallel` would split batches and their mean), or the
            processes have rows of different lengths; when training begins, a row of a pack depends on another.
        ValueError: Neither a number of rows nor a token budget is set, the budget is smaller than a row, or a setting
            does not go with FSDP.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: ImplicitRewardModel,
        config: TrainConfig,
        args: TrainingArguments,
        train_dataset: TokenizedRows,
        eval_dataset: TokenizedRows | None = None,
        callbacks: list[TrainerCallback] | None = None,
        names: tuple[Callable[[int], str] | None, Callable[[int], str] | None] = (None, None),
    ) -> None:
        check_one_gpu(args)
        check_fsdp(config, args.world_size)

        # Batches
        self.core, self.config, self.saves = model, config, Saves(config, args.world_size)
        self.packs = PackSampler(
            train_dataset.lengths,
            pairs=train_dataset.sides // 2,
            rows=config.rows_per_pass,
            tokens=config.token_budget,
            processes=args.world_size,
            micro_batches=args.gradient_accumulation_steps,
            seed=args.seed,
            epochs=config.epochs,
            padded=not model.packed,
        )
        if eval_dataset is not None:
            check_budget(eval_dataset.lengths, config.rows_per_pass, config.token_budget)
        # About fifty entries. Given as a share, transformers would warn of another number whenever a run is resumed.
        args.logging_steps = max(1, round(0.02 * config.epochs * self.packs.steps))

        # Loop
        flops = flops_of(model) if config.precision == "bfloat16" else None  # before the model is sharded
        collator = Collator(model.tokenizer.pad_token_id, packed=model.packed, filler=train_dataset.filler())
        super().__init__(
            model,
            args,
            data_collator=collator,  # type: ignore[arg-type]  # takes `Rows`, not a list
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=callbacks,
        )
        check_same_lengths(self.accelerator, [train_dataset, eval_dataset])
        check_fsdp(config, args.world_size, self.is_fsdp_enabled)
        if self.is_fsdp_enabled:
            check_fsdp_version(self.accelerator)

        # What happens beside the steps
        self.throughput = Throughput(self.accelerator, flops)
        name, self.heldout_name = names
        self.watch = NumericalWatch(model, config, self.accelerator, name, self.log)
        self.add_callback(self.watch)
        # Under FSDP the heads are whole within the model's own pass alone
        self.masses = None if self.is_fsdp_enabled else GroupMasses(model, int(args.logging_steps))
        self.stratifier: StratificationModel | None = None
        if config.stratification != "current":
            self.stratifier = StratificationModel(model, config)
            self.add_callback(self.stratifier)
        self.add_callback(EpochOfPacks(self.packs))
        if model.packed:
            self.add_callback(IsolationCheck(model))
        self.remove_callback(PrinterCallback)  # of dictionaries, where there is no bar

    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Any]]:
        """Compute the loss of a micro-batch: its part of the mean over the rows and pairs of the optimiser step.

        Args:
            model: The model, perhaps wrapped for several processes.
            inputs: A batch of `Collator`, without `counts`.
            return_outputs: Whether to return an empty dictionary too, in the place of the model's outputs.
            num_items_in_batch: The numbers that the sums over rows and over pairs are divided by, (2,), see
                `get_batch_samples`; None: the mean over the rows, and the sum over the pairs.

        Returns:
            The loss, (), or with `return_outputs` the pair (loss, {}).
        """
        arguments = {name: value for name, value in inputs.items() if name != "row"}
        if num_items_in_batch is not None:
            rows, pairs = num_items_in_batch.unbind()
            arguments |= {"normalizer": rows, "pair_weight": (self.config.pairs_weight or 1) / pairs}
        loss = self.watch.guard(model(**arguments, stratification=self._stratification(inputs)))
        if self.masses is not None:
            self.masses.take(inputs, self.state.global_step + 1)
        return (loss, {}) if return_outputs else loss

    def _stratification(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor] | Literal["current"] | None:
        """Return the logits that the stratified posterior comes from, or "current"; None for the marginal form."""
        if self.config.objective == "marginal":
            return None
        if self.stratifier is None:
            return "current"
        with torch.no_grad():
            return self.stratifier.average("logits", **logit_inputs(inputs))

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Return the norm of the gradient as transformers does; where it is not finite, the step changes nothing."""
        norm = super()._get_grad_norm(model, grad_norm)
        self.watch.mask(norm, self.optimizer, self.state.global_step + 1)  # type: ignore[arg-type]
        return norm

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Prepare as transformers does, with our way to shard in the place of accelerate's."""
        with sharding(self.config):
            return super()._prepare_for_training(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """Return the batches of training rows, as the sampler packs them."""
        return self._loader(self.train_dataset, self.packs)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return batches of held-out rows, those of similar length together.

        Args:
            eval_dataset: The rows, as `TokenizedRows`; None: those that the trainer was made with.

        Raises:
            ValueError: A row is longer than the token budget.
        """
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        rows, tokens = self.config.rows_per_pass, self.config.token_budget
        packs = by_length(dataset.lengths, rows=rows, tokens=tokens, processes=self.args.world_size)
        return self._loader(dataset, packs)

    def _loader(self, dataset: Any, packs: Any) -> DataLoader:
        """Return the batches of the rows in each pack; accelerate gives them to the processes in turn."""
        pinned = self.args.dataloader_pin_memory
        return self.accelerator.prepare(
            DataLoader(dataset, batch_sampler=packs, collate_fn=self.data_collator, pin_memory=pinned)
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor]:
        """Take the micro-batches of one optimiser step, and count them in the throughput.

        Args:
            epoch_iterator: The remaining batches of the epoch.
            num_batches: The number of micro-batches to take, at most.
            device: The device for the number of rows.

        Returns:
            The micro-batches, without `counts`, and what their sums over rows and over pairs are divided by, (2,): both
            by the number of rows and pairs, or with a `pairs_weight` each by its own. The numbers are means over the
            processes and no totals, since gradients are averaged over processes. Where there are none, the sum is 0,
            and is divided by what one of them would count.
        """
        self.throughput.begin()
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.watch.begin(batches)
        counts = [batch.pop("counts") for batch in batches]
        for count in counts:
            self.throughput.add(count)
        rows, pairs = float(sum(count.rows for count in counts)), float(sum(count.pairs for count in counts))
        sizes = [rows + pairs] * 2 if self.config.pairs_weight is None else [rows, pairs]
        own = torch.tensor(sizes, pin_memory=device.type == "cuda").to(device, non_blocking=True)  # nothing waits
        mean = self.accelerator.reduce(own, reduction="mean")
        return batches, mean.clamp(min=1 / self.args.world_size)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as transformers does, with the throughput since the last entry and the groups of some of its steps."""
        if "loss" in logs:
            logs |= self.throughput.report()
            if self.masses is not None:
                logs |= self.masses.report()
            self._tr_loss.zero_()  # which transformers takes from itself: NaN would stay NaN
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as transformers does; the time does not count in the throughput of training.

        Raises:
            RuntimeError: A step before, or a held-out row, is not finite.
        """
        self.watch.settle()
        with self.throughput.paused():
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save as transformers does; the time does not count in the throughput of training."""
        self.watch.settle()
        self.watch.check_weights()
        with self.throughput.paused():
            super()._save_checkpoint(*args, **kwargs)

    def _bytes_to_save(self) -> int:
        """The bytes of a checkpoint, with those of the stratification model, if there is one."""
        averaged = self.stratifier.average.state_dict().values() if self.stratifier is not None else ()
        return super()._bytes_to_save() + sum(tensor.nbytes for tensor in averaged)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Compute metrics and predictions for held-out rows.

        It replaces transformers' loop, which cannot gather packs: their numbers of rows differ between processes.

        Args:
            dataloader: The batches, by `get_eval_dataloader`.
            description: Not used; it belongs to the signature of transformers.
            prediction_loss_only: Not used.
            ignore_keys: Not used.
            metric_key_prefix: What the names of the metrics begin with, before an underscore.

        Returns:
            The metrics, with `pairs_accuracy` where pairs are held out: the share of them in which the chosen response
            has the higher reward; the feedback (N, K) as `label_ids`, and as `predictions` a `HeldOut`, in the order of
            the rows.
        """

        # Predictions, in the order of the data set
        def tell() -> None:
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)

        table = predict_rows(self.model_wrapped, self.core, dataloader, tell)
        order, sides = np.split(np.arange(len(table["row"])), [len(table["row"]) - self.eval_dataset.sides])  # type: ignore[union-attr]
        heldout = HeldOut(*(table[name][order] for name in HeldOut._fields))
        feedback = table["feedback"][order]
        check_heldout(heldout, self.state.global_step, self.heldout_name)

        # Metrics
        metrics = heldout_metrics(self.core.spec, heldout, feedback)
        if len(sides):
            lead = np.subtract(*table["reward"][sides].reshape(-1, 2).T)
            metrics["pairs_accuracy"] = float(np.mean((lead > 0) + 0.5 * (lead == 0)))
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=heldout, label_ids=feedback, metrics=named, num_samples=len(order))  # type: ignore[arg-type]

    def check_reward_varies(self) -> None:
        """Check that the reward differs between some of the training rows. Every process has to call this.

        Raises:
            RuntimeError: It does not.
        """
        rows: Any = self.train_dataset
        chosen = np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(np.int64)
        limits = (self.config.rows_per_pass, self.config.token_budget)
        packs = by_length(rows.lengths[chosen], rows=limits[0], tokens=limits[1], processes=self.args.world_size)
        batches = self._loader(rows, [chosen[pack] for pack in packs])
        reward = predict_rows(self.model_wrapped, self.core, batches)["reward"]
        check_reward_varies(reward, self.config.peak_learning_rate, self.core.spec.max_length)

    def heldout_predictions(self) -> HeldOut:
        """Return the predictions of the current weights for the held-out rows, in the order of the data set."""
        return self.evaluation_loop(self.get_eval_dataloader(), "Prediction").predictions  # type: ignore[return-value]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create the optimiser, AdamW, in which the few scalar parameters of the heads have their own learning rate.

        A backbone's small learning rate would hardly move them: Adam changes each parameter by about the learning rate
        in a step, while the thousands of weights of a linear map move its output together.

        Args:
            model: Not used: the parameters are those of the model that the trainer was made with.

        Returns:
            The optimiser; the one that exists if it was created before.
        """
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(self.core))
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args)
            groups = groups_of(self.core, decayed, self.args.weight_decay, self.config.head_learning_rate)
            self.optimizer = kind(groups, **settings)
        return self.optimizer

    def what_is_trained(self) -> dict[str, int]:
        """Return the numbers of `trained_parameters` and of all `parameters`, and this device's `optimizer_bytes`."""
        parameters = list(self.core.parameters())
        states = self.optimizer.state.values() if self.optimizer is not None else ()
        held = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        return {
            "trained_parameters": sum(weights_in(p) for p in parameters if p.requires_grad),
            "parameters": sum(weights_in(p) for p in parameters),
            "optimizer_bytes": sum(local(tensor).nbytes for tensor in held),
        }

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save as transformers does, and the stratification model, if there is one, to the same folder."""
        super()._save(output_dir, state_dict)
        if self.stratifier is not None and output_dir is not None:
            save_tensors(self.stratifier.average.state_dict(), Path(output_dir) / STRATIFICATION_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load as transformers does, and the stratification model, if there is one."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.stratifier is not None:
            state = load_file(Path(resume_from_checkpoint) / STRATIFICATION_FILE)
            self.stratifier.average.load_state_dict(state)
