"""Trains on the same rows by irm-fast's loop and by TRL's RewardTrainer in turn, and compares the speed.

    python -m benchmarks.against_trl [--rounds 3] [--shape tiny] [--also CHECKOUT]

The rows that `bench_training` times, two of them a pair for TRL: the same model, tokens, precision (float32), optimiser
and number of sequences a step, 16 on average. Each round runs every contestant in a process of its own, on one thread;
the second epoch is timed, in seconds of the processor, which other work on the machine hardly changes. --also names
another checkout of irm-fast with an environment of its own, .venv, such as the version before a change. TRL has to be
installed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import TrainerCallback

ROWS, LONGEST, SEQUENCES = 96, 512, 16


class Clock(TrainerCallback):
    """Takes the seconds of the processor from the beginning of the second epoch to its end."""

    seconds = 0.0

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self.start = time.process_time()

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds = time.process_time() - self.start


def of_trl(shape: str, folder: str) -> float:
    """The seconds of an epoch of TRL's RewardTrainer."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import RewardConfig, RewardTrainer

    from benchmarks.bench_training import TrainingCase, make_model

    rows = [row["input_ids"] for row in TrainingCase(ROWS, longest=LONGEST).make_inputs(0)]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "</s>": 2}, unk_token="<unk>")),
        pad_token="<pad>",
        eos_token="</s>",
    )
    clock = Clock()
    settings: dict[str, Any] = {"gradient_checkpointing": False, "bf16": False, "disable_tqdm": True, "use_cpu": True}
    settings |= {"save_strategy": "no", "report_to": "none", "max_length": None, "learning_rate": 2e-5}
    RewardTrainer(
        model=make_model(shape).classifier,
        args=RewardConfig(
            folder, per_device_train_batch_size=SEQUENCES // 2, num_train_epochs=2, logging_steps=100, **settings
        ),
        train_dataset=Dataset.from_dict({"chosen_ids": rows[::2], "rejected_ids": rows[1::2]}),
        processing_class=tokenizer,
        callbacks=[clock],
    ).train()
    return clock.seconds


def of_ours(shape: str, folder: str) -> float:
    """The seconds of an epoch of irm-fast's loop."""
    from benchmarks import at_scale
    from benchmarks.bench_training import make_model
    from irm_fast.models.packed import packed_attention
    from irm_fast.training.config import TrainConfig

    config = TrainConfig(model="m", output="o", batch_size=SEQUENCES, epochs=2, progress=False)
    arguments = at_scale.training_arguments(config, Path(folder), evaluate=False)
    model, clock = make_model(shape), Clock()
    with packed_attention(model, "auto", arguments.device):
        at_scale.Unsaved(model, config, arguments, at_scale.make_rows(ROWS, LONGEST), callbacks=[clock]).train()
    return clock.seconds


def measure(who: str, shape: str, checkout: Path) -> float:
    """The seconds of one contestant, in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
    own = checkout / ".venv/bin/python"
    command = [str(own) if own.exists() else sys.executable, __file__, "--one", who, "--shape", shape]
    done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", default="tiny")
    parser.add_argument("--also", type=Path)
    parser.add_argument("--one", choices=("ours", "trl"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            print("\n" + json.dumps((of_trl if args.one == "trl" else of_ours)(args.shape, folder)))
        return
    here = Path(__file__).parents[1]
    contestants = {"ours": ("ours", here), "TRL": ("trl", here)}
    if args.also:
        contestants[str(args.also)] = ("ours", args.also.resolve())
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(args.rounds):
        for name, (who, checkout) in contestants.items():
            taken[name].append(measure(who, args.shape, checkout))
            print(f"{name}: {taken[name][-1]:.2f} s", flush=True)
    for name, seconds in taken.items():
        print(f"{name}: {median(seconds):.2f} s an epoch, {median(seconds) / median(taken['ours']):.2f} times ours")


if __name__ == "__main__":
    main()
