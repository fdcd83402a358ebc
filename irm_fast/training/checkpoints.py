"""Checkpoints of the loop: each is whole, or passed over by a run that is resumed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from irm_fast.data.schema import read_object
from irm_fast.data.writing.interruption import SIGNALS
from irm_fast.data.writing.manifest import damage, files_of, write_manifest
from irm_fast.data.writing.whole import UnwrittenError, disk_errors, write_whole
from irm_fast.models.packing import PackSampler
from irm_fast.models.processes import from_main_process
from irm_fast.training.distributed import local
from irm_fast.training.saves import Saves

PLAN = "packs.json"  # in each checkpoint: what decides the order of rows
_STATE = "trainer_state.json"  # transformers' name
_KEPT = 2  # the newest one, and the best one or that before it: damage of the newest costs no whole run
_MARGIN = 2**22  # bytes of a checkpoint that are neither weights nor the state of the optimiser


class Found(NamedTuple):
    """What a resumed run finds among the checkpoints of a propensity design.

    Attributes:
        newest: The newest checkpoint that can be resumed, or None.
        passed_over: Why newer ones cannot be, by their paths.
    """

    newest: Path | None
    passed_over: Mapping[Path, str]

    def in_words(self) -> str:
        """What was passed over and where the run goes on, or "" if nothing was."""
        if not self.passed_over:
            return ""
        what = "; ".join(f"{path} is passed over: {text}" for path, text in self.passed_over.items())
        return f"{what}; the run goes on from {self.newest or 'its beginning'}"


def find_checkpoint(folder: Path) -> Found:
    """The newest checkpoint of a propensity design that is whole, together with the best one that it names.

    Args:
        folder: The folder of the design's checkpoints.
    """
    passed_over: dict[Path, str] = {}
    for path in sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=_step, reverse=True):
        if not (text := _damage(path)):
            return Found(path, passed_over)
        passed_over[path] = text
    return Found(None, passed_over)


def _damage(checkpoint: Path) -> str:
    """Say why a checkpoint cannot be resumed, or "" if it can."""
    if text := damage(checkpoint):
        return text
    best = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))["best_model_checkpoint"]
    best = checkpoint if best is None else checkpoint.parent / Path(best).name
    text = "" if best == checkpoint else damage(best)
    return f"{best.name}, which was the best, is not whole: {text}" if text else ""


def _name(step: int) -> str:
    """The name of the folder of a checkpoint."""
    return f"{PREFIX_CHECKPOINT_DIR}-{step}"


def _step(checkpoint: Path) -> int:
    """The step of a checkpoint, by the name of its folder."""
    step = checkpoint.name.rpartition("-")[2]
    return int(step) if step.isdecimal() else -1


def check_plan(checkpoint: Path, plan: Mapping[str, Any]) -> None:
    """Check that a resumed run takes its rows in the order of the interrupted one.

    Args:
        checkpoint: The checkpoint to go on from, which is whole.
        plan: What decides the order of rows now, see `PackSampler.plan`.

    Raises:
        ValueError: The order was another.
    """
    earlier = read_object(checkpoint / PLAN, "irm-fast train")
    for name, now in plan.items():
        if earlier.get(name) != now:
            raise ValueError(
                f"resume: {name}: got {now}; the interrupted run had {earlier.get(name)}, which decided its order of "
                "rows; expected the same here, or --overwrite"
            )


class WholeCheckpoints(Trainer):
    """transformers.Trainer with checkpoints that are whole, or not there.

    A checkpoint gets its manifest when all its files are on the disk, and only then are earlier ones deleted. A class
    that inherits from it has the order of its rows in `packs`, and in `saves` what tells when to save.
    """

    saves: Saves
    packs: PackSampler
    _asked_at = 0  # the step after which `saves` was asked last: an epoch that ends asks once more

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log, evaluate and save as transformers does, and when `saves` wants it.

        Raises:
            KeyboardInterrupt: A signal asked to stop; a checkpoint is saved, which the text says.
        """
        step = self.state.global_step
        wanted = self.saves.wanted(step) if step > self._asked_at else 0
        self._asked_at = step
        self.control.should_save |= bool(wanted)
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if wanted in SIGNALS:
            raise SIGNALS[wanted](f"saved after step {step} of {self.state.max_steps}; --resume goes on from there")

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Run an epoch as transformers does, unless the run that is resumed was at its end already."""
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        """Begin or resume as transformers does; the best checkpoint is where the folder is now."""
        begun = super()._init_training_state(*args, **kwargs)
        self._asked_at = self.state.global_step
        if self.state.best_global_step:
            best = Path(str(self.args.output_dir), _name(self.state.best_global_step))
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None
        return begun

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save as transformers does, on a disk that has the room, and write the manifest last.

        Raises:
            UnwrittenError: The disk is full. What there is of the checkpoint is deleted, and earlier ones are kept.
        """
        folder, begun = Path(str(self.args.output_dir), _name(self.state.global_step)), time.monotonic()
        needed = self._bytes_to_save()

        def make_room() -> None:
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted here
            self._check_room(folder.parent, needed)
            folder.mkdir()

        from_main_process(make_room)  # each asks whether the folder is there, to know the best checkpoint
        try:
            with disk_errors(folder):
                super()._save_checkpoint(*args, **kwargs)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    write_whole(folder / PLAN, json.dumps(self.packs.plan) + "\n")
                    write_manifest(folder, files_of(folder))
        except UnwrittenError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if self.args.should_save:
            rotate_checkpoints(str(folder.parent), _KEPT, self.state.best_model_checkpoint)
        self.saves.saved(time.monotonic() - begun)

    def _check_room(self, folder: Path, needed: int) -> None:
        """Raise UnwrittenError if a disk has not so many bytes free."""
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise UnwrittenError(
                f"{folder}: a checkpoint needs about {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free on its "
                "disk; make room there, and --resume goes on from the last checkpoint"
            )

    def _bytes_to_save(self) -> int:
        """The bytes of the trained weights and of the state of the optimiser, of all processes."""
        state = self.model.state_dict()  # type: ignore[union-attr]
        held = [value for value in state.values() if isinstance(value, Tensor)]
        if self.optimizer is not None:
            states = self.optimizer.state.values()
            held += [value for state in states for value in state.values() if isinstance(value, Tensor)]
        own = sum(local(tensor).nbytes for tensor in held)
        return _MARGIN + own * (self.args.world_size if self.is_fsdp_enabled else 1)

    def _load_best_model(self) -> None:
        """Load as transformers does, if the best checkpoint is as it was written.

        Raises:
            RuntimeError: It is not.
        """
        best = Path(str(self.state.best_model_checkpoint))
        if text := from_main_process(lambda: damage(best)):
            raise RuntimeError(f"{best}: the best checkpoint is no longer whole: {text}; start anew with --overwrite")
        super()._load_best_model()
