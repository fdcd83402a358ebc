"""Trains a decoder of a real size, with random weights, by `irm-fast train`'s own loop, and prints what it reports.

    python -m benchmarks.at_scale --shape 0.6B --out FOLDER [--budget 16384] [--no-compile] [--checkpointing full] ...

Rows of random tokens have log-normal lengths: median 350, 95th percentile 1,500, at most --longest. Optimiser and data
loading are those of a real run; nothing is evaluated or saved. Appends report, settings and machine to
FOLDER/training.jsonl. Under torchrun all processes take part.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.bench_training import SHAPES, TrainingCase, make_model
from benchmarks.report import machine
from irm_fast.models.adapters import Lora
from irm_fast.models.batches import TokenizedRows
from irm_fast.training.arguments import training_arguments
from irm_fast.training.build import computing_as_set
from irm_fast.training.config import TrainConfig
from irm_fast.training.throughput import in_words, typical
from irm_fast.training.trainer import ImplicitTrainer


class Unsaved(ImplicitTrainer):
    """A checkpoint of a large model takes longer than all its steps here."""

    def _save_checkpoint(self, *args: object, **kwargs: object) -> None:
        pass


def make_rows(count: int, longest: int) -> TokenizedRows:
    """The rows that `bench_training` times."""
    rows = TrainingCase(count, longest=longest).make_inputs(0)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    input_ids = [np.asarray(ids) for ids in columns.pop("input_ids")]
    return TokenizedRows(input_ids, columns | {"row": list(range(count))})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=int, default=16384)
    parser.add_argument("--longest", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--attn", default="auto")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction)
    parser.add_argument("--liger", action=argparse.BooleanOptionalAction)
    parser.add_argument("--checkpointing", choices=("none", "full", "selective"), default="none")
    parser.add_argument("--lora-rank", type=int, help="adapters on a frozen model")
    parser.add_argument("--precision", default="bfloat16")
    args = parser.parse_args()
    how = {"attn": args.attn, "compile": args.compile, "liger": args.liger, "precision": args.precision}
    how |= {"gradient_checkpointing": args.checkpointing, "lora_rank": args.lora_rank}
    config = TrainConfig(model="random", output="none", token_budget=args.budget, epochs=1, progress=False, **how)
    model = make_model(args.shape)
    if args.lora_rank:
        model.backbone.to(torch.bfloat16)
        model.add_adapters(Lora(args.lora_rank, config.lora_alpha), "")
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(config, Path(folder), evaluate=False)
        with computing_as_set(model, config, arguments.device) as attention:
            trainer = Unsaved(model, config, arguments, make_rows(args.rows, args.longest))
            trainer.train()
    report = typical(trainer.state.log_history)
    if os.environ.get("RANK", "0") != "0":
        return
    print(f"{args.shape}, attention {attention}: {in_words(report)}")
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    record = {**settings, "attn": attention, "throughput": report, "machine": machine()}
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "training.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
