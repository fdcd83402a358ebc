"""Tables that DuckDB reads: files of one kind, told by what they hold, and the columns that a join asks them for."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from irm_fast.common.extras import need
from irm_fast.data.problems import DataError, closest
from irm_fast.data.reading.compression import packing, unpacked
from irm_fast.data.reading.limits import MAX_LINE
from irm_fast.data.reading.sources import Given, Source

HEAD, MEMORY = 1000, "3GB"
_UNPACKS = {None: "", "gzip": ", compression = 'gzip'", "zstd": ", compression = 'zstd'"}  # options of a reader
_SECONDS = """CREATE MACRO seconds(value) AS coalesce(
    CASE WHEN try_cast(value AS DOUBLE) > 1e17 THEN try_cast(value AS DOUBLE) / 1e9
         WHEN try_cast(value AS DOUBLE) > 1e14 THEN try_cast(value AS DOUBLE) / 1e6
         WHEN try_cast(value AS DOUBLE) > 1e11 THEN try_cast(value AS DOUBLE) / 1e3
         ELSE try_cast(value AS DOUBLE) END,
    epoch(try_cast(value AS TIMESTAMPTZ)))"""


def quoted(name: str) -> str:
    """Return a name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


@contextmanager
def database(out: Path, memory: str = MEMORY) -> Iterator[Any]:
    """Open a DuckDB in memory that spills into a folder beside a file, which is deleted at the end.

    Args:
        out: The file that will be written.
        memory: The memory that it may take, such as "3GB".

    Raises:
        MissingPackageError: DuckDB is not installed.
        ValueError: The memory is no size, or DuckDB fails within the context.
    """
    need("duckdb", "import: the join of tables")
    import duckdb

    with TemporaryDirectory(prefix=f"{out.name}.", dir=out.parent) as folder:
        connection = duckdb.connect(config={"autoinstall_known_extensions": "false", "temp_directory": folder})
        try:
            connection.execute(f"SET memory_limit = {literal(memory)}")
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute(_SECONDS)
            yield connection
        except duckdb.Error as error:
            said = str(error).splitlines()[0]
            raise ValueError(f"import: {out} is not written: {said}; look at the columns of the tables") from error
        finally:
            connection.close()


@dataclass(frozen=True)
class Table:
    """Rows that DuckDB reads.

    Attributes:
        name: What they are, as messages say it.
        rows: SQL of the rows, which stands after FROM.
        columns: The columns, each with its type; None of rows of JSON, whose one column is `json`.
        fields: The names of the columns, or of the fields of the rows of JSON.
    """

    name: str
    rows: str
    columns: dict[str, str] | None
    fields: tuple[str, ...]

    @classmethod
    def of(cls, connection: Any, name: str, given: Given) -> Table:
        """Return the table of files.

        Raises:
            DataError: There are no such files, or they are of several kinds or of none that DuckDB reads.
        """
        source = Source.of(given)
        kinds = {_kind(part) for part in source.parts}
        if len(kinds) > 1:
            listed = ", ".join(sorted(f"{kind}{f' packed by {packed}' if packed else ''}" for kind, packed in kinds))
            raise DataError([f"{source}: file: got {listed}; expected files of one kind"])
        [(kind, packed)] = kinds
        names = [re.sub(r"([*?[])", r"[\1]", part) for part in source.parts]  # which are no patterns
        files = f"[{', '.join(map(literal, names))}]"
        if kind == "json":
            options = f"format = 'auto', maximum_object_size = {MAX_LINE}{_UNPACKS[packed]}"
            return cls.of_json(connection, name, f"read_json_objects({files}, {options})")
        if kind == "csv":
            options = f"all_varchar = true, header = true, union_by_name = true{_UNPACKS[packed]}"
            rows = f"read_csv({files}, {options})"
        else:
            rows = f"read_parquet({files}, union_by_name = true)"
        columns = {row[0]: row[1] for row in connection.execute(f"DESCRIBE SELECT * FROM {rows}").fetchall()}
        return cls(name, rows, columns, tuple(columns))

    @classmethod
    def of_json(cls, connection: Any, name: str, rows: str) -> Table:
        """Return the table of rows with one column, `json`."""
        fields = connection.execute(
            f"SELECT DISTINCT unnest(json_keys(json)) AS field FROM {rows} ORDER BY field"
        ).fetchall()
        return cls(name, rows, None, tuple(row[0] for row in fields))

    def first_of(self, names: Sequence[str], meaning: str) -> str:
        """Return the first of some names that the table has.

        Raises:
            DataError: It has none of them.
        """
        for name in names:
            if name in self.fields or name.split(".")[0] in self.fields:
                return name
        near = closest(names[0], self.fields) if len(names) == 1 else ""
        raise DataError(
            [f"{self.name}: {meaning}: got the columns {_listed(self.fields)}; expected {_or(names)}{near}"]
        )

    def has(self, names: Sequence[str]) -> str | None:
        """Return the first of some names that the table has, or None."""
        return next((name for name in names if name in self.fields), None)

    def text(self, name: str) -> str:
        """Return SQL of a column as text; of rows of JSON a path, such as properties.id, leads into them."""
        if self.columns is None:
            path = [name] if name in self.fields else name.split(".")
            return f"(json ->> {literal('$' + ''.join(f'.{json.dumps(step)}' for step in path))})"
        return f"CAST({quoted(name)} AS VARCHAR)"

    def time(self, name: str) -> str:
        """Return SQL of a column as seconds since 1970."""
        kind = (self.columns or {}).get(name, "VARCHAR")
        if kind.startswith(("TIMESTAMP", "DATE")):
            return f"epoch({quoted(name)})"
        return f"seconds({self.text(name)})"

    def as_columns(self) -> Table:
        """Return the table with columns in the place of rows of JSON; what is no text in them is text of JSON."""
        if self.columns is not None:
            return self
        selected = ", ".join(f"{self.text(field)} AS {quoted(field)}" for field in self.fields)
        return replace(
            self, rows=f"(SELECT {selected} FROM {self.rows})", columns=dict.fromkeys(self.fields, "VARCHAR")
        )


def _kind(part: str) -> tuple[str, str | None]:
    """Return the kind of a file, "json", "csv" or "parquet", and how it is packed."""
    if part == "-" or not Path(part).is_file():
        raise DataError([f"{part}: file: got no file; expected files, which are read more than once"])
    with open(part, "rb") as file:
        packed = packing(file.read(HEAD))
        file.seek(0)
        if packed not in _UNPACKS:
            raise DataError([f"{part}: file: packed by {packed}; expected gzip, zstd, or an unpacked file"])
        head: bytes = (unpacked(file, packed) if packed else file).read(HEAD)
    if head.startswith(b"PAR1"):
        return "parquet", packed
    if b"\x00" in head or not head.strip():
        kinds = "JSON Lines, a JSON array or CSV, in UTF-8, or Parquet"
        raise DataError([f"{part}: file: {'no text of UTF-8' if head.strip() else 'empty'}; expected {kinds}"])
    is_json = head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"[")
    return "json" if is_json else "csv", packed


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 30} more" if len(names) > 30 else ""
    return ", ".join(names[:30]) + more if names else "none"


def _or(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"one of {', '.join(names)}"
