"""Runs `irm-fast train`'s own loop on a decoder of a real size, with random weights, and prints what it reports.

    python -m benchmarks.at_scale --shape 0.6B --out FOLDER [--budget 16384] [--attn auto] [--compile] [--recompute]

Rows have log-normal lengths (median 350 tokens, 95th percentile 1,500, at most --longest). Optimiser, data loading,
evaluation and checkpoints are those of a real run; examples and tokens a second leave the last two out. Appends to
FOLDER/training.jsonl the report, the settings and the machine. Under torchrun all processes take part.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, Qwen3ForSequenceClassification

from benchmarks.bench_training import SHAPES, qwen3
from benchmarks.report import machine
from irm_fast.config import TrainConfig
from irm_fast.log import Log
from irm_fast.throughput import in_words
from irm_fast.tiny_decoder import make_tiny_decoder
from irm_fast.trainer import train_log

WORDS = ("good", "bad", "long", "short", "new", "old", "red", "blue")


def make_model(shape: str, folder: Path) -> Path:
    """A Qwen3 of this shape with random weights, and a small tokenizer to which every word is one token."""
    make_tiny_decoder([" ".join(WORDS)] * 50, folder, vocab_size=400, max_length=8192)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = qwen3(shape, vocab_size=len(tokenizer), **ends)
    torch.manual_seed(0)
    (folder / "model.safetensors").unlink()
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        Qwen3ForSequenceClassification(config).save_pretrained(folder)
    return folder


def make_log(rows: int, longest: int) -> Log:
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(np.log(350), 0.885, rows)) * longest / 4096, 4, longest - 20).astype(int)
    good = rng.random(rows) < 0.5
    texts = [" ".join(rng.choice(WORDS, length)) for length in lengths]
    return Log(
        ids=[str(i) for i in range(rows)],
        messages=[[{"role": "user", "content": "new"}, {"role": "assistant", "content": text}] for text in texts],
        signals=("copy", "share"),
        polarity=(1, 1),
        feedback=(good[:, None] & (rng.random((rows, 2)) < 0.6)).astype(np.int8),
        preference=np.full(rows, -1, np.int8),
        weight=None,
        propensity=None,
        features=None,
        feature_names=(),
        user_ids=None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=int, default=16384)
    parser.add_argument("--longest", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--attn", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--recompute", action="store_true", help="activations, in the backward pass")
    parser.add_argument("--precision", default="bfloat16")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            model=str(make_model(args.shape, Path(folder) / "model")),
            output=str(Path(folder) / "out"),
            token_budget=args.budget,
            max_length=args.longest,
            epochs=1,
            validation_fraction=0.0,
            eval_steps=10**9,  # no checkpoint
            propensity="hidden",
            precision=args.precision,
            attn=args.attn,
            compile=args.compile,
            gradient_checkpointing=args.recompute,
            progress=False,
        )
        result = train_log(make_log(args.rows, args.longest), config)
    print(f"{args.shape}, attention {result.attention}: {in_words(result.throughput)}")
    if os.environ.get("RANK", "0") != "0":
        return
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    record = {**settings, "attn": result.attention, "throughput": dict(result.throughput), "machine": machine()}
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "training.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
