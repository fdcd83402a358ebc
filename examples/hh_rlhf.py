"""Real text: the demo's comparison on pairs that people judged (Anthropic hh-rlhf, or any file in that layout).

    python examples/hh_rlhf.py harmless-base.test.jsonl.gz --output hh

`chosen` is preferred, `rejected` is not; two signals are simulated on top. The decoder has random weights unless
--model names a pretrained one, and random weights learn little from a few thousand long dialogues.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from irm_fast.data.read import read_rated
from irm_fast.data.simulation import simulate, write_simulation
from irm_fast.experiments.demo import compare
from irm_fast.experiments.report import comparison_table
from irm_fast.experiments.tiny_decoder import make_tiny_decoder

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("pairs", type=Path, help="JSONL of chosen and rejected, .gz or not")
parser.add_argument("--output", type=Path, required=True, help="folder for log, models and table")
parser.add_argument("--model", type=Path, help="pretrained decoder to start from; default: a small random one")
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--max-length", type=int, default=256)
parser.add_argument("--learning-rate", type=float, default=1e-3)
parser.add_argument("--target", type=float, default=0.5, help="mean propensity of each signal")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
if args.output.exists() and any(args.output.iterdir()):
    parser.error(f"--output {args.output} is not empty")

simulation = simulate(
    read_rated(args.pairs), protocol="feature", signals=2, target=args.target, seed=args.seed, test_fraction=0.2
)
write_simulation(simulation, args.output / "log.jsonl")
decoder = args.model
if decoder is None:
    texts = (turn["content"] for messages in simulation.log.messages for turn in messages)
    decoder = make_tiny_decoder(texts, args.output / "decoder", hidden_size=128, vocab_size=4096, seed=args.seed)
settings = {
    "epochs": args.epochs,
    "batch_size": 32,
    "learning_rate": args.learning_rate,
    "max_length": args.max_length,
    "seed": args.seed,
    "progress": False,
}
results = [compare(simulation, decoder, settings, keep=args.output / "model")]
(args.output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
print(comparison_table(results))
