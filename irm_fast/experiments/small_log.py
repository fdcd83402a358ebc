"""A small log with known truth, and a tiny decoder, to try every command on.

`python -m irm_fast.experiments.small_log [FOLDER]` makes them. Nothing is downloaded. The texts are those of
the demo, with two signals whose propensities depend on length and style.
"""

from __future__ import annotations

import sys
from pathlib import Path

PROMPTS, HIDDEN_SIZE = 800, 64
FILES = ("log.jsonl", "log.truth.jsonl", "log.test.jsonl", "decoder")


def make_small_log(
    folder: str | Path = ".", *, prompts: int = PROMPTS, hidden_size: int = HIDDEN_SIZE, seed: int = 0
) -> Path:
    """Write a log, its truth, rated answers that are not in it, and a decoder with random weights.

    Args:
        folder: The folder that gets log.jsonl, log.truth.jsonl, log.test.jsonl and the folder decoder.
        prompts: The number of prompts, with two answers each; a fifth of them is for the rated answers.
        hidden_size: The width of the decoder's hidden states.
        seed: The seed of texts, actions and weights.

    Returns:
        The folder.

    Raises:
        FileExistsError: One of these files is there already.
    """
    from irm_fast.data.simulation import write_simulation
    from irm_fast.experiments.demo import make_simulation
    from irm_fast.experiments.tiny_decoder import make_tiny_decoder

    folder = Path(folder)
    for name in FILES:
        if (folder / name).exists():
            raise FileExistsError(f"{folder / name} exists already, and is not replaced; name another folder")
    simulation = make_simulation(seed, prompts)
    write_simulation(simulation, folder / "log.jsonl")
    texts = (turn["content"] for messages in simulation.log.messages for turn in messages)
    make_tiny_decoder(texts, folder / "decoder", hidden_size=hidden_size, seed=seed)
    return folder


if __name__ == "__main__":
    try:
        made = make_small_log(*sys.argv[1:2])
    except OSError as error:
        sys.exit(f"error: {error}")
    print(f"wrote {made}/: {', '.join(FILES)}")
