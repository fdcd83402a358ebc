"""JSON: the objects that rows are, parsed strictly, within limits."""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any, cast

from irm_fast.data.problems import FieldError, shown
from irm_fast.data.reading.limits import MAX_DEPTH, MAX_DIGITS, MAX_LINE


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


_CHUNK = 2**16  # bytes of an array that are read at a time
_ENDS = tuple(",] \t\r\n")  # what may follow an entry of an array; else it may go on, as numbers do
_SPACE = re.compile(r"[ \t\r\n]*")


class _Text:
    """A text of JSON of which more is read when it is needed."""

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        self.file, self.decoder = file, codecs.getincrementaldecoder(encoding)()
        self.text, self.place, self.ended = "", 0, False

    def read_more(self) -> None:
        """Read as much again as is not parsed yet."""
        data = self.file.read(max(_CHUNK, len(self.text) - self.place))
        self.ended = not data
        self.text, self.place = self.text[self.place :] + self.decoder.decode(data, final=self.ended), 0

    def next_sign(self) -> str:
        """Go to what stands after spaces, and return its first letter; at the end an empty text."""
        while (place := cast(re.Match[str], _SPACE.match(self.text, self.place)).end()) == len(self.text):
            self.place = place
            if self.ended:
                return ""
            self.read_more()
        self.place = place
        return self.text[place]

    def take(self, sign: str) -> bool:
        """Go past a letter if it stands next; return whether it does."""
        found = self.next_sign() == sign
        self.place += found
        return found

    def next_value(self) -> Any:
        """Parse the value that stands next, and go to its end."""
        self.next_sign()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.place)
                if self.ended or self.text[end : end + 1] in _ENDS:
                    break
            except json.JSONDecodeError as error:  # perhaps only since not all of it is read
                if self.ended:
                    raise FieldError("json", error.msg) from None
            except RecursionError as error:
                raise FieldError("json", str(error)) from None
            if len(self.text) - self.place > MAX_LINE:
                raise FieldError("json", f"an entry is longer than {MAX_LINE:,} letters, or no JSON")
            self.read_more()
        piece = self.text[self.place : end]
        if piece.count("[") + piece.count("{") > MAX_DEPTH and depth_of(piece.encode(errors="replace")) > MAX_DEPTH:
            raise FieldError("json", f"lists and objects within each other, deeper than {MAX_DEPTH}")
        self.place = end
        return value


def entries_of(file: IO[bytes], encoding: str) -> Iterator[Any]:
    """Parse the entries of a JSON array one by one.

    Args:
        file: A file that holds nothing else, open in binary mode.
        encoding: Its encoding.

    Raises:
        FieldError: It is no array, it goes on after it, or one of its entries is larger or deeper than rows may be.
    """
    text = _Text(file, encoding)
    text.take("\ufeff")
    text.take("[")
    whole = text.take("]")
    while not whole:
        try:
            yield text.next_value()
        except ValueError as error:  # numbers of thousands of digits
            raise error if isinstance(error, FieldError) else FieldError("json", str(error)) from None
        whole = text.take("]")
        if not whole and not text.take(","):
            raise FieldError("json", "expecting ',' or ']' after an entry" if text.next_sign() else "it does not end")
    if text.next_sign():
        raise FieldError("json", "Extra data")


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


def _whole(digits: str) -> int:
    """Parse a whole number, and refuse one that no number of 64 bits comes near."""
    if len(digits) > MAX_DIGITS:
        raise FieldError("json", f"got a number of {len(digits):,} digits; expected at most {MAX_DIGITS}")
    return int(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse, parse_int=_whole)


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
