"""The rows of a log, block by block: by columns where they are plain, else row by row."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from irm_fast.data.declarations import Declarations
from irm_fast.data.log_rows import LogRow, log_row
from irm_fast.data.parts import Part, Seen, in_order, part_of_rows
from irm_fast.data.problems import Problems
from irm_fast.data.reading.blocks import Block, LineBlock, RawRow, RowBlock, TableBlock
from irm_fast.data.reading.column_reader import Columns, InDoubtError, can_read, part_of_columns
from irm_fast.data.reading.line_tables import LineTable, LineTables
from irm_fast.data.row_stream import RowStream

_LEARNT_FROM = 1000  # rows that are read one by one anyway
_FEW = 64  # lines that are read one by one if they are no table
_AHEAD = 2  # blocks that are parsed while another is checked


class LogReader:
    """Reads the blocks of a log.

    Args:
        declared: How the log is to be read.
        problems: Gets what is wrong with rows, and what should be known.
        seen: What the rows so far have; it is extended.

    Attributes:
        stream: The rows that are read one by one, and the number of all.
        by_columns: The number of rows that were read by columns.
    """

    def __init__(self, declared: Declarations, problems: Problems, seen: Seen) -> None:
        self.declared, self.problems, self.seen = declared, problems, seen
        self.stream = RowStream(declared, problems)
        self.by_columns = 0
        self._tables = LineTables()
        self._learnt = 0

    def parts(self, blocks: Iterable[Block]) -> Iterator[Part]:
        """Yield the rows of blocks that can be used."""
        if can_read(self.declared):
            for block, table in self._parsed(blocks):
                yield from self._parts(block, table)
        else:
            for block in blocks:
                yield part_of_rows(self._rows(block.rows()), self.seen)

    def _parsed(self, blocks: Iterable[Block]) -> Iterator[tuple[Block, LineTable | TableBlock | None]]:
        """Yield blocks and their tables, or None where they are not plain; lines are parsed ahead."""
        ahead: deque[tuple[Block, Future[LineTable | None]]] = deque()
        with ThreadPoolExecutor(1) as pool:
            for block in blocks:
                if isinstance(block, LineBlock):
                    ahead.append((block, pool.submit(self._tables.table_of, block)))
                    if len(ahead) <= _AHEAD:
                        continue
                while ahead and (len(ahead) > _AHEAD or not isinstance(block, LineBlock)):
                    first, parsed = ahead.popleft()
                    yield first, parsed.result()
                if not isinstance(block, LineBlock):
                    yield block, block if isinstance(block, TableBlock) else None
            while ahead:
                first, parsed = ahead.popleft()
                yield first, parsed.result()

    def _parts(self, block: Block, table: LineTable | TableBlock | None) -> Iterator[Part]:
        """Yield the rows of a block, in several parts where only some of its lines are a table."""
        if table is not None and not isinstance(block, RowBlock):
            yield self._part(block, table)
        elif (
            isinstance(block, LineBlock)
            and block.lines > _FEW
            and self._tables.kind
            and len(halves := block.halves()) > 1
        ):
            for half in halves:
                yield from self._parts(half, self._tables.table_of(half))
        else:
            raw = list(block.rows())
            if isinstance(block, LineBlock) or self._learnt < _LEARNT_FROM:
                self._learnt += len(raw)
                self._tables.learn(row.content for row in raw if isinstance(row.content, dict))
            yield part_of_rows(self._rows(raw), self.seen)

    def _part(self, block: LineBlock | TableBlock, table: LineTable | TableBlock) -> Part:
        """Return the rows of a table."""
        try:
            part, doubts = part_of_columns(Columns(block.first, table, self.declared, self.seen), self.problems)
        except InDoubtError:
            return part_of_rows(self._rows(block.rows()), self.seen)
        self.stream.seen += len(part)
        self.by_columns += len(part)
        if not len(doubts):
            return part
        return in_order([part, part_of_rows(self._rows(block.rows(doubts)), self.seen)])

    def _rows(self, raw: Iterable[RawRow]) -> list[LogRow]:
        """Return the rows that can be used, of those that are read one by one."""
        rows = (log_row(line, content, self.declared, self.problems) for line, content in self.stream.rows(raw))
        return [row for row in rows if row is not None]
