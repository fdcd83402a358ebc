"""Pictures by matplotlib, where it is installed: one look, and each file whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from irm_fast.data.writing.whole import whole_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 150


def new_figure(width: float, height: float) -> Figure:
    """An empty figure whose parts make room for each other.

    Args:
        width: Its width in inches.
        height: Its height.
    """
    from matplotlib.figure import Figure  # slow to import

    return Figure(figsize=(width, height), layout="constrained")


def plain(axes: Axes, lines: Literal["x", "y", "both"] = "both") -> None:
    """Give axes a faint grid, and no frame above and to the right.

    Args:
        axes: The axes.
        lines: The axis whose values have lines.
    """
    axes.grid(axis=lines, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path, writer: str = "irm-fast") -> Path:
    """Write a figure.

    Args:
        figure: The figure.
        path: The file to write, .png.
        writer: What the file says that it was written by.

    Returns:
        The path.
    """
    with whole_path(path) as unfinished:
        figure.savefig(unfinished, dpi=_DPI, metadata={"Software": writer})
    return path
