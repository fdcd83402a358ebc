"""What is declared about a log: where its fields stand, what its signals mean, what becomes of rows that are wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from irm_fast.data.mapping import FieldMap
from irm_fast.data.messages import Messages, fold_system, join_turns
from irm_fast.data.problems import shown
from irm_fast.data.signals import Absent

OnError = Literal["fail", "skip", "quarantine"]
Null = Literal["missing", "silent"]
NEGATIVE_SIGNALS = ("thumbs_down", "regenerate")  # -1 by their very name; a note says so
MAX_ERRORS = 0.05  # of the rows, by default
ALL = "all"
_STEMS = re.compile("thumbs?down|dislike|downvot|votedown|regenerat|complain|negative|unhelpful|nothelpful")
_WORDS = {
    "report", "reported", "flag", "flagged", "reject", "rejected", "dismiss", "dismissed", "discard", "discarded",
    "bad", "poor", "wrong", "incorrect", "unlike", "unliked", "angry", "hate", "hated", "retry", "retried", "block",
    "blocked", "down", "no",
}  # fmt: skip
_SIGNS = {
    "-1", "\N{THUMBS DOWN SIGN}", "\N{POUTING FACE}", "\N{ANGRY FACE}", "\N{CRYING FACE}", "\N{SLIGHTLY FROWNING FACE}",
    "\N{WHITE FROWNING FACE}", "\N{DISAPPOINTED FACE}", "\N{PILE OF POO}", "\N{CROSS MARK}", "\N{BROKEN HEART}",
}  # fmt: skip


def speaks_of_displeasure(name: str) -> bool:
    """Return whether the name of a signal has a word or a sign of displeasure, in any spelling.

    Examples:
        >>> [speaks_of_displeasure(name) for name in ("thumbsDown", "Thumbs Down", "disliked", "copy", "badge_shared")]
        [True, True, True, False, False]
    """
    words = re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    return bool(_STEMS.search("".join(words)) or _WORDS.intersection(words) or any(sign in name for sign in _SIGNS))


@dataclass(frozen=True)
class Declarations:
    """How a log is to be read.

    Attributes:
        map: Where fields stand that have other names, as of `FieldMap`.
        signals: The signals to read, in this order; None: all of the feedback. Those that no row has under `feedback`
            are columns of their own.
        absent: The meaning of a feedback key that some rows lack, for all signals or by name.
        null: The meaning of null, likewise.
        counts: Signals whose values are numbers of actions, of which any means that the user acted; ("all",): all.
        polarity: +1 or -1 by the name of a signal.
        misclick: Whether rows may contradict themselves.
        on_error: What becomes of rows that are wrong: "fail" refuses the log, "skip" leaves them out, "quarantine"
            writes them to a file too.
        max_errors: The number of wrong rows, or below 1 their share, beyond which the log is refused all the same.
        quarantine: The file of "quarantine". None: `LOG.quarantine.jsonl`, beside the log.
        fold_system: Put a system turn at the beginning of the first user turn.
        join_turns: Make one turn of neighbouring turns of one speaker.
        of_model: Whether a model says what its signals mean, so that their names need not.

    Raises:
        ValueError: A value is none of those that are expected.
    """

    map: Mapping[str, str] = field(default_factory=dict)
    signals: tuple[str, ...] | None = None
    absent: Absent | Mapping[str, Absent] = "error"
    null: Null | Mapping[str, Null] = "missing"
    counts: tuple[str, ...] = ()
    polarity: Mapping[str, int] = field(default_factory=dict)
    misclick: bool = False
    on_error: OnError = "fail"
    max_errors: float = MAX_ERRORS
    quarantine: Path | None = None
    fold_system: bool = False
    join_turns: bool = False
    of_model: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("absent", get_args(Absent)), ("null", get_args(Null))):
            given = getattr(self, name)
            for value in given.values() if isinstance(given, Mapping) else (given,):
                if value not in choices:
                    raise ValueError(f"{name}: got {value!r}; expected {', '.join(map(repr, choices))}")
        if self.on_error not in get_args(OnError):
            raise ValueError(f"on_error: got {self.on_error!r}; expected {', '.join(map(repr, get_args(OnError)))}")
        for name, sign in self.polarity.items():
            if isinstance(sign, bool) or sign not in (1, -1):
                raise ValueError(f"polarity: got {shown(sign)} for {name!r}; expected 1 or -1")
        if isinstance(self.max_errors, bool) or not self.max_errors >= 0:
            raise ValueError(
                f"max_errors: got {shown(self.max_errors)}; expected a share such as 0.05, or a number of rows"
            )
        FieldMap.of(self.map)

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any], **more: Any) -> Declarations:
        """Return what the settings of a run declare, among others perhaps.

        Args:
            settings: Settings by name, as `train.yaml` and the record of a model hold them.
            more: Further declarations, which replace them.
        """
        names = {entry.name for entry in fields(cls)}
        known = {name: value for name, value in settings.items() if name in names}
        for name in ("signals", "counts"):
            if isinstance(known.get(name), str):
                known[name] = [part.strip() for part in known[name].split(",")]
        return cls.of(**known | more)

    @classmethod
    def of(cls, **given: Any) -> Declarations:
        """Return declarations of those that are given; None stands for the default."""
        known = {name: value for name, value in given.items() if value is not None}
        for name in ("signals", "counts"):
            if isinstance(known.get(name), str):
                known[name] = (known[name],)
            elif name in known:
                known[name] = tuple(known[name])
        return cls(**known)

    def fill(self, name: str) -> Absent:
        """Return the meaning of an absent key of a signal."""
        return self.absent.get(name, "error") if isinstance(self.absent, Mapping) else self.absent

    def null_is_silent(self, name: str) -> bool:
        """Return whether null means that nothing happened, of a signal."""
        return (self.null.get(name) if isinstance(self.null, Mapping) else self.null) == "silent"

    def are_counts(self, name: str) -> bool:
        """Return whether the values of a signal are numbers of actions."""
        return name in self.counts or self.counts == (ALL,)

    def sign(self, name: str) -> int:
        """Return the polarity of a signal."""
        return int(self.polarity.get(name, -1 if name in NEGATIVE_SIGNALS else 1))

    def is_undeclared(self, name: str) -> bool:
        """Return whether the name of a signal speaks of displeasure and nothing says what it means."""
        return not self.of_model and name not in (*self.polarity, *NEGATIVE_SIGNALS) and speaks_of_displeasure(name)

    def formed(self, messages: Messages) -> Messages:
        """Return a conversation in the form that is declared."""
        messages = fold_system(messages) if self.fold_system else messages
        return join_turns(messages) if self.join_turns else messages

    def told(self) -> dict[str, str]:
        """Return what is declared, in words: what absent and null mean, and all else that is not the default."""
        words = {}
        for entry in fields(self):
            value, name = getattr(self, entry.name), entry.name
            default = entry.default_factory() if callable(entry.default_factory) else entry.default
            if name != "of_model" and (value != default or name in ("absent", "null", "on_error")):
                words[name] = _in_words(value)
        return words

    def allowed_errors(self, rows: int) -> int:
        """Return how many of so many rows may be wrong."""
        if self.on_error == "fail":
            return 0
        return int(self.max_errors * rows if self.max_errors < 1 else self.max_errors)


def _in_words(value: object) -> str:
    """Return a declaration in the words of the command line."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={entry}" for name, entry in value.items())
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "yes" if value is True else str(value)
