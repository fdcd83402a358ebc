"""Parquet files, read within limits: a few bytes of one may stand for any number of rows, entries and texts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

from irm_fast.data.guards import bounded_memory
from irm_fast.data.problems import FieldError
from irm_fast.data.reading.limits import ALWAYS_ALLOWED, MAX_COLUMNS, MAX_GROWTH, MAX_LINE, PARQUET_MEMORY

BATCH, BATCH_BYTES = 8192, 2**26  # rows of a Parquet file that are read at once, and about how many bytes
_THREAD = 2**24  # bytes, which the threads of Arrow take beside what they read


def parquet_batches(file: IO[bytes]) -> Iterator[Any]:
    """Read a Parquet file, yielding record batches of Arrow without dictionaries.

    Types are those that the file declares by itself: what other programs note in its metadata is not heeded.

    Args:
        file: The file.

    Raises:
        FieldError: It cannot be read, is beyond limits, or two of its columns have one name.
    """
    import pyarrow

    pyarrow.allocate_buffer(1)  # the first time the memory pool reserves 1 GiB of addresses, which would count
    memory = PARQUET_MEMORY + _THREAD * (os.cpu_count() or 1)
    size, taken, rows = file.seek(0, os.SEEK_END), 0, 0
    try:
        with bounded_memory(memory):
            opened = _opened(file)
            batches = opened.iter_batches(_rows_at_once(opened.metadata))
        while True:
            with bounded_memory(memory):
                batch = next(batches, None)
                batch = None if batch is None else _decoded(batch)
            if batch is None and rows != opened.metadata.num_rows:
                text = f"says that it has {opened.metadata.num_rows:,} rows, and has {rows:,}; expected a whole file"
                raise FieldError("file", text)
            if batch is None:
                return
            taken += batch.nbytes
            limit = ALWAYS_ALLOWED + MAX_GROWTH * size
            if taken > limit:
                text = f"its rows take more than {limit:,} bytes, {MAX_GROWTH} times its size"
                raise FieldError("file", f"{text}; write it as JSON Lines")
            batch.validate(full=True)  # that texts are UTF-8, too
            _check_rows(batch, rows)
            rows += len(batch)
            yield batch
    except FieldError:
        raise
    except MemoryError:  # before the others: that of Arrow is of both kinds
        text = f"some {BATCH:,} rows after row {rows:,} take more than {PARQUET_MEMORY:,} bytes of memory"
        raise FieldError("file", f"{text}; expected shorter rows") from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise FieldError("file", f"cannot be read: {error}; expected a Parquet file") from None


def _opened(file: IO[bytes]) -> Any:
    """Open a file of a bounded number of columns with names of their own."""
    from pyarrow import parquet

    file.seek(0)
    metadata = parquet.read_metadata(file)
    if metadata.num_columns > MAX_COLUMNS:
        text = f"got {metadata.num_columns:,} columns, those within others too; expected at most {MAX_COLUMNS:,}"
        raise FieldError("file", text)
    file.seek(0)
    opened = parquet.ParquetFile(file, memory_map=True, metadata=metadata)
    names = opened.schema_arrow.names
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise FieldError(twice[0], f"{names.count(twice[0])} columns have this name; expected one")
    return opened


def _rows_at_once(metadata: Any) -> int:
    """Return how many rows are read at once, so that they take about `BATCH_BYTES` if the file tells the truth."""
    groups = [metadata.row_group(number) for number in range(min(metadata.num_row_groups, 100))]
    most = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=1)
    return max(1, min(BATCH, BATCH_BYTES // max(1, most)))


def _decoded(batch: Any) -> Any:
    """Return a batch whose columns hold their values themselves."""
    import pyarrow as pa

    if not any(pa.types.is_dictionary(column.type) for column in batch.columns):
        return batch
    columns = [
        column.dictionary_decode() if pa.types.is_dictionary(column.type) else column for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _check_rows(batch: Any, before: int) -> None:
    """Refuse a row that is longer than rows may be."""
    if batch.nbytes <= MAX_LINE:
        return
    for number in range(len(batch)):
        if batch.slice(number, 1).nbytes > MAX_LINE:
            where = f"row {before + number + 1:,} takes more than {MAX_LINE:,} bytes"
            raise FieldError("file", f"{where}; expected shorter rows")
