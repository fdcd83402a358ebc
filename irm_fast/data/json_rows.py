"""JSON: the objects that rows are, parsed strictly, within limits."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from irm_fast.data.problems import FieldError, shown

MAX_LINE = 2**24  # bytes of a row
MAX_DEPTH = 64  # of lists and objects within each other


def object_of(raw: bytes) -> dict[str, Any] | FieldError:
    """Parse one line of JSON."""
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and (depth := depth_of(raw)) > MAX_DEPTH:
        return FieldError("json", f"{depth} lists and objects within each other; expected at most {MAX_DEPTH}")
    try:
        content = parse_json(raw.decode())
    except FieldError as error:
        return error.with_traceback(None)  # which would keep the line in memory
    except UnicodeDecodeError as error:
        return FieldError("text", f"byte {error.start + 1} is not UTF-8; expected UTF-8")
    return (
        content
        if isinstance(content, dict)
        else FieldError("row", f"got {shown(content)}; expected an object, {{...}}")
    )


def depth_of(raw: bytes) -> int:
    """Return how deep lists and objects lie within each other in JSON."""
    depth = deepest = 0
    for bracket in re.sub(rb'"(?:[^"\\]|\\.)*"|[^][{}]', b"", raw):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, object]:
    """Make an object of its pairs, and refuse a key that occurs twice."""
    parsed = dict(pairs)
    if len(parsed) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise FieldError(twice, "the key occurs twice in one object; expected it once")
    return parsed


def _refuse(constant: str) -> None:
    """Refuse NaN and Infinity, which JSON does not have."""
    raise FieldError("json", f"got {constant}; expected a finite number, or null for a missing value")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)


def parse_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        FieldError: It is none, a key occurs twice in an object, or a number is not finite.
    """
    try:
        return _DECODER.decode(text)
    except FieldError:
        raise
    except json.JSONDecodeError as error:
        raise FieldError("json", f"{error.msg}, column {error.colno}; expected one object a line") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, objects thousands deep
        raise FieldError("json", f"{error}; expected one plain object a line") from None
