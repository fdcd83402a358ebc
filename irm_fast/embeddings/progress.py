"""Lines that say how far a fit is."""

from __future__ import annotations

import sys
import time


class Progress:
    """Says on the standard error what was done, and how many seconds it took since the line before.

    Args:
        verbose: 0 says nothing; 1 and more say everything.

    Examples:
        >>> Progress(0).done("propensities: two-step, hidden")
    """

    def __init__(self, verbose: int) -> None:
        self.verbose = verbose
        self.since = time.perf_counter()

    def done(self, what: str) -> None:
        """Say what has just been done.

        Args:
            what: The step and its result.
        """
        now = time.perf_counter()
        if self.verbose:
            print(f"{what} ({now - self.since:.1f} s)", file=sys.stderr, flush=True)
        self.since = now
