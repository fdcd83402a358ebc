"""Pairs beside a made log: of other prompts than the log's, and of answers of which one pleases."""

from pathlib import Path

from examples.pairs_beside_a_log import write_pairs
from irm_fast.data.pairs import read_pairs
from irm_fast.experiments.made_text import make_rated


def test_pairs_of_other_prompts_of_which_one_answer_pleases(tmp_path: Path) -> None:
    pairs = read_pairs(write_pairs(tmp_path / "pairs.jsonl", seed=0, first=30, count=12))
    assert len(pairs) == 12
    log = {messages[0]["content"] for messages in make_rated(30, seed=0).messages}
    assert not log & {messages[0]["content"] for messages in pairs.chosen}
    rated = make_rated(30 + 4 * 12, seed=1000)
    pleases = {str(messages): bool(liked) for messages, liked in zip(rated.messages, rated.preference, strict=True)}
    assert all(pleases[str(chosen)] for chosen in pairs.chosen)
    assert not any(pleases[str(rejected)] for rejected in pairs.rejected)
