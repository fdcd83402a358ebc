"""The layouts that are read at once, a record giving one row or several: how each is known, and its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from irm_fast.data.importing import annotations as labels
from irm_fast.data.importing import conversations as chats
from irm_fast.data.problems import FieldError
from irm_fast.data.reading.blocks import RawRow

Record = Mapping[str, Any]


class Layout(NamedTuple):
    """A layout of records.

    Attributes:
        title: The product or the format.
        keys: The fields by which a record is known: each is a set of which one at least is there.
        recognises: Whether a record with such fields is of this layout.
        rows: The rows of a record, of the layout of a log; its second argument is a name for records without one. It
            raises FieldError.
        note: What should be known of rows of this layout.
        labels: Whether the rows hold labels of people, not actions of users.
    """

    title: str
    keys: frozenset[str]
    recognises: Callable[[Record], bool]
    rows: Callable[[Record, str], Iterator[dict[str, Any]]]
    note: str = ""
    labels: bool = False


_UNRATED = "; an answer that nobody rated is one that thumbs_up and thumbs_down were silent about"
LAYOUTS = {
    "open-webui": Layout(
        "Open WebUI", frozenset({"snapshot", "chat"}), chats.is_open_webui, chats.open_webui_rows,
        "; an export of feedback holds rated answers only, one of chats also those that nobody rated",
    ),
    "librechat": Layout("LibreChat", frozenset({"messages"}), chats.is_librechat, chats.librechat_rows, _UNRATED),
    "sharegpt": Layout(
        "ShareGPT", frozenset({"conversations", "conversation", "messages"}), chats.is_sharegpt, chats.sharegpt_rows,
        _UNRATED,
    ),
    "oasst": Layout(
        "Open Assistant", frozenset({"message_tree_id"}), labels.is_oasst, labels.oasst_rows,
        "; its thumbs and its quality, above or below .5, are labels", labels=True,
    ),
    "label-studio": Layout(
        "Label Studio", frozenset({"annotations"}), labels.is_label_studio, labels.label_studio_rows, labels=True
    ),
    "argilla": Layout("Argilla", frozenset({"responses"}), labels.is_argilla, labels.argilla_rows, labels=True),
    "kto": Layout(
        "TRL's KTO", frozenset({"label"}), labels.is_kto, labels.kto_rows,
        "; label true is thumbs_up, false thumbs_down",
    ),
}  # fmt: skip
KEYS = frozenset[str]().union(*(layout.keys for layout in LAYOUTS.values()))


def layout_of(record: Record) -> str | None:
    """Return the name of the layout of a record, or None if it is of no other than that of a log."""
    if KEYS.isdisjoint(record):
        return None
    for name, layout in LAYOUTS.items():
        if not layout.keys.isdisjoint(record) and layout.recognises(record):
            return name
    return None


def in_log_layout(
    raw: Iterable[RawRow], noted: Counter[str], choose: Callable[[Layout], bool] = lambda layout: True
) -> Iterator[RawRow]:
    """Yield rows in the layout of a log, from records of that or of other layouts.

    Args:
        raw: The records.
        noted: Gets a note for each layout, with the number of its records.
        choose: Whether records of a layout are taken apart.
    """
    for line, content in raw:
        name = layout_of(content) if isinstance(content, dict) else None
        if name is None or not choose(LAYOUTS[name]):
            yield RawRow(line, content)
            continue
        layout = LAYOUTS[name]
        noted[f"records read as those of {layout.title}{layout.note}"] += 1
        yield from rows_of_record(name, line, content)  # type: ignore[arg-type]


def rows_of_record(name: str, line: int | None, content: Record) -> Iterator[RawRow]:
    """Yield the rows of a record of a layout, or why it has none."""
    try:
        for row in LAYOUTS[name].rows(content, f"row-{line}"):
            yield RawRow(line, row)
    except FieldError as error:
        yield RawRow(line, error.with_traceback(None))
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        text = f"got a record of {LAYOUTS[name].title} that cannot be read ({type(error).__name__}: {error})"
        yield RawRow(line, FieldError("row", f"{text}; expected its documented layout"))
