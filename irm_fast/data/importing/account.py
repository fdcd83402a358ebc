"""The account of an import: what was read, what was kept, what was left out and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Account:
    """What an import did.

    Attributes:
        read: The numbers of things that were read, by their names.
        kept: The number of rows that were written.
        dropped: Why something was left out, with the number of times.
        notes: What should be known.
    """

    read: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the account as lines of text."""
        return [
            f"read: {', '.join(f'{count:,} {name}' for name, count in self.read.items())}",
            f"kept: {self.kept:,} rows",
            *(f"left out: {count:,} {reason}" for reason, count in self.dropped.most_common() if count),
            *(f"note: {note}" for note in self.notes),
        ]
