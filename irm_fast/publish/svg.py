"""Charts as SVG within a page: colours and letters are those of the page's style, on light and on dark ground."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import NamedTuple

from irm_fast.publish.charts import Chart, Series, ticks

WIDTH, HEIGHT = 320, 214  # pixels, so that letters keep their size on a phone
_TOP, _RIGHT, _BOTTOM, _LEFT = 8, 12, 40, 48
_LETTER = 6.1  # about the width of one, in pixels
_ROW = 21  # pixels of a name on the vertical axis


class _Frame(NamedTuple):
    """Where a chart's marks lie: functions from values to pixels, and the pixels of the ends."""

    x: Callable[[float], float]
    y: Callable[[float], float]
    left: float
    right: float
    top: float
    bottom: float


def as_svg(chart: Chart) -> str:
    """Draw a chart as an `svg` element; all text is escaped.

    Args:
        chart: The chart. Its title, legend and note are not drawn: the page sets them as text.
    """
    frame, height = _frame(chart)
    marks = "".join(mark for number, series in enumerate(chart.series) for mark in _drawn(chart, series, frame, number))
    head = f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(chart.title)}">'
    return f"{head}{''.join(_axes(chart, frame))}{marks}</svg>"


def _frame(chart: Chart) -> tuple[_Frame, float]:
    """Return the frame of a chart, and the height of its picture."""
    height, left = float(HEIGHT), float(_LEFT)
    if chart.y_names:
        height = _TOP + _BOTTOM + _ROW * len(chart.y_names)
        left = min(10 + _LETTER * max(map(len, chart.y_names)), WIDTH / 2)
    right, top, bottom = WIDTH - _RIGHT, _TOP, height - _BOTTOM
    (x0, x1), (y0, y1) = chart.ends("x"), chart.ends("y")
    down = (y1, y0) if chart.y_names else (y0, y1)  # names are read from above
    return _Frame(_scale(x0, x1, left, right), _scale(*down, bottom, top), left, right, top, bottom), height


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _axes(chart: Chart, frame: _Frame) -> Iterator[str]:
    """Yield grid lines, the numbers or names beside them, and the names of the axes."""
    for place, name in _places(chart.y_names, chart.ends("y")):
        y = frame.y(place)
        yield f'<line class="grid" x1="{frame.left:.1f}" x2="{frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="end" x="{frame.left - 6:.1f}" y="{y + 3.6:.1f}">{escape(name)}</text>'
    named = _places(chart.x_names, chart.ends("x"))
    narrow = chart.x_names and _LETTER * max(map(len, chart.x_names)) > (frame.right - frame.left) / len(chart.x_names)
    for number, (place, name) in enumerate(named):
        x = frame.x(place)
        if not chart.x_names:
            yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top}" y2="{frame.bottom}"/>'
        shown = str(number + 1) if narrow else name
        text = f"<title>{escape(name)}</title>{escape(shown)}"
        yield f'<text class="mid" x="{x:.1f}" y="{frame.bottom + 15}">{text}</text>'
    yield f'<line class="axis" x1="{frame.left:.1f}" x2="{frame.right}" y1="{frame.bottom}" y2="{frame.bottom}"/>'
    centre = (frame.left + frame.right) / 2
    yield f'<text class="mid name" x="{centre:.1f}" y="{frame.bottom + 33}">{escape(chart.x_label)}</text>'
    if chart.y_label:
        middle = (frame.top + frame.bottom) / 2
        turn = f'transform="translate(11 {middle:.1f}) rotate(-90)"'
        yield f'<text class="mid name" {turn}>{escape(chart.y_label)}</text>'


def _places(names: Sequence[str], ends: tuple[float, float]) -> list[tuple[float, str]]:
    """Return where the marks of an axis stand, and what is written there."""
    if names:
        return [(float(place), name) for place, name in enumerate(names)]
    return [(value, f"{value:g}".replace("-", "\u2212")) for value in ticks(*ends)]


def _drawn(chart: Chart, series: Series, frame: _Frame, number: int) -> Iterator[str]:
    """Yield the marks of one series."""
    colour = f"c-{series.colour}"
    if series.kind in ("line", "rule"):
        points = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in zip(series.x, series.y, strict=True))
        yield f'<polyline class="{series.kind} {colour}" points="{points}"/>'
    elif series.kind == "bars":
        yield _outline(series, frame, colour)
    else:
        yield from _points(series, frame, colour, along_x=bool(chart.y_names))


def _outline(series: Series, frame: _Frame, colour: str) -> str:
    """Return the outline of a histogram."""
    path = [f"M{frame.x(series.x[0]):.1f} {frame.bottom:.1f}"]
    for left, right, y in zip(series.x[:-1], series.x[1:], series.y, strict=True):
        path.append(f"L{frame.x(left):.1f} {frame.y(y):.1f}L{frame.x(right):.1f} {frame.y(y):.1f}")
    path.append(f"L{frame.x(series.x[-1]):.1f} {frame.bottom:.1f}")
    return f'<path class="bars {colour}" d="{"".join(path)}"/>'


def _points(series: Series, frame: _Frame, colour: str, *, along_x: bool) -> Iterator[str]:
    """Yield points with their intervals."""
    for number, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
        cx, cy = frame.x(x), frame.y(y)
        said = f"<title>{escape(series.said[number])}</title>" if series.said else ""
        if series.low:
            ends = (series.low[number], series.high[number])
            x1, x2 = map(frame.x, ends) if along_x else (cx, cx)
            y1, y2 = (cy, cy) if along_x else map(frame.y, ends)
            yield f'<line class="interval {colour}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'
        yield f'<circle class="dot {colour}" cx="{cx:.1f}" cy="{cy:.1f}" r="3.4">{said}</circle>'
