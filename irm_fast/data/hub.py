"""Rated responses of the literature on implicit feedback, from the Hugging Face hub.

HelpSteer, UltraFeedback and PKU-SafeRLHF are the data sets that the experiments of ImplicitRM (arXiv:2603.23184) and
CausalRM (arXiv:2603.18736) draw feedback for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from irm_fast.common.extras import need
from irm_fast.common.warning import warn_caller
from irm_fast.data.messages import Messages, completion_of, messages_of, prompt_of
from irm_fast.data.problems import FieldError, closest
from irm_fast.data.rated import Rated
from irm_fast.data.rows import number_of


class Response(NamedTuple):
    """A rated response of one row of a data set.

    Attributes:
        id: Its name.
        messages: The prompt and the response; empty if one of them is.
        rating: Its rating; NaN if that is missing or not finite.
        pair: The number that it shares with the other response to the prompt, or -1.
    """

    id: str
    messages: Messages
    rating: float
    pair: int


def helpsteer(name: str, number: int, row: Mapping[str, object]) -> list[Response]:
    """Return the one response, of `prompt`, `response` and `helpfulness`, 0 to 4; rows of one prompt are no pairs."""
    return [Response(name, _answer(row["prompt"], row["response"]), _rating(row["helpfulness"]), -1)]


def ultrafeedback(name: str, number: int, row: Mapping[str, object]) -> list[Response]:
    """Return `chosen` and `rejected`, lists of messages, with `score_chosen` and `score_rejected`, 1 to 10."""
    return [
        Response(f"{name}-{side}", _dialogue(row[side]), _rating(row[f"score_{side}"]), number)
        for side in ("chosen", "rejected")
    ]


def saferlhf(name: str, number: int, row: Mapping[str, object]) -> list[Response]:
    """Return the pair of `response_0` and `response_1` to `prompt`, rated 3 minus `response_{i}_severity_level`.

    The level goes from 0, safe, to 3, severe harm: a rating of 3 is safe.
    """
    return [
        Response(
            f"{name}-{i}",
            _answer(row["prompt"], row[f"response_{i}"]),
            3 - _rating(row[f"response_{i}_severity_level"]),
            number,
        )
        for i in range(2)
    ]


@dataclass(frozen=True)
class Source:
    """A data set of the hub, and how its rows become rated responses.

    Attributes:
        repository: The id of the data set.
        splits: The splits to read, one after the other.
        columns: The columns that `convert` reads.
        median: The rating above which a response is preferred: the middle of the scale, not of the rows.
        convert: A function of a name, a number and a row that returns the row's responses. Their ids begin with the
            name, which is unique to the row, and their pair, if they are one, has the number.
    """

    repository: str
    splits: tuple[str, ...]
    columns: tuple[str, ...]
    median: float
    convert: Callable[[str, int, Mapping[str, object]], list[Response]]


SOURCES = {
    "hs": Source("nvidia/HelpSteer", ("train",), ("prompt", "response", "helpfulness"), 2, helpsteer),
    "ufb": Source(
        "HuggingFaceH4/ultrafeedback_binarized",
        ("train_prefs",),  # train_sft and train_gen hold the same prompts again
        ("chosen", "rejected", "score_chosen", "score_rejected"),
        6.5,  # where public preparations of this data set for the same experiments cut
        ultrafeedback,
    ),
    "saferlhf": Source(
        "PKU-Alignment/PKU-SafeRLHF",
        ("train",),
        ("prompt", "response_0", "response_1", "response_0_severity_level", "response_1_severity_level"),
        1.5,
        saferlhf,
    ),
}


def fetch_rated(name: str, limit: int | None = None) -> Rated:
    """Fetch the rated responses of a data set's train split from the Hugging Face hub.

    Ids are name, split, row and, in pairs, response: "hs-train-17", "ufb-train_prefs-17-chosen",
    "saferlhf-train-17-1". Preferred is what is rated above the median level, as in the published protocol: 2 of 0 to 4,
    6.5 of 1 to 10, 1.5 of 0 to 3. Responses without a text, a prompt or a finite rating are left out with one warning
    that counts them; the other response of their pair stays, with a pair of -1.

    Args:
        name: "hs" (HelpSteer), "ufb" (UltraFeedback, binarized) or "saferlhf" (PKU-SafeRLHF).
        limit: The number of responses to fetch, the first ones; None: all.

    Raises:
        ValueError: The name is unknown, the limit is below 1, a column is missing, or no response can be used.
        MissingPackageError: The package `datasets` is not installed.
        RuntimeError: The hub cannot be reached.

    Examples:
        >>> rated = fetch_rated("hs", limit=1000)  # doctest: +SKIP
        >>> rated.ids[0]  # doctest: +SKIP
        'hs-train-0'
    """
    if name not in SOURCES:
        raise ValueError(f"name: got {name!r}{closest(name, tuple(SOURCES))}; expected one of {', '.join(SOURCES)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit: got {limit}; expected a whole number from 1, or None for all responses")
    source = SOURCES[name]
    kept: list[Response] = []
    left_out = 0
    for response in _responses(name, source):
        if not response.messages or not math.isfinite(response.rating):
            left_out += 1
            continue
        kept.append(response)
        if len(kept) == limit:
            break
    why = f"{source.repository}: {left_out} responses left out because text, prompt or rating is missing"
    if not kept:
        raise ValueError(f"{why}; none remains")
    if left_out:
        warn_caller(why)
    sizes = Counter(response.pair for response in kept)
    rating = np.array([response.rating for response in kept], np.float64)
    return Rated(
        ids=[response.id for response in kept],
        messages=[response.messages for response in kept],
        rating=rating,
        preference=(rating > source.median).astype(np.int8),
        pair=np.array([response.pair if sizes[response.pair] == 2 else -1 for response in kept], np.int64),
    )


def _responses(name: str, source: Source) -> Iterator[Response]:
    """Yield the responses of all rows, those that cannot be used as well."""
    number = 0
    for split in source.splits:
        for i, row in enumerate(_load(name, source, split)):
            yield from source.convert(f"{name}-{split}-{i}", number, row)
            number += 1


def _load(name: str, source: Source, split: str) -> Any:
    """Load one split, reduced to the columns that are read."""
    need("datasets", f"data: {name}, of the hub")
    import datasets
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # no OSError in some versions

    try:
        rows = datasets.load_dataset(source.repository, split=split)
    except (OSError, HTTPError) as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise RuntimeError(
            f"data: {name} is fetched from the hub ({source.repository}), which cannot be reached: {cause}; "
            "give a file instead"
        ) from error
    for column in source.columns:
        if column not in rows.column_names:
            raise ValueError(
                f"{source.repository}: column {column!r} is missing from {split}; expected {', '.join(source.columns)}"
            )
    return rows.select_columns(list(source.columns))


def _answer(prompt: object, response: object) -> Messages:
    """Return the conversation of one prompt and one response; empty if either is."""
    try:
        return prompt_of(prompt, "prompt") + completion_of(response, "response")
    except FieldError:
        return []


def _dialogue(turns: object) -> Messages:
    """Return the conversation that ends with the response; empty if the response or a turn before it is."""
    try:
        messages = messages_of(turns, "messages")
        if not all(turn["content"].strip() for turn in messages):
            return []
        return _answer(messages[:-1], messages[-1:])
    except FieldError:
        return []


def _rating(value: object) -> float:
    """Return a rating, NaN if it is no finite number."""
    try:
        return number_of(value, "rating")
    except FieldError:
        return math.nan
