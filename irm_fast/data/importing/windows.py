"""The windows of a join: how long after an impression an action counts, and since when it could be made."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from irm_fast.data.times import time_of

DAY = 86_400.0
WINDOW = "24h"
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": DAY, "w": 7 * DAY}


@dataclass(frozen=True)
class Windows:
    """How long after an impression an action counts, in seconds, and since when each button exists.

    Attributes:
        default: The window of signals that have none of their own; infinite: any time.
        of_signal: The windows of signals.
        since: The time from which on a signal could act.
        until: The time up to which actions are recorded; None: the newest event.
    """

    default: float = DAY
    of_signal: Mapping[str, float] = field(default_factory=dict)
    since: Mapping[str, float] = field(default_factory=dict)
    until: float | None = None

    @classmethod
    def parse(cls, window: str = WINDOW, since: str | None = None, until: str | None = None) -> Windows:
        """Return the windows that texts describe.

        Args:
            window: Such as "24h", "none", or "24h,share=7d".
            since: Such as "copy=2026-01-01,share=2026-02-01".
            until: A time.

        Raises:
            ValueError: A text is none of these.

        Examples:
            >>> Windows.parse("24h,share=7d").of("share") / DAY
            7.0
        """
        default, own = math.inf, dict[str, float]()
        for part in filter(None, map(str.strip, window.split(","))):
            name, sign, length = part.rpartition("=")
            if sign:
                own[name.strip()] = _length(length)
            else:
                default = _length(length)
        named = [part.partition("=") for part in filter(None, (since or "").split(","))]
        for name, sign, _ in named:
            if not sign:
                raise ValueError(f"instrumented-since: got {name!r}; expected SIGNAL=TIME, such as copy=2026-01-01")
        return cls(
            default if any("=" not in part for part in window.split(",")) else DAY,
            own,
            {name.strip(): time_of(time.strip(), "instrumented-since") for name, _, time in named},
            None if until is None else time_of(until, "until"),
        )

    def of(self, signal: str) -> float:
        """Return the window of a signal."""
        return self.of_signal.get(signal, self.default)


def _length(text: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h|d|w)\s*", text)
    if text.strip() == "none":
        return math.inf
    if match is None or not float(match[1]):
        raise ValueError(f"window: got {text!r}; expected a length such as 30min, 24h or 7d, or none")
    return float(match[1]) * _UNITS[match[2]]
