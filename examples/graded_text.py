"""Real text with made-up grades: rated responses for `irm-fast reproduce` of which an encoder does show the quality.

    python -m examples.graded_text harmless-base.test.jsonl.gz --model path/to/all-MiniLM-L6-v2 --out graded.jsonl

Every distinct answer of the dialogues is graded by a fixed function of its embedding, with local detail, and noise:
from 0 to 4, equally frequent. The last line names the next command.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np

from examples.identification.worlds import smooth
from irm_fast.data.read import read_rated
from irm_fast.embeddings.embedder import Embedder

LEVELS, NOISE = 5, 0.45  # deviation of the noise, where that of the quality is 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="JSONL of chosen and rejected, .gz or not")
    parser.add_argument("--model", required=True, help="folder or hub id of an encoder or a decoder")
    parser.add_argument("--out", type=Path, required=True, help="the file to write, .jsonl")
    parser.add_argument("--max-length", type=int, default=128)
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"--out {args.out} exists")
    rows = answers(args.pairs)
    messages = [[{"role": "user", "content": asked}, {"role": "assistant", "content": said}] for asked, said in rows]
    vectors, _ = Embedder(args.model, max_length=args.max_length).embed(messages)
    quality = smooth(vectors.numpy()) + NOISE * np.random.default_rng(0).normal(size=len(rows))
    rating = np.argsort(np.argsort(quality)) * LEVELS // len(rows)
    with args.out.open("w", encoding="utf-8") as file:
        for number, ((asked, said), grade) in enumerate(zip(rows, rating.tolist(), strict=True)):
            row = {"id": str(number), "prompt": asked, "completion": said, "rating": grade}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"wrote {args.out}: {len(rows)} graded answers; compare on them with")
    print(f"irm-fast reproduce --data {args.out} --model {args.model} --max-length {args.max_length} --output FOLDER")


def answers(source: Path) -> list[tuple[str, str]]:
    """Distinct (question, answer) of neighbouring turns, in the order of their first appearance."""
    found: dict[tuple[str, str], None] = {}
    for messages in read_rated(source).messages:
        for before, turn in itertools.pairwise(messages):
            if turn["role"] == "assistant" and before["content"].strip() and turn["content"].strip():
                found[before["content"].strip(), turn["content"].strip()] = None
    return list(found)


if __name__ == "__main__":
    main()
