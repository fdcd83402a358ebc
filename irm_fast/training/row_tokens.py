"""The token ids of all that a run trains on and is judged by, made once, while the rendering of each row is checked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from irm_fast.data.joined import Joined
from irm_fast.data.log import Log
from irm_fast.data.pairs import Pairs
from irm_fast.models.backbone import limit_of_model, ready_tokenizer
from irm_fast.models.rendering import RenderingCheck
from irm_fast.models.token_store import Tokens, TokenStore
from irm_fast.models.tokens import CHUNK, encode_texts
from irm_fast.training.config import TrainConfig

if TYPE_CHECKING:
    from irm_fast.data.messages import Messages


class RowTokens(NamedTuple):
    """The token ids of a run, cut at the limit of the model. All of them lie in one array.

    Attributes:
        log: Of the rows to train on, and of the sides of pairs after them.
        heldout: Of the rows to evaluate on, and of the sides of pairs after them; None without such rows.
        truncated: The number of rows to train on, and of sides, that are longer than the limit.
        digest: A hash of the token ids of all rows, whatever their order.
    """

    log: Tokens
    heldout: Tokens | None
    truncated: int
    digest: str


def tokens_of(logs: Sequence[Log], pairs: Sequence[Pairs | None], config: TrainConfig, date: str | None) -> RowTokens:
    """Tokenise the rows of a run.

    Args:
        logs: The training part, and the held-out part if there is one.
        pairs: The pairs of each part, or None.
        config: The settings.
        date: The date that chat templates print.

    Raises:
        ValueError: The chat template refuses a row, as `RenderingCheck.report`, or all rows are the same tokens.
    """
    tokenizer, limit = ready_tokenizer(config.model, date), limit_of_model(config.model, config.max_length)
    store, longer = TokenStore(), []
    rows, sides = RenderingCheck(tokenizer), RenderingCheck(tokenizer)
    counts: list[int] = []
    digest = 0

    def add(conversations: Sequence[Messages], check: RenderingCheck) -> int:
        """Check and tokenise conversations; gives how many are longer than the limit."""
        nonlocal digest
        cut = 0
        for start in range(0, len(conversations), CHUNK):
            texts = check.add(list(conversations[start : start + CHUNK]))
            if all(texts):  # else there is an error to report
                ids, more = encode_texts(tokenizer, texts, limit)
                store.add(ids)
                digest += sum(map(_hash, ids))
                cut += more
        return cut

    for log, beside in zip(logs, pairs, strict=True):
        cut = add(log.messages, rows) + (0 if beside is None else add(beside.sides, sides))
        longer.append(cut)
        counts.append(len(log) + (0 if beside is None else 2 * len(beside)))
    rows.report(Joined([log.ids for log in logs]))
    sides.report([name for some in pairs if some is not None for name in some.ids for _ in range(2)])
    tokens = store.close()
    _check_differ(tokens[: counts[0]], limit)
    heldout = tokens[counts[0] :] if len(logs) > 1 else None
    return RowTokens(tokens[: counts[0]], heldout, longer[0], f"{digest % 2**64:016x}")


def _hash(ids: Sequence[int]) -> int:
    """A hash of the token ids (T,) of a row."""
    return int.from_bytes(hashlib.blake2b(np.asarray(ids, "<i8").tobytes(), digest_size=8).digest(), "little")


def _check_differ(tokens: Tokens, limit: int) -> None:
    """Raise ValueError if rows are all the same to a language model, so that no reward could tell them apart."""
    if len(tokens) > 1 and all(np.array_equal(tokens[row], tokens[0]) for row in range(1, len(tokens))):
        raise ValueError(
            f"max_length: got {limit}, and all {len(tokens)} rows are the same {len(tokens[0])} tokens, so that no "
            "reward tells them apart; expected more tokens a row, or responses that differ: look at the log"
        )
