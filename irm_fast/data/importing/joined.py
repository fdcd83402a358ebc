"""Writing the log of impressions that are joined with their actions, all else of them as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from irm_fast.data.importing.tables import Table, literal, quoted
from irm_fast.data.rows import LOG_FIELDS

Form = Literal["jsonl", "parquet"]
TIME = ("timestamp", "created_at", "time", "shown_at", "acted_at", "event_time", "occurred_at", "ts")
NUMBERS = ("weight", "sample_weight", "position", "preference", "label_probability")


def write_joined(
    connection: Any, table: Table, on: str, states: Mapping[str, str], path: Path, form: Form, *, repeats: bool
) -> int:
    """Write the impressions with their feedback, all else of them as it is; return how many something is known of."""
    time, lines, parquet = table.has(TIME), table.columns is None and form == "jsonl", form == "parquet"
    table = table if lines else table.as_columns()
    moment = table.time(time) if time else "NULL::DOUBLE"
    once = " QUALIFY row_number() OVER (PARTITION BY irm_key ORDER BY irm_time) = 1" if repeats else ""
    rows = (
        f"(SELECT *, {table.text(on)} AS irm_key, {moment} AS irm_time FROM {table.rows} "
        f"WHERE irm_key IS NOT NULL{once}) s LEFT JOIN acted ON s.irm_key = acted.key"
    )
    added = {
        "feedback": _named({name: f"CAST({state} AS TINYINT)" for name, state in states.items()}, as_map=parquet),
        "acted_at": _named({name: f"CASE WHEN {s} = 1 THEN t{k} END" for k, (name, s) in enumerate(states.items())}),
    }
    if "id" not in table.fields:
        added["id"] = "irm_key"
    if time and time not in LOG_FIELDS:
        added["timestamp"] = "irm_time"
    if lines:
        written = _lines(table, added)
        options = "FORMAT csv, HEADER false, QUOTE '', ESCAPE '', DELIMITER e'\\x01'"
    else:
        written = _columns(table, added, time, moment)
        options = "FORMAT parquet, COMPRESSION zstd" if parquet else "FORMAT json"
    known = f"coalesce({', '.join(states.values())})"
    if "preference" in table.fields:
        known = f"coalesce(CAST({known} AS VARCHAR), {table.text('preference')})"
    copy = f"COPY (SELECT {written} FROM {rows} WHERE {known} IS NOT NULL) TO {literal(str(path))} ({options})"
    return int(connection.execute(copy).fetchall()[0][0])


def _named(values: Mapping[str, str], *, as_map: bool = False) -> str:
    """Return SQL of values by name: of a struct, or of a map, in which null is not absent."""
    if as_map:
        return f"MAP([{', '.join(map(literal, values))}], [{', '.join(values.values())}])"
    return "{" + ", ".join(f"{literal(name)}: {value}" for name, value in values.items()) + "}"


def _lines(table: Table, added: Mapping[str, str]) -> str:
    """Return SQL of the lines of rows of JSON, which keep their text."""
    replaced = {name: None for name in added if name in table.fields}
    held = f"json_merge_patch(json, {literal(json.dumps(replaced))})" if replaced else "json"
    held = f"trim(CAST({held} AS VARCHAR))"
    more = " || ',' || ".join(f"{literal(json.dumps(name) + ':')} || to_json({sql})" for name, sql in added.items())
    return f"left({held}, length({held}) - 1) || ',' || {more} || '}}'"


def _columns(table: Table, added: Mapping[str, str], time: str | None, moment: str) -> str:
    """Return SQL of the columns of a table; numbers that are texts, as in CSV, become numbers."""
    kinds = table.columns or {}
    out = ["irm_key", "irm_time", *(name for name in added if name in kinds)]
    texts = [name for name, kind in kinds.items() if kind == "VARCHAR" and name not in out]
    changed = {name: f"try_cast({quoted(name)} AS DOUBLE)" for name in texts if name in NUMBERS}
    if time in texts:
        changed[time] = moment
    replace = ", ".join(f"{sql} AS {quoted(name)}" for name, sql in changed.items())
    more = ", ".join(f"{sql} AS {quoted(name)}" for name, sql in added.items())
    return f"s.* EXCLUDE ({', '.join(map(quoted, out))}){f' REPLACE ({replace})' if replace else ''}, {more}"
