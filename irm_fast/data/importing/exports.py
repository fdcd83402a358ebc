"""Importing what tracing tools export: their answers and scores are parted by `traces`, and joined like any tables."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from irm_fast.data.importing.account import Account
from irm_fast.data.importing.joining import join
from irm_fast.data.importing.records import check_out
from irm_fast.data.importing.tables import MEMORY, Table, database, literal
from irm_fast.data.importing.thumbs import DOWN, UP
from irm_fast.data.importing.traces import READERS, Action, Span
from irm_fast.data.importing.windows import Windows
from irm_fast.data.problems import DataError, FieldError
from irm_fast.data.reading.limits import MAX_LINE
from irm_fast.data.reading.sources import Given, Source

_SPANS = {"key": "VARCHAR", "trace": "VARCHAR", "rank": "INTEGER", "time": "DOUBLE", "row": "JSON"}
_ACTIONS = {"key": "VARCHAR", "trace": "VARCHAR", "signal": "VARCHAR", "time": "DOUBLE"}
# The answer of each trace: of the highest rank the last. Users and sessions may stand at other spans of the trace.
_ANSWERS = """CREATE TEMP TABLE answers AS SELECT key, trace, json_merge_patch(json_object(
    'id', trace, 'timestamp', time, 'user_id', user_id, 'session_id', session_id), row) AS json FROM (
        SELECT *, max(row ->> 'user_id') OVER same AS user_id, max(row ->> 'session_id') OVER same AS session_id,
            row_number() OVER (PARTITION BY trace ORDER BY rank DESC, time DESC, key DESC) AS place
        FROM spans WINDOW same AS (PARTITION BY trace)) WHERE rank > 0 AND place = 1"""
# Scores of spans belong to their traces; of thumbs of one trace the last counts, which may take an earlier one back.
_SCORES = f"""CREATE TEMP TABLE scores AS SELECT coalesce(s.trace, a.trace, a.key) AS id, signal, a.time AS time,
    CASE WHEN signal IN ('{UP}', '{DOWN}') THEN 'thumbs' ELSE signal END AS family, a.key AS key
    FROM actions a LEFT JOIN (SELECT key, any_value(trace) AS trace FROM spans GROUP BY key) s ON s.key = a.key"""
_LAST = """SELECT id, signal, time FROM scores WHERE family != 'thumbs' UNION ALL SELECT id, signal, time FROM scores
    WHERE family = 'thumbs' QUALIFY row_number() OVER (PARTITION BY id ORDER BY time DESC) = 1"""


def import_traces(
    product: str,
    given: Given,
    out: Path,
    *,
    windows: Windows | None = None,
    signals: list[str] | None = None,
    memory: str = MEMORY,
    overwrite: bool = False,
) -> Account:
    """Write the log of what a tracing tool exported.

    Args:
        product: "langfuse", "langsmith", "phoenix" or "posthog".
        given: Its files, as of `read_log`: calls and scores, in files of their own or together.
        out: The log to write, NAME.jsonl or NAME.parquet.
        windows: How long after an answer a score counts.
        signals: The signals to keep; None: all.
        memory: The memory that the join may take.
        overwrite: Replace the log if it exists.

    Returns:
        What was read, kept and left out.

    Raises:
        DataError: There are no answers, or no actions of users.
        MissingPackageError: DuckDB is not installed.
        ValueError: The log may not be written there.
    """
    source = Source.of(given)
    check_out(out, source, overwrite=overwrite)
    with TemporaryDirectory(prefix=f"{out.name}.", dir=out.parent) as folder, database(out, memory) as connection:
        read, left = _part(product, source, Path(folder))
        for name, columns in (("spans", _SPANS), ("actions", _ACTIONS)):
            kinds = ", ".join(f"{column}: '{kind}'" for column, kind in columns.items())
            rows = f"read_json({literal(f'{folder}/{name}')}, format = 'newline_delimited', columns = {{{kinds}}}"
            made = f"CREATE TEMP TABLE {name} AS SELECT * FROM {rows}, maximum_object_size = {2 * MAX_LINE})"
            connection.execute(made)
        for statement in (_ANSWERS, _SCORES, "DROP TABLE actions"):
            connection.execute(statement)
        _check(connection, source, read, left)
        notes = _notes(connection, left)
        shown = Table.of_json(connection, "answers", "answers")
        columns = {"id": "VARCHAR", "signal": "VARCHAR", "time": "DOUBLE"}
        acted = Table("scores", f"({_LAST})", columns, tuple(columns))
        account = join(connection, shown, acted, out, on="id", windows=windows or Windows(), signals=signals)
    account.read, account.dropped = read, left + account.dropped
    account.notes += notes
    return account


def _part(product: str, source: Source, folder: Path) -> tuple[Counter[str], Counter[str]]:
    """Write spans and actions to files; return what was read, and why records were left out."""
    read, left = Counter[str](), Counter[str]()
    with (folder / "spans").open("w") as spans, (folder / "actions").open("w") as actions:
        for line, content in source:
            read["records"] += line is not None
            part: Any = content
            if not isinstance(content, FieldError):
                try:
                    part = READERS[product](content)
                except FieldError as error:
                    part = error
                except (AttributeError, TypeError, ValueError) as error:
                    part = f"records that cannot be read ({type(error).__name__}: {error})"
            if isinstance(part, Span):
                read["calls"] += 1
                spans.write(json.dumps(part._asdict(), default=str) + "\n")
            elif isinstance(part, Action):
                read["actions"] += 1
                actions.write(json.dumps(part._asdict()) + "\n")
            else:
                left[f"records: {part.field}: {part.text}" if isinstance(part, FieldError) else part] += 1
    return read, left


def _check(connection: Any, source: Source, read: Counter[str], left: Counter[str]) -> None:
    """Refuse an export without answers, or without actions of users."""
    [(answers,)] = connection.execute("SELECT count(*) FROM answers").fetchall()
    what = [f"{source}: {count:,} {reason}" for reason, count in left.most_common()]
    if not answers:
        text = f"no call with a text of input and of output among {read['records']:,} records; expected traces"
        raise DataError([f"{source}: file: {text}", *what])
    if not read["actions"]:
        text = "no action of a user; expected the file of scores, annotations or feedback beside that of calls"
        raise DataError([f"{source}: file: {text}", *what])


def _notes(connection: Any, left: Counter[str]) -> list[str]:
    """Count what is no answer and what was taken back; return what should be known of scores."""
    [(spans, traces, answers)] = connection.execute(
        "SELECT count(*), count(DISTINCT trace), (SELECT count(*) FROM answers) FROM spans"
    ).fetchall()
    left["traces without a text of input and of output"] = traces - answers
    left["calls that are steps of a trace, not its answer"] = spans - traces
    [(replaced,)] = connection.execute(
        f"SELECT (SELECT count(*) FROM scores) - (SELECT count(*) FROM ({_LAST}))"
    ).fetchall()
    left["thumbs that a later one replaces"] = replaced
    [(of_steps,)] = connection.execute(
        "SELECT count(*) FROM scores s JOIN spans c ON c.key = s.key JOIN answers a ON a.trace = c.trace "
        "WHERE a.key != c.key"
    ).fetchall()
    return [f"{of_steps:,} scores name a step of their trace; they count for its answer"] if of_steps else []
