"""The parts of a log put together: first come, first kept, as the arrays and the texts of one log."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from irm_fast.common.warning import warn_caller
from irm_fast.data.declarations import Declarations
from irm_fast.data.groups import turn_key
from irm_fast.data.log import Log
from irm_fast.data.parts import ABSENT, Part, Seen, compact, joined
from irm_fast.data.texts import Conversations, Names, Store

Keep = Literal["texts", "hashes"]  # of texts, users and sessions
_LATEST = 2**18  # rows of small parts, beyond which they become a larger one


@dataclass
class Gathered:
    """The rows of a log, as they were read.

    Attributes:
        part: All rows as one part, without its texts.
        seen: What they have.
        log: The log.
        hashes: As of `Part`, of shape (N,): "id", and where the log does not have them also the others.
    """

    part: Part
    seen: Seen
    log: Log
    hashes: dict[str, np.ndarray]

    def subset(self, index: np.ndarray) -> Gathered:
        """Return the rows that an index selects."""
        hashes = {name: values[index] for name, values in self.hashes.items()}
        texts = self.log.messages if len(self.log.messages) == len(self.log) else self.log.ids  # there may be none
        log = replace(self.log, messages=texts).subset(index)  # type: ignore[arg-type]
        return Gathered(self.part, self.seen, log if texts is self.log.messages else replace(log, messages=[]), hashes)


class Gathering:
    """Takes the parts of a log, in their order.

    Args:
        keep: "texts" for a log; "hashes" for one without conversations, users and sessions, which only counts them.

    Attributes:
        seen: What the rows so far have.
    """

    def __init__(self, keep: Keep) -> None:
        self.keep, self.seen = keep, Seen()
        self._parts: list[Part] = []
        self._latest: list[Part] = []  # small ones, whose memory the next ones take
        self._ids = Store(None if keep == "texts" else 2**24)  # of hashes names are asked for only where two are alike
        self._texts = Store()

    def add(self, part: Part) -> None:
        """Take a part."""
        import pyarrow

        part.hashes["id"] = hashes(part.ids)
        self._ids.add(pyarrow.record_batch([part.ids], ["name"]))
        if self.keep == "texts":
            self._texts.add(part.texts)
        else:
            part.hashes["text"] = _text_hashes(part.texts)
            part.hashes |= {name: hashes(column) for name, column in part.names.items()}
            part.names = {}
        part.ids = part.texts = None
        self._latest.append(part)
        if sum(map(len, self._latest)) > _LATEST:
            self._parts.append(compact(self._latest))
            self._latest = []

    def gathered(self, signals: tuple[str, ...], declared: Declarations) -> Gathered:
        """Return all rows as a log.

        Args:
            signals: The names of the signals to take.
            declared: How the log is to be read.
        """
        parts, names = [*self._parts, *self._latest], self.seen.feature_names or ()
        self._parts, self._latest = [], []
        part = joined(parts) if parts else empty_part()
        columns = {name: Names(_encoded(column)) for name, column in part.names.items()}
        log = Log(
            ids=Names(self._ids.close()),
            messages=Conversations(self._texts.close()),
            signals=signals,
            polarity=tuple(declared.sign(name) for name in signals),
            feedback=_feedback(part, signals, declared),
            preference=part.preference,
            weight=_weight(part),
            propensity=_matrix({n: e.values for n, e in part.propensity.items()}, signals, len(part), np.float32),
            features=_features(part, names),
            feature_names=names,
            user_ids=columns.get("user_id"),
            session_ids=columns.get("session_id"),
            times=part.numbers.get("time"),
            positions=part.numbers.get("position"),
            label_probability=part.numbers.get("label_probability"),
            acted_at=_matrix({n: e.values for n, e in part.acted_at.items()}, signals, len(part), np.float64),
            segments={name: Names(_encoded(part.segments[name])) for name in self.seen.segments},
        )
        if part.unknown_times:
            warn_caller(
                f"timestamp: {part.unknown_times} rows name a day before 1970 or after 5138, such as 0000-00-00: their "
                "time is taken as unknown"
            )
        return Gathered(part, self.seen, log, part.hashes)


def empty_part() -> Part:
    """Return a part without rows."""
    nothing, none = np.zeros(0, bool), np.zeros(0, np.int64)
    return Part(none, None, None, nothing, np.zeros(0, np.int8), nothing, hashes={"id": none, "text": none})


def _encoded(column: Any) -> list[Any]:
    """Return strings of which many are alike as record batches of one column, by a dictionary."""
    import pyarrow

    encoded = column.dictionary_encode().combine_chunks()
    chunks = encoded.chunks if isinstance(encoded, pyarrow.ChunkedArray) else [encoded]
    return [pyarrow.record_batch([chunk], ["name"]) for chunk in chunks]


def _feedback(part: Part, signals: tuple[str, ...], declared: Declarations) -> np.ndarray:
    """Return the feedback of all rows, (N, K) int8.

    A row without a feedback object (an expert's label, say) records nothing, whatever an absent key means.
    """
    feedback = np.full((len(part), len(signals)), -1, np.int8)
    for k, name in enumerate(signals):
        held = part.feedback.get(name)
        if declared.fill(name) == "silent":
            feedback[part.recorded, k] = 0
        if held is not None:
            np.copyto(feedback[:, k], held, where=held != ABSENT)
    return feedback


def _weight(part: Part) -> np.ndarray | None:
    if "weight" not in part.numbers:
        return None
    weight = part.numbers["weight"]
    return np.where(np.isnan(weight), 1, weight).astype(np.float32)


def _matrix(held: dict[str, np.ndarray], names: tuple[str, ...], rows: int, dtype: Any) -> np.ndarray | None:
    """Return numbers of shape (N, names), NaN where not given; None if no row has any."""
    if not held:
        return None
    matrix = np.full((rows, len(names)), np.nan, dtype)
    for k, name in enumerate(names):
        if name in held:
            matrix[:, k] = held[name]
    return matrix


def _features(part: Part, names: tuple[str, ...]) -> np.ndarray | None:
    return _matrix(part.features, names, len(part), np.float32) if names else None


def hashes(column: Any) -> np.ndarray:
    """Return a hash (int64) of each string of an Arrow array, of shape (n,), 0 for null; another in each process."""
    values = column.to_pylist()
    if column.null_count:
        return np.fromiter((0 if value is None else hash(value) or 1 for value in values), np.int64, len(values))
    return np.fromiter(map(hash, values), np.int64, len(values))


def _text_hashes(batch: Any) -> np.ndarray:
    """Return a hash (int64) of each conversation, of its roles and all that is said; names do not count."""
    prompts, completions = batch.columns
    found: np.ndarray = hashes(prompts) * np.int64(0x1E3779B97F4A7C15) + hashes(completions)
    for place in np.flatnonzero(prompts.is_null().to_numpy(zero_copy_only=False)).tolist():
        found[place] = hash(tuple(map(turn_key, json.loads(completions[place].as_py()))))
    return found
