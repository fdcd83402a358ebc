"""Joining impressions and actions: two tables, perhaps larger than memory, become a log.

For each signal, an impression is 1 if its user acted within the window of the signal, 0 if not, and null where that
cannot be known: it is younger than the window, or older than the button.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from irm_fast.data.importing.account import Account
from irm_fast.data.importing.joining import join
from irm_fast.data.importing.records import check_out
from irm_fast.data.importing.tables import MEMORY, Table, database
from irm_fast.data.importing.windows import Windows
from irm_fast.data.reading.sources import Given, Source, check_not_input


def import_events(
    impressions: Given,
    actions: Given,
    out: Path,
    *,
    on: str = "response_id",
    windows: Windows | None = None,
    signals: Sequence[str] | None = None,
    memory: str = MEMORY,
    overwrite: bool = False,
) -> Account:
    """Write the log of impressions and actions that are two tables.

    Args:
        impressions: Files of JSON Lines, CSV or Parquet, one row a response that was shown: the fields of a log
            without feedback, a time, and the name that actions give it. All its columns are kept.
        actions: Such files, one row an action: the name of the response, that of the action, and a time.
        on: The column, of both, that names the response; in JSON a path such as properties.response_id.
        windows: How long after an impression an action counts, and since when each button exists.
        signals: The actions that are signals; None: all of them.
        memory: The memory that the join may take; beyond it spills into a folder beside the log.
        overwrite: Replace the log if it exists.

    Returns:
        What was read, kept and left out.

    Raises:
        DataError: Columns are missing, or nothing could be joined.
        MissingPackageError: DuckDB is not installed.
        ValueError: The log may not be written there.
    """
    check_out(out, Source.of(impressions), overwrite=overwrite)
    check_not_input(out, actions)
    with database(out, memory) as connection:
        shown = Table.of(connection, "impressions", impressions)
        acted = Table.of(connection, "actions", actions)
        for table in (shown, acted):
            table.first_of((on,), "on")
        return join(connection, shown, acted, out, on=on, windows=windows or Windows(), signals=signals)
