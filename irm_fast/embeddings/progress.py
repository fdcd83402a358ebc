"""Lines that say how far a fit is."""

from __future__ import annotations

import time

from irm_fast.data.telling import tell


class Progress:
    """Says, by `tell`, what was done, and how many seconds it took since the line before.

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
            tell(f"{what} ({now - self.since:.1f} s)")
        self.since = now
