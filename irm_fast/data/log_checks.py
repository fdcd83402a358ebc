"""What is wrong with the rows of a log beside each other, and with the log as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from irm_fast.data.declarations import ALL, Declarations
from irm_fast.data.gathering import Gathered
from irm_fast.data.log import Log
from irm_fast.data.parts import ABSENT, Part, Seen
from irm_fast.data.problems import Problems, closest, is_plain, shown
from irm_fast.data.rows import check_ids
from irm_fast.data.texts import Names


def check_unique(found: Gathered, problems: Problems) -> int:
    """Report every id that an earlier row has too, and count them."""
    held = np.sort(found.hashes["id"])
    twice = held[1:][held[1:] == held[:-1]]
    if not len(twice):
        return 0
    rows = np.flatnonzero(np.isin(found.hashes["id"], twice))
    ids = found.log.ids
    assert isinstance(ids, Names)
    return check_ids(zip(found.part.lines[rows].tolist(), ids[rows], strict=True), problems)


def check_recorded(found: Gathered, problems: Problems) -> None:
    """Report rows that record nothing, or something of signals that the log does not have."""
    log, part = found.log, found.part
    nothing = (log.feedback < 0).all(axis=1) & (log.preference < 0)
    wrong = nothing.copy()
    entries = [("propensity", *item) for item in part.propensity.items()]
    entries += [("acted_at", *item) for item in part.acted_at.items()]
    told = []
    for field, name, (_, given) in entries:
        if name not in log.signals:
            text = f"no such signal{closest(name, log.signals)}; expected {listed(log.signals)}"
            rows = given
        elif field == "acted_at":
            text = "got a time, but the signal did not act here; expected one only where its feedback is 1"
            rows = given & (log.feedback[:, log.signals.index(name)] != 1)
        else:
            continue
        wrong |= rows
        told.append((rows, f"{field}.{name}", text))
    for row in np.flatnonzero(wrong).tolist():
        line = int(part.lines[row])
        if nothing[row]:
            text = "nothing recorded and no preference; expected 1 or 0 for some signal, or a preference"
            problems.add(line, "feedback", text)
        for rows, field, text in told:
            if rows[row]:
                problems.add(line, field, text)


def check_features(part: Part, seen: Seen, problems: Problems) -> None:
    """Report features that are numbers in one row and texts in another, and numbers that are not in every row."""
    kinds, expected_names = seen.kinds, seen.feature_names or ()
    lacking = np.flatnonzero(~part.featured) if expected_names else np.empty(0, np.int64)
    for row in sorted({*part.odd, *lacking.tolist()}):
        line, features = int(part.lines[row]), part.odd.get(row, {})
        numbers = [name for name in features if name not in kinds or kinds[name].type is float]
        for name, value in features.items():
            expected = "a finite number" if name in numbers else "text"
            if value is None and name in numbers:
                problems.add(line, f"features.{name}", f"got null; expected {expected}")
            elif value is not None and not isinstance(value, kinds[name].type):
                text = f"got {shown(value)}; expected {expected}, as in {problems.said(kinds[name].line)}"
                problems.add(line, f"features.{name}", text)
        if expected_names and set(numbers) != set(expected_names):
            text = f"got {listed(numbers)}; expected {listed(expected_names)} in every row"
            problems.add(line, "features", text)


def lacking_keys(found: Gathered, kept: np.ndarray | None) -> Iterator[tuple[str, np.ndarray]]:
    """Yield for each signal the numbers of the rows with feedback that lack its key.

    Args:
        found: The rows.
        kept: A mask of the rows that are not left out; None: all.
    """
    part = found.part
    for name in found.log.signals:
        held = part.feedback.get(name)
        absent = part.recorded if held is None else part.recorded & (held == ABSENT)
        yield name, part.lines[absent if kept is None else absent & kept]


def check_log(log: Log, problems: Problems) -> None:
    """Report what is wrong with the log as a whole, whatever it records."""
    if not len(log):
        problems.add(None, "file", "empty; expected at least one row")
        return
    for field, names in (("feedback", log.signals), ("features", (*log.feature_names, *log.segments))):
        for name in names:
            if not is_plain(name):
                text = f"{shown(name)} steers a terminal or is no line; expected a name that prints as it is: rename it"
                problems.add(None, field, text)
    if log.weight is not None and not log.weight.any():
        problems.add(None, "weight", "0 in every row; expected some above 0")


def check_feedback(log: Log, lacking: Mapping[str, np.ndarray], declared: Declarations, problems: Problems) -> None:
    """Report what is wrong with the feedback of a log, of at least one row, as a whole."""
    _check_declared(log, declared, problems)
    for name, lines in lacking.items():
        if len(lines) and declared.fill(name) == "error":
            text = (
                f"absent in {len(lines)} rows, first here; expected 1, 0 or null in every row (in a table, such as "
                "Parquet or CSV, null is absent, too). If absence means that nothing happened, say absent='silent' "
                "(--absent silent); if it means not known, absent='missing' (--absent missing)"
            )
            problems.add(int(lines[0]), f"feedback.{name}", text, whole=True)
    for k, name in enumerate(log.signals):
        if not (log.feedback[:, k] == 0).any():
            text = (
                f"not a single 0 in {len(log)} readable rows; expected some. Many logs hold only the actions "
                "that happened: add the impressions without (--absent silent reads absent keys as 0, --null silent "
                "null), or read other signals alone (--signals)"
            )
            problems.add(None, f"feedback.{name}", text)
    if not (log.feedback == 1).any() and not (log.preference >= 0).any():
        text = f"no action (1) and no preference in {len(log)} readable rows; expected some of either"
        problems.add(None, "feedback", text)


def _check_declared(log: Log, declared: Declarations, problems: Problems) -> None:
    """Report declarations of signals that the log does not have, and signals that have to be declared."""
    told = {"polarity": declared.polarity, "counts": set(declared.counts) - {ALL}}
    told |= {n: v for n in ("absent", "null") if isinstance(v := getattr(declared, n), Mapping)}
    for argument, names in told.items():
        for name in sorted(set(names) - set(log.signals)):
            text = f"the log has no signal {name!r}{closest(name, log.signals)}; expected {listed(log.signals)}"
            problems.add(None, argument, text)
    for k, name in enumerate(log.signals):
        if (log.feedback[:, k] < 0).all() and declared.signals and name in declared.signals:
            problems.add(
                None, "signals", f"the log has no signal {name!r}; expected a name under feedback, or of a column"
            )
        if declared.is_undeclared(name):
            text = (
                f"the name speaks of displeasure; expected its meaning to be declared: --polarity '{name}=-1' if users "
                f"give it when a response displeases them, '{name}=1' if it pleases them"
            )
            problems.add(None, f"feedback.{name}", text)


def listed(names: Iterable[str]) -> str:
    """Return names as a message lists them."""
    return ", ".join(names) or "none"
