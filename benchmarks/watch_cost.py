"""What looking on costs in a training step: the same run with it and without it, step by step in turn.

    python -m benchmarks.watch_cost [watch|groups] [--steps 400] [--hidden-size 128] [--layers 4] [--batch-size 16] ...

One training of a small decoder, in which one of every two steps is watched, drawn at random: its loss is guarded, its
states are seen, its norm masks the optimiser and its flag is read. For `groups` it is the shares of the four groups
that are taken in it, as a run does in eight steps at most of each of its fifty entries of the log. All rows have the
same number of tokens. Prints the median over pairs of neighbouring steps of the ratio of their seconds, watched over
not, and beside it that of the first over the second, which shows the noise. On a CPU seconds are those of the
processor, so that other work counts little; on a GPU each step ends when the device is done.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback

from irm_fast.data.log import Log
from irm_fast.experiments.tiny_decoder import make_tiny_decoder
from irm_fast.training.config import TrainConfig
from irm_fast.training.group_masses import GroupMasses
from irm_fast.training.run import train_log
from irm_fast.training.trainer import ImplicitTrainer
from irm_fast.training.watch import NumericalWatch

WORDS = ("good", "poor", "fine", "long")
FIRST = 20  # steps that are not counted


class Turns(TrainerCallback):
    """Takes the seconds of each step, and says whether the next one is watched."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.watched: list[bool] = []
        self.begun = 0.0
        self.random = np.random.default_rng(0)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.watched.append(not self.on if len(self.watched) % 2 else bool(self.random.integers(2)))
        _wait()
        self.begun = _seconds()

    @property
    def on(self) -> bool:
        """Whether the step that runs is watched."""
        return self.watched[-1]

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        _wait()
        self.seconds.append(_seconds() - self.begun)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _seconds() -> float:
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def make_log(rows: int, words: int) -> Log:
    """A log of answers of so many words, which two signals like where there are more good ones than poor ones."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(WORDS), (rows, words))
    good = (drawn == 0).sum(1) > (drawn == 1).sum(1)
    turns = [
        [{"role": "user", "content": "well"}, {"role": "assistant", "content": " ".join(WORDS[i] for i in row)}]
        for row in drawn
    ]
    feedback = (good[:, None] & (rng.random((rows, 2)) < 0.6)).astype(np.int8)
    nothing: dict[str, Any] = dict.fromkeys(("weight", "propensity", "features", "user_ids"))
    return Log(
        ids=[str(row) for row in range(rows)],
        messages=turns,
        signals=("copy", "share"),
        polarity=(1, 1),
        feedback=feedback,
        preference=np.full(rows, -1, np.int8),
        feature_names=(),
        **nothing,
    )


def take_by_turns(turns: Turns) -> None:
    """Let the shares of the groups be taken in every second step alone."""
    take = GroupMasses.take

    def taken(self: GroupMasses, batch: Any, step: int) -> None:
        if turns.on:
            take(self, batch, self.every)  # as in a step that counts

    GroupMasses.take = taken  # type: ignore[method-assign]


def watch_by_turns(turns: Turns) -> None:
    """Let the watch act in every second step alone."""
    guard, see, mask = NumericalWatch.guard, NumericalWatch.see, NumericalWatch.mask

    def guarded(self: NumericalWatch, loss: Tensor) -> Tensor:
        return guard(self, loss) if turns.on else loss

    def seen(self: NumericalWatch, hidden: Tensor) -> None:
        if turns.on:
            see(self, hidden)

    def masked(self: NumericalWatch, norm: Tensor, optimizer: Any, step: int) -> None:
        if turns.on:
            mask(self, norm, optimizer, step)
        elif self.optimizer is not None:
            self.optimizer.found_inf = None

    NumericalWatch.guard, NumericalWatch.see, NumericalWatch.mask = guarded, seen, masked  # type: ignore[method-assign]


def ratio(over: np.ndarray, under: np.ndarray) -> tuple[float, float]:
    """The median of the ratios of seconds, (P,) each, and its standard error by resampling."""
    ratios = over / under
    medians = np.median(np.random.default_rng(0).choice(ratios, (1000, len(ratios))), axis=1)
    return float(np.median(ratios)), float(medians.std())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("watch", "groups"), nargs="?", default="watch")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--words", type=int, default=48)
    parser.add_argument("--precision", default="float32")
    given = parser.parse_args()
    turns = Turns()
    (watch_by_turns if given.what == "watch" else take_by_turns)(turns)
    create = ImplicitTrainer.__init__

    def with_turns(self: ImplicitTrainer, *args: Any, **kwargs: Any) -> None:
        create(self, *args, **kwargs)
        self.add_callback(turns)

    ImplicitTrainer.__init__ = with_turns  # type: ignore[method-assign]
    log = make_log(given.batch_size * (given.steps + FIRST), given.words)
    with TemporaryDirectory() as scratch:
        model = make_tiny_decoder(
            (turn["content"] for turns_of in log.messages for turn in turns_of),
            Path(scratch) / "model",
            hidden_size=given.hidden_size,
            layers=given.layers,
        )
        config = TrainConfig(
            model=str(model),
            output=str(Path(scratch) / "out"),
            epochs=1,
            batch_size=given.batch_size,
            validation_fraction=0,
            propensity_design="constant",
            learning_rate=1e-4,
            precision=given.precision,
            progress=False,
        )
        train_log(log, config)
    pairs = np.array(turns.seconds[FIRST:]).reshape(-1, 2)
    watched = np.array(turns.watched[FIRST:]).reshape(-1, 2)
    median, error = ratio(pairs[watched], pairs[~watched])
    same, noise = ratio(*pairs.T)
    print(f"{pairs.size} steps of {1000 * np.median(pairs):.1f} ms, {given}")
    print(f"watched over not: {median:.4f} (standard error {error:.4f}); first over second: {same:.4f} ({noise:.4f})")


if __name__ == "__main__":
    main()
