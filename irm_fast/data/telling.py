"""What is said of work while it goes on: through logging, by the logger `irm_fast`, never on the standard output."""

from __future__ import annotations

import logging
import os
import sys

from irm_fast.data.problems import printable

LOGGER = "irm_fast"
QUIET = "IRM_FAST_QUIET"  # the environment variable by which nothing is said of progress; processes inherit it


def quiet() -> bool:
    """Return whether nothing is to be said of progress, which `QUIET` asks for; warnings and errors still are."""
    return os.environ.get(QUIET, "0") not in ("", "0")


def tell(text: str) -> None:
    """Say how far something is: a record of level INFO, or where nobody listens to these a line of the standard error.

    What is called for by an argument such as `progress` or `verbose` so shows in a program that knows nothing of
    logging, and goes where a program that does wants it.

    Args:
        text: One line, or several.
    """
    if quiet():
        return
    log = logging.getLogger(LOGGER)
    if log.isEnabledFor(logging.INFO):
        log.info(text)
    else:
        write_line(text)


def write_line(text: str) -> None:
    """Write a line to the standard error, above the bars that stand there; what would steer a terminal is escaped."""
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.write(printable(text), file=sys.stderr)
    else:
        print(printable(text), file=sys.stderr)
    sys.stderr.flush()
