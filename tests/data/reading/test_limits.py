"""Files that would take all memory or all time are refused within limits, in words, and quickly."""

import gzip
import io
import itertools
import json
import lzma
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pyarrow
import pytest

from irm_fast.data.problems import DataError, FieldError
from irm_fast.data.read import read_log
from irm_fast.data.reading import compression
from irm_fast.data.reading.json_rows import entries_of
from irm_fast.data.reading.limits import MAX_LINE

ROW = b'{"id": "a", "prompt": "q", "completion": "x", "feedback": {"copy": 1}}\n'


def pack(kind: str, piece: bytes, times: int) -> bytes:
    """What a bomb is made of: one piece over and over, packed."""
    if kind == "zstd":
        return bytes(pyarrow.Codec("zstd").compress(piece * times))
    packed = io.BytesIO()
    with {"gzip": gzip.open, "xz": lzma.open, "bzip2": compression.bz2.open}[kind](packed, "wb") as file:
        for _ in range(times):
            file.write(piece)
    return packed.getvalue()


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as refused:
        read_log(path)
    return str(refused.value)


@pytest.mark.parametrize("begins", [b"", b"[", b'{"id": "', ROW, b"id,prompt\n1,"])
@pytest.mark.parametrize("kind", ["gzip", "zstd", "xz", "bzip2"])
def test_a_bomb_is_refused_before_it_has_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, begins: bytes
) -> None:
    monkeypatch.setattr(compression, "ALWAYS_ALLOWED", 2**21)
    (tmp_path / "log.jsonl").write_bytes(
        pack(kind, begins + b"x" * 2**20, 24) if begins else pack(kind, ROW.replace(b"x", b"x" * 2**14), 2**11)
    )
    tracemalloc.start()
    text = refusal(tmp_path / "log.jsonl")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    named = (
        "times their size; unpack it first",
        "got text that begins",
        "longer than",
        "JSON array",
        "line 2: field larger",
    )
    assert any(words in text for words in named), text
    assert most < 2**28


def test_three_gigabytes_in_one_line_take_a_fraction_of_the_memory(tmp_path: Path) -> None:
    piece = gzip.compress(b"a" * 2**26)  # files after each other are one file
    (tmp_path / "log.jsonl.gz").write_bytes(gzip.compress(b'{"id": "') + 48 * piece)
    code = (
        "import resource, sys; from irm_fast.data.validation import validate; "
        "base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; found = validate(sys.argv[1]); "
        "print(found['problems'][0]); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base)"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "log.jsonl.gz"], capture_output=True, text=True)
    problem, kilobytes = run.stdout.strip().split("\n")
    assert "unpack to more than" in problem and int(kilobytes) < 200_000, run


def test_honest_files_of_any_size_are_not_refused() -> None:
    text = "".join(json.dumps({"id": f"row {i}", "text": f"{i * i} {i**3}"}) + "\n" for i in range(10**5)).encode()
    assert compression.unpacked(io.BytesIO(gzip.compress(text)), "gzip").read() == text


def test_a_huge_dictionary_of_xz_is_refused_and_streams_after_each_other_are_read(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**29}]
    header = lzma.compress(ROW, filters=filters, preset=None)
    with pytest.raises(FieldError, match="bytes of memory to unpack; unpack it first"):
        compression.unpacked(io.BytesIO(header), "xz").read()
    both = lzma.compress(ROW) + b"\0" * 8 + lzma.compress(ROW, preset=9)
    assert compression.unpacked(io.BytesIO(both), "xz").read() == 2 * ROW
    (tmp_path / "log.jsonl").write_bytes(lzma.compress(ROW)[:-20])
    assert "it ends within a stream of xz" in refusal(tmp_path / "log.jsonl")


def test_packed_files_within_each_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(gzip.compress(gzip.compress(ROW)))
    assert "got bytes that are no text" in refusal(tmp_path / "log.jsonl")


@pytest.mark.parametrize("size", [1, 3, 17, 2**16])
def test_an_array_is_parsed_in_pieces(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("irm_fast.data.reading.json_rows._CHUNK", size)
    entries = [{"a": 'ä]\\"[{' * n, "b": [n, {"c": None}]} for n in range(9)] + [[], "x", 1.5, None]
    for indent, encoding in itertools.product((None, 2), ("utf-8", "utf-16")):
        text = json.dumps(entries, indent=indent, ensure_ascii=False)
        assert [*entries_of(io.BytesIO(f" \n{text}\n".encode(encoding)), encoding)] == entries
    assert [*entries_of(io.BytesIO(b"[ ]"), "utf-8")] == []


@pytest.mark.parametrize(
    "text", ["[1,]", "[1", "[", "[1 2]", '[{"a": 1} x', "[[1]", '["a', "[1]]", '[{"a": 1, "a": 2}]']
)
def test_half_an_array_is_said(text: str) -> None:
    with pytest.raises(FieldError):
        list(entries_of(io.BytesIO(text.encode()), "utf-8"))


def test_entries_of_an_array_have_the_limits_of_rows() -> None:
    for text, words in (
        (b'["' + b"a" * (2 * MAX_LINE), "longer than"),
        (b"[" * 200 + b"]" * 200, "deeper than"),
        (b"[" * 10**6, "recursion"),
        (b"[" + b"9" * 5000 + b"]", "digits"),
    ):
        with pytest.raises(FieldError, match=words):
            list(entries_of(io.BytesIO(text), "utf-8"))
