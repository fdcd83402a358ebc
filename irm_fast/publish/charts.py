"""A chart as plain values, which `svg.py` draws into a page and `png.py` into a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Colour = Literal["ours", "other", "third", "fourth", "faint"]
COLOURS: dict[
    Colour, tuple[str, str]
] = {  # on light and on dark ground; told apart by people who see colours otherwise
    "ours": ("#0b62a8", "#6cb6f5"),
    "other": ("#c2500a", "#f2a35e"),
    "third": ("#107a54", "#5fcf9f"),
    "fourth": ("#8d4a92", "#d59bdb"),
    "faint": ("#8a9099", "#7d858f"),
}
IN_TURN: tuple[Colour, ...] = ("ours", "other", "third", "fourth")


@dataclass(frozen=True)
class Series:
    """One row of marks.

    Attributes:
        kind: `line`, through the points; `points`; `bars`, a histogram; `rule`, a thin dashed line for comparison.
        x: Where they are; of bars the edges, one more than there are heights.
        y: How high they are.
        label: The name in the legend; empty: none.
        colour: The colour.
        low: The lower ends of intervals of points, or nothing.
        high: The upper ends.
        said: What each point is in words, for who points at it.
    """

    kind: Literal["line", "points", "bars", "rule"]
    x: Sequence[float]
    y: Sequence[float]
    label: str = ""
    colour: Colour = "ours"
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    said: Sequence[str] = ()


@dataclass(frozen=True)
class Chart:
    """One chart, with what it shows as its title.

    Attributes:
        name: A short name, of its file too.
        title: What is seen.
        x_label: The name and the unit of the axis.
        y_label: The same of the other axis.
        series: The marks.
        note: What a reader should know beside it.
        x_range: The ends of the axis; None: those of the marks.
        y_range: The same of the other axis; bars begin at 0.
        x_names: Names at 0, 1, ... in the place of numbers.
        y_names: The same of the other axis, from above; intervals of points then lie along x.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    note: str = ""
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    x_names: Sequence[str] = field(default=())
    y_names: Sequence[str] = field(default=())

    @property
    def legend(self) -> list[Series]:
        """The series that the legend names."""
        return [series for series in self.series if series.label]

    def ends(self, axis: Literal["x", "y"]) -> tuple[float, float]:
        """Return the ends of an axis, with a little room around the marks."""
        given, names = getattr(self, f"{axis}_range"), getattr(self, f"{axis}_names")
        if given is not None:
            return float(given[0]), float(given[1])
        if names:
            return -0.6, len(names) - 0.4
        along = bool(self.y_names) == (axis == "x")  # intervals lie along this axis
        marks = [np.asarray(getattr(series, axis), float) for series in self.series]
        marks += [np.asarray(ends, float) for series in self.series for ends in (series.low, series.high) if along]
        values = np.concatenate(marks)
        low, high = float(values.min()), float(values.max())
        room = 0.04 * (high - low) or 0.5 * abs(high) or 0.5
        bars = [series for series in self.series if series.kind == "bars"]
        if bars:
            return (0.0, high + room) if axis == "y" else (low, high)
        return low - room, high + room


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers within an interval: steps of 1, 2 or 5 times a power of ten.

    Examples:
        >>> ticks(0.0, 0.9)
        [0.0, 0.2, 0.4, 0.6, 0.8]
    """
    rough = (high - low) / most
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = int(np.ceil(low / step - 1e-9))
    last = int(np.floor(high / step + 1e-9))
    return [float(round(number * step, 12)) for number in range(first, last + 1)]
