"""Inputs of the fuzzer: kept seeds, and what is made of them at random."""

from __future__ import annotations

import bz2
import datetime
import gzip
import io
import json
import lzma
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

SEEDS = Path(__file__).resolve().parents[1] / "tests" / "seeds"
_TOKENS = [
    *(b"NaN", b"1e999", b"-0", b"9" * 400, b"null", b"true", b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\ud800"),
    *(b"\\u0000", b"\xff", b"\0", b"\n", b"\r", b"\xef\xbb\xbf", b"\xff\xfe", b"PAR1", b"\x1f\x8b"),
    *(b'"feedback":', b"- ", b"&a ", b"*a"),
]  # fmt: skip
_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, math.nan, math.inf, 10**30, 10**400, 2**63),
    *("", " ", "x", "\x1b[2J", "a\nb", "\u202e", "\ud800", "\0", "1", "1e5", "2026-13-45", "9" * 5000, "=" * 70),
    *([], {}, [None], [[]], {"": 1}, {"a": {"a": {"a": 1}}}, {"role": "user", "content": "x"}),
]
_ENDS = bytes([0] * 4 + [1, 0, 0, 0, 2, 0, 0, 0] + [2, 0, 0, 0])  # of three texts
_COLUMNS: list[Callable[[random.Random], Any]] = [
    lambda r: pa.array([2**62, None, -(2**62)], pa.timestamp(r.choice(["s", "ms", "us", "ns"]))),
    lambda r: pa.array([datetime.timedelta(1), None, datetime.timedelta(-1)]),
    lambda r: pa.array([b"\xff", b"x", None], r.choice([pa.binary(), pa.large_binary()])),
    lambda r: pa.array([1.5, math.nan, math.inf], pa.float32()),
    lambda r: pa.array([[1], None, []], pa.list_(pa.int8())),
    lambda r: pa.array([[("copy", 1)], None, [("copy", 0), ("copy", 1)]], pa.map_(pa.string(), pa.int64())),
    lambda r: pa.array([{"copy": 1, "b": None}, None, {"copy": -1, "b": "x"}]),
    lambda r: pa.array(["a", "b", "a"]).dictionary_encode(),
    lambda r: pa.array([None, None, None], pa.null()),
    lambda r: pa.array(["a", None, "\0"], r.choice([pa.large_string(), pa.string_view(), pa.string()])),
    lambda r: pa.array([2**64 - 1, 0, None], pa.uint64()),
    lambda r: pa.array(["1.5", None, "-9"]).cast(pa.decimal128(30, 3)),
    lambda r: pa.StructArray.from_arrays([pa.array([1, 0, 1]), pa.array([0, 1, 1])], names=["copy", "copy"]),
    lambda r: pa.array([{"role": "user", "content": ["x"]}, None, {"role": None, "content": [None]}]),
    lambda r: pa.StringArray.from_buffers(3, pa.py_buffer(_ENDS), pa.py_buffer(b"q\xff")),
    lambda r: pa.array([datetime.time(1), None, datetime.time(2)]),
    lambda r: pa.array([datetime.date(2020, 1, 1), None, datetime.date(9999, 1, 1)]),
    lambda r: pa.array([True, None, False]),
]  # fmt: skip
_NAMES = (
    "id",
    "prompt",
    "completion",
    "feedback",
    "user_id",
    "weight",
    "timestamp",
    "features",
    "preference",
    "acted_at",
)
_PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda data: bytes(pa.Codec("zstd").compress(data)),
}


def changed(seed: bytes, name: str, rng: random.Random) -> bytes:
    """Return an input made of a seed.

    Args:
        seed: The content of the seed.
        name: Its name, whose end says of what kind it is.
        rng: The source of chance.
    """
    kind = rng.random()
    if name.startswith("log") and name.endswith("l") and kind < 0.25:
        content = _table(seed, rng)
        return _bytes_changed(content, rng) if rng.random() < 0.6 else content
    if name.endswith((".json", ".jsonl")) and kind < 0.7:
        lines = [seed] if name.endswith(".json") else seed.splitlines()
        try:
            values = [json.loads(line) for line in lines]
        except ValueError:
            return _bytes_changed(seed, rng)
        for _ in range(rng.choice((1, 1, 2, 3, 8))):
            row = rng.randrange(len(values))
            values[row] = _value_changed(values[row], rng)
        text = "\n".join(json.dumps(value, ensure_ascii=rng.random() < 0.5) for value in values)
        content = text.encode(rng.choice(("utf-8",) * 8 + ("utf-16",)), errors="surrogatepass")
    else:
        content = _bytes_changed(seed, rng)
    if rng.random() < 0.08:
        content = _PACKERS[rng.choice(list(_PACKERS))](content)
        content = _bytes_changed(content, rng) if rng.random() < 0.5 else content
    return content


def _bytes_changed(seed: bytes, rng: random.Random) -> bytes:
    """Change some bytes of an input."""
    content = bytearray(seed)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place = rng.randrange(len(content)) if content else 0
        how = rng.randrange(6)
        if how == 0 and content:
            content[place] ^= 1 << rng.randrange(8)
        elif how == 1 and content:
            content[place] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif how == 2:
            content[place:place] = rng.choice(_TOKENS)
        elif how == 3:
            del content[place : place + rng.choice((1, 4, 40, 400))]
        elif how == 4:
            token = rng.choice(_TOKENS)
            content[place : place + len(token)] = token
        elif content:
            other = rng.randrange(len(content))
            content[place:place] = content[other : other + rng.choice((8, 80))]
    return bytes(content)


def _value_changed(value: Any, rng: random.Random) -> Any:
    """Change one place of a value of JSON."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        how = rng.random()
        if how < 0.08:
            return {k: v for k, v in value.items() if k != key}
        if how < 0.16:
            return {**value, rng.choice((key + "x", key[:-1], "\x1b[2J", "a\nb", "", "id", "messages")): value[key]}
        return {**value, key: _value_changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        how = rng.random()
        if how < 0.1:
            return value[:place] + value[place + 1 :]
        if how < 0.2:
            return [*value, value[place]]
        return [*value[:place], _value_changed(value[place], rng), *value[place + 1 :]]
    chosen = rng.choice(_VALUES)
    return [value] if rng.random() < 0.03 else chosen


def _table(seed: bytes, rng: random.Random) -> bytes:
    """Return Parquet of the rows of a seed of JSON Lines, some columns of other types."""
    rows = [json.loads(line) for line in seed.splitlines()][:3]
    columns: dict[str, Any] = {}
    for name in rows[0]:
        try:
            columns[name] = pa.array([row[name] for row in rows])
        except pa.ArrowException:  # texts in some rows, messages in others
            columns[name] = pa.array([str(row[name]) for row in rows])
    for _ in range(rng.choice((0, 1, 1, 2))):
        columns[rng.choice(_NAMES)] = rng.choice(_COLUMNS)(rng)
    table = pa.table(columns)
    if rng.random() < 0.1:
        table = table.append_column(rng.choice(_NAMES), rng.choice(_COLUMNS)(rng))
    if rng.random() < 0.1:
        table = table.replace_schema_metadata(
            {rng.choice(("huggingface", "pandas", "ARROW:schema")): rng.choice(("{", "[1]"))}
        )
    file = io.BytesIO()
    try:
        parquet.write_table(table, file, compression=rng.choice(("none", "snappy", "zstd")), row_group_size=2)
    except pa.ArrowException:  # types that Parquet does not hold
        return seed
    return file.getvalue()
