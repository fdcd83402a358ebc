"""The join of impressions and actions in SQL: what each impression's feedback is, and what became of each action."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from irm_fast.data.importing.account import Account
from irm_fast.data.importing.joined import TIME, Form, write_joined
from irm_fast.data.importing.tables import Table, literal, quoted
from irm_fast.data.importing.windows import Windows
from irm_fast.data.problems import DataError
from irm_fast.data.rows import SEGMENTS
from irm_fast.data.times import shown_time
from irm_fast.data.writing.whole import whole_path
from irm_fast.losses import MAX_SIGNALS

SIGNAL = ("signal", "action", "event", "event_type", "event_name", "type", "name")
_NOTHING = "impressions of which nothing is known: younger than the windows, or older than the buttons"
FEW = 10  # actions that are to be expected, from which on none is remarkable


class Signal(NamedTuple):
    """A signal of a join.

    Attributes:
        name: Its name.
        window: The seconds within which an action counts, perhaps infinite.
        since: The time from which on it could act, or None.
    """

    name: str
    window: float
    since: float | None


def join(
    connection: Any,
    shown: Table,
    acted: Table,
    out: Path,
    *,
    on: str,
    windows: Windows,
    signals: Sequence[str] | None = None,
) -> Account:
    """Write the log of two tables; `import_events` says how."""
    account = Account()
    found = _load_actions(connection, acted, on, signals, account)
    repeats = _load_impressions(connection, shown, on, windows, account)
    chosen = [Signal(name, windows.of(name), windows.since.get(name)) for name in found]
    for name in sorted({*windows.of_signal, *windows.since} - set(found)):
        raise ValueError(f"window, instrumented-since: there is no action {name!r}; expected {', '.join(found)}")
    until = windows.until
    if until is None:
        latest = "SELECT max(time) FROM (SELECT irm_time AS time FROM shown UNION ALL SELECT time FROM actions)"
        until = connection.execute(latest).fetchone()[0]
    _join(connection, chosen, account)
    states = {signal.name: _state(k, signal, until) for k, signal in enumerate(chosen)}
    _count(connection, chosen, states, account)
    with whole_path(out) as unfinished:
        form: Form = "parquet" if out.suffix == ".parquet" else "jsonl"
        kept = write_joined(connection, shown, on, states, unfinished, form, repeats=repeats)
        if not kept:
            reasons = "; ".join([*account.notes, "--window and --until say what is known"])
            raise DataError([f"impressions: nothing is known of any of {account.kept:,}: {reasons}"])
    account.dropped[_NOTHING], account.kept = account.kept - kept, kept
    return account


def _load_actions(
    connection: Any, table: Table, on: str, signals: Sequence[str] | None, account: Account
) -> tuple[str, ...]:
    """Keep the actions in a table of three columns, and return the names of the signals."""
    name = table.text(table.first_of(SIGNAL, "the name of the action"))
    time = table.has(TIME)
    value = table.has(("value",))
    undone = f"lower(trim({table.text(value)})) IN ('0', '0.0', 'false', 'no')" if value else "false"
    connection.execute(
        f"CREATE TEMP TABLE actions AS SELECT {table.text(on)} AS key, "
        f"CASE WHEN trim({name}) <> '' THEN {name} END AS signal, "
        f"{table.time(time) if time else 'NULL::DOUBLE'} AS time, coalesce({undone}, false) AS undone FROM {table.rows}"
    )
    total, keyless, nameless, undone_count = connection.execute(
        "SELECT count(*), count(*) FILTER (key IS NULL), count(*) FILTER (key IS NOT NULL AND signal IS NULL), "
        "count(*) FILTER (undone) FROM actions"
    ).fetchone()
    account.read["actions"] = total
    account.dropped[f"actions without {on}"] = keyless
    account.dropped["actions without a name"] = nameless
    account.dropped["actions whose value is 0"] = undone_count
    connection.execute("DELETE FROM actions WHERE key IS NULL OR signal IS NULL OR undone")
    names = [row[0] for row in connection.execute("SELECT DISTINCT signal FROM actions ORDER BY signal").fetchall()]
    for lacking in [wanted for wanted in signals or () if wanted not in names]:
        raise DataError([f"{table.name}: signals: no action {lacking!r}; expected some of {', '.join(names[:30])}"])
    chosen = tuple(signals or names)
    if not 0 < len(chosen) <= MAX_SIGNALS:
        raise DataError(
            [
                f"{table.name}: got {len(names)} kinds of actions: {', '.join(names[:30])}; expected 1 to "
                f"{MAX_SIGNALS}: --signals A,B chooses"
            ]
        )
    if len(chosen) < len(names):
        listed = ", ".join(map(literal, chosen))
        [(others,)] = connection.execute(f"SELECT count(*) FROM actions WHERE signal NOT IN ({listed})").fetchall()
        account.dropped["actions of other kinds than --signals"] = others
        connection.execute(f"DELETE FROM actions WHERE signal NOT IN ({listed})")
    return chosen


def _load_impressions(connection: Any, table: Table, on: str, windows: Windows, account: Account) -> bool:
    """Keep of the impressions what the join needs, and return whether some are there more than once."""
    time = table.has(TIME)
    if time is None and (windows.default < math.inf or windows.of_signal or windows.since):
        raise DataError(
            [
                f"impressions: time: got the columns {', '.join(table.fields[:30])}; expected one of "
                f"{', '.join(TIME)}; --window none counts actions at any time"
            ]
        )
    segments = [f", {table.text(name)} AS {quoted(name)}" for name in SEGMENTS if name in table.fields]
    connection.execute(
        f"CREATE TEMP TABLE shown AS SELECT {table.text(on)} AS irm_key, "
        f"{table.time(time) if time else 'NULL::DOUBLE'} AS irm_time{''.join(segments)} FROM {table.rows}"
    )
    total, keyless, names, timeless = connection.execute(
        "SELECT count(*), count(*) - count(irm_key), count(DISTINCT irm_key), count(*) - count(irm_time) FROM shown"
    ).fetchone()
    account.read["impressions"] = total
    account.dropped[f"impressions without {on}"] = keyless
    account.dropped["impressions that repeat an earlier one"] = repeats = total - keyless - names
    if timeless and time:
        account.notes.append(f"{timeless:,} impressions have no time that can be read: null in signals with a window")
    if keyless:
        connection.execute("DELETE FROM shown WHERE irm_key IS NULL")
    if repeats:
        connection.execute(
            "CREATE OR REPLACE TEMP TABLE shown AS SELECT * FROM shown "
            "QUALIFY row_number() OVER (PARTITION BY irm_key ORDER BY irm_time) = 1"
        )
    account.kept = names
    return bool(repeats > 0)


def _within(signal: Signal) -> str:
    """Return SQL of whether an action of a signal counts."""
    mine = f"a.signal = {literal(signal.name)}"
    if signal.window == math.inf:
        return f"{mine} AND (s.irm_time IS NULL OR a.time IS NULL OR a.time >= s.irm_time)"
    return f"{mine} AND a.time >= s.irm_time AND a.time <= s.irm_time + {signal.window}"


def _join(connection: Any, signals: Sequence[Signal], account: Account) -> None:
    """Find for each impression with actions when each signal acted first; count what was not an action of any."""
    columns, late = [], []
    for k, signal in enumerate(signals):
        within, mine = _within(signal), f"a.signal = {literal(signal.name)}"
        columns += [
            f"count(*) FILTER ({within}) AS n{k}, min(a.time) FILTER ({within}) AS t{k}",
            f"bool_or({mine} AND (a.time < s.irm_time OR a.time IS NULL)) AS odd{k}",
        ]
        if signal.window < math.inf:
            late.append(f"({mine} AND a.time > s.irm_time + {signal.window})")
    connection.execute(
        f"CREATE TEMP TABLE acted AS SELECT a.key, {', '.join(columns)}, count(*) AS joined, "
        f"count(*) FILTER ({' OR '.join(late) or 'false'}) AS late, count(*) FILTER (a.time < s.irm_time) AS early, "
        "count(*) FILTER (a.time IS NULL) AS timeless FROM actions a JOIN shown s ON a.key = s.irm_key GROUP BY a.key"
    )
    repeats = " + ".join(f"greatest(n{k} - 1, 0)" for k in range(len(signals)))
    [(joined, late_count, early, timeless, repeated)] = connection.execute(
        f"SELECT coalesce(sum(joined), 0), sum(late), sum(early), sum(timeless), sum({repeats}) FROM acted"
    ).fetchall()
    [(total,)] = connection.execute("SELECT count(*) FROM actions").fetchall()
    if not joined:
        raise DataError(
            [f"actions: none of {total:,} names an impression; expected the same names in both tables (--on)"]
        )
    account.dropped["actions that name no impression (orphans)"] = total - joined
    account.dropped["actions after their window (late)"] = late_count
    account.dropped["actions before their impression: null"] = early
    account.dropped["actions that repeat an earlier one"] = repeated
    if any(signal.window < math.inf for signal in signals):
        account.dropped["actions without a time that can be read: null"] = timeless


def _state(k: int, signal: Signal, until: float | None) -> str:
    """Return SQL of the feedback of an impression `s` with its actions `acted`: 1, 0 or NULL."""
    unknown = []
    if signal.window < math.inf:
        unknown.append("s.irm_time IS NULL")
        if until is not None:
            unknown.append(f"s.irm_time + {signal.window} > {until}")
    if signal.since is not None:
        unknown += ["s.irm_time IS NULL", f"s.irm_time < {signal.since}"]
    known = f"CASE WHEN acted.n{k} > 0 THEN 1 WHEN acted.odd{k} THEN NULL ELSE 0 END"
    return f"CASE WHEN {' OR '.join(unknown)} THEN NULL ELSE {known} END" if unknown else known


def _count(connection: Any, signals: Sequence[Signal], states: Mapping[str, str], account: Account) -> None:
    """Note for each signal its counts, and where it never acts though it is to be expected."""
    there = [row[0] for row in connection.execute("DESCRIBE shown").fetchall() if row[0] not in ("irm_key", "irm_time")]
    firsts = connection.execute(f"SELECT {', '.join(f'min(t{k})' for k in range(len(signals)))} FROM acted").fetchone()
    columns = []
    for k, first in enumerate(firsts):
        earlier = "false" if first is None else f"f{k} = 0 AND irm_time < {first}"
        columns += [f"count(*) FILTER (f{k} = 1), count(f{k}), count(*) FILTER ({earlier})"]
    names = [quoted(name) for name in there]
    judged = ", ".join([*(f"{state} AS f{k}" for k, state in enumerate(states.values())), "s.*"])
    sets = ", ".join(["()", *(f"({name})" for name in names)])
    rows = connection.execute(
        f"SELECT {''.join(f'GROUPING({name}), {name}, ' for name in names)}{', '.join(columns)} "
        f"FROM (SELECT {judged} FROM shown s LEFT JOIN acted ON s.irm_key = acted.key) GROUP BY GROUPING SETS ({sets})"
    ).fetchall()
    parts = [_part(row, there) for row in rows]
    whole = next(counts for name, _, counts in parts if name is None)
    for k, signal in enumerate(signals):
        acted, known, before = whole[k]
        text = f"{signal.name}: {acted:,} acted, {known - acted:,} silent, {account.kept - known:,} not known"
        account.notes.append(text)
        if before and acted and before * acted / max(known - before, 1) >= FEW:
            since = f"{shown_time(firsts[k]).replace(' ', 'T')}Z"
            account.notes.append(
                f"{signal.name}: the first action is of {since}, after {before:,} impressions: if its button came "
                f"then, say --instrumented-since {signal.name}={since}"
            )
        account.notes += [
            _never(signal.name, f"{name}={value}", counts[k].known, expected)
            for name, value, counts in parts
            if name is not None and value is not None and not counts[k].acted
            if (expected := counts[k].known * acted / max(known - counts[k].known, 1)) >= FEW
        ]


def _never(signal: str, part: str, known: int, expected: float) -> str:
    return (
        f"{signal} never acts where {part}, in {known:,} impressions ({expected:,.0f} to be expected): if its button "
        f'is missing there, irm-fast mask "{signal} where {part}" says so'
    )


class Counts(NamedTuple):
    """How often a signal acted, of how many impressions it is known, and how many of these are before its first."""

    acted: int
    known: int
    before: int


def _part(row: Sequence[Any], names: Sequence[str]) -> tuple[str | None, Any, list[Counts]]:
    """Return the segment of a row of counts, its value, and by signal what acted, what is known, what was earlier."""
    head, rest = row[: 2 * len(names)], row[2 * len(names) :]
    counts = [Counts(*rest[i : i + 3]) for i in range(0, len(rest), 3)]
    for i, name in enumerate(names):
        if head[2 * i] == 0:
            return name, head[2 * i + 1], counts
    return None, None, counts
