"""The rows of a source on their way to a log or to conversations, and what becomes of those that are wrong."""

from __future__ import annotations

import bisect
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from irm_fast.common.warning import warn_caller
from irm_fast.data.declarations import Declarations
from irm_fast.data.importing.layouts import in_log_layout
from irm_fast.data.mapping import FieldMap
from irm_fast.data.problems import FieldError, Problems
from irm_fast.data.reading.blocks import RawRow
from irm_fast.data.reading.sources import QUARANTINE, Given, Source
from irm_fast.data.writing.whole import whole_file

SHOWN_REASONS = 5


class RowStream:
    """Rows with their numbers, from records of any known layout, with the fields that are mapped.

    Args:
        declared: How they are to be read.
        problems: Gets what cannot be read or mapped.

    Attributes:
        seen: The number of rows so far, wrong ones too.
    """

    def __init__(self, declared: Declarations, problems: Problems) -> None:
        self.declared, self.problems, self.seen = declared, problems, 0

    def rows(self, raw: Iterable[RawRow]) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield the next rows, of those that were read."""
        fields = FieldMap.of(self.declared.map) if self.declared.map else None
        for line, content in raw if fields else in_log_layout(raw, self.problems.noted):
            if line is not None:
                self.seen += 1
            if isinstance(content, FieldError):
                self.problems.add(line, content.field, content.text)
                continue
            assert line is not None  # which stands for a whole file that cannot be read
            try:
                row = content if fields is None else fields.apply(content)
            except FieldError as error:
                self.problems.add(line, error.field, error.text)
                continue
            yield line, row

    def leave_out(self) -> dict[int, str]:
        """Take wrong rows out of the problems where that is declared and they are few, and write a quarantine.

        Returns:
            Why each row is left out, by its number.
        """
        if self.declared.on_error == "fail":
            return {}
        skipped = self.problems.skip(self.declared.allowed_errors(self.seen), self.seen)
        if skipped and self.declared.on_error == "quarantine":
            as_read = self._read_again(skipped)
            with whole_file(quarantine_path(self.problems, self.declared)) as file:
                for line, reason in skipped.items():
                    entry = {"place": self.problems.place(line), "reason": reason, "row": as_read.get(line)}
                    file.write(json.dumps(entry, default=str) + "\n")
        return skipped

    def _read_again(self, lines: Mapping[int, object]) -> dict[int, object]:
        """Return the rows of these numbers as they are in the source, None where there is no object."""
        assert isinstance(self.problems.source, Source)
        wanted, last = sorted(lines), 0
        found: dict[int, object] = {}
        for block in self.problems.source.blocks():
            place = bisect.bisect_right(wanted, last)
            last = max(last, block.last)
            if place < len(wanted) and wanted[place] <= last:
                for line, row in block.rows() if self.declared.map else in_log_layout(block.rows(), Counter()):
                    if line is not None and line in lines:
                        found[line] = None if isinstance(row, FieldError) else row
        return found


def source_of(given: Given, declared: Declarations) -> Source:
    """Return the source of rows, which can be read again where a quarantine will ask for some."""
    source = Source.of(given)
    return source.repeatable() if declared.on_error == "quarantine" else source


def quarantine_path(problems: Problems, declared: Declarations) -> Path:
    """Return the file for the rows of a source that are wrong: what is declared, or one beside the source."""
    if declared.quarantine is not None:
        return declared.quarantine
    assert isinstance(problems.source, Source)
    named, first = Path(str(problems.source)), Path(problems.source.parts[0])
    beside = named if named.exists() else first
    if not beside.exists():
        raise ValueError(f"quarantine: none given; expected the path of a file, since {problems.source} is none")
    return beside.with_name(f"{beside.name}{QUARANTINE}")


def counted(skipped: Mapping[int, str]) -> dict[str, int]:
    """Return why rows were left out, each reason with their number, the most frequent first."""
    return dict(Counter(skipped.values()).most_common())


def warn_of_skipped(skipped: Mapping[int, str], rows: int, problems: Problems, declared: Declarations) -> None:
    """Warn of rows that were left out.

    Args:
        skipped: What `RowStream.leave_out` returns.
        rows: The number of all rows.
        problems: The problems of the source.
        declared: How it was read.
    """
    if not skipped:
        return
    reasons = "; ".join(f"{count} x {reason}" for reason, count in list(counted(skipped).items())[:SHOWN_REASONS])
    kept = f"; they are in {quarantine_path(problems, declared)}" if declared.on_error == "quarantine" else ""
    warn_caller(f"{problems.source}: left out {len(skipped)} of {rows} rows: {reasons}{kept}")
