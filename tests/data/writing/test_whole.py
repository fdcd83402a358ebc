"""A file is whole or absent, whoever writes it and whatever stops it; and no file is written in another way."""

from __future__ import annotations

import ast
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from irm_fast.data.writing.outputs import OutputFolder
from irm_fast.data.writing.whole import UnwrittenError, is_unfinished, whole_file, whole_files, whole_path, write_whole

ROOT = Path(__file__).parents[3]


def test_a_file_is_whole_or_as_before(tmp_path) -> None:
    path = tmp_path / "rewards.jsonl"
    path.write_text("earlier")
    with pytest.raises(RuntimeError), whole_file(path) as file:
        file.write("half of it")
        raise RuntimeError
    assert path.read_text() == "earlier"
    with whole_file(path) as file:
        file.write("later")
        assert path.read_text() == "earlier"
    assert path.read_text() == "later" and list(tmp_path.iterdir()) == [path]

    link = tmp_path / "link"
    link.symlink_to(path)
    with whole_file(link) as file:
        file.write("by the link")
    assert link.is_symlink() and path.read_text() == "by the link"
    with whole_file(Path(os.devnull)) as file:
        file.write("nowhere")
    assert Path(os.devnull).is_char_device()


def test_several_files_take_their_places(tmp_path) -> None:
    (tmp_path / "config.json").write_text("earlier")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RuntimeError), whole_files(tmp_path) as unfinished:
        (unfinished / "config.json").write_text("half")
        raise RuntimeError
    assert (tmp_path / "config.json").read_text() == "earlier"
    with whole_files(tmp_path) as unfinished:
        (unfinished / "templates").mkdir()
        (unfinished / "templates" / "one.jinja").write_text("{{ 1 }}")
        (unfinished / "config.json").write_text("later")
    found = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"config.json": "later", "notes.txt": "mine", "templates/one.jinja": "{{ 1 }}"}


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_the_umask_decides_who_may_read(tmp_path, mask) -> None:
    """safetensors writes files that only their owner may read."""
    import torch

    from irm_fast.models.record import save_tensors

    before = os.umask(mask)
    try:
        save_tensors({"weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
        write_whole(tmp_path / "record.json", "{}")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o666 & ~mask}


def test_what_a_killed_writer_left_is_replaced_and_belongs_to_the_run(tmp_path) -> None:
    kind = OutputFolder("demo", ("table.md", "*.bin"), ("model",), lambda folder: True)
    for name in ("table.md.unfinished", ".unfinished", "model.unfinished"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("ha")
    (tmp_path / "part.bin.unfinished").write_text("as earlier versions left it")
    (tmp_path / ".tmpAbCdE1").write_text("of safetensors")
    for name in ("thesis.unfinished", ".tmpfile", ".tmpAbCdE12"):
        (tmp_path / name).write_text("mine")
    assert kind.foreign(tmp_path) == [".tmpAbCdE12", ".tmpfile", "thesis.unfinished"]
    write_whole(tmp_path / "table.md", "whole")
    write_whole(tmp_path / "part.bin", b"whole")
    assert not (tmp_path / "table.md.unfinished").exists() and not (tmp_path / "part.bin.unfinished").exists()
    kind.clear_own(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".tmpAbCdE12", ".tmpfile", "thesis.unfinished"}
    (tmp_path / "link.unfinished").symlink_to(tmp_path)
    assert not is_unfinished(tmp_path / "link.unfinished")


class Foreign(Exception):
    """As SafetensorError, which is no OSError."""


FULL = r"could not be written: no space is left on its disk; make room there, or choose another place"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), FULL),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), FULL),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/some/other"), FULL),
        (Foreign("Error while serializing: I/O error: No space left on device (os error 28)"), FULL),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG)), "it is larger than files may be here; see ulimit -f"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 126464"), "its disk may be full"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), "Input/output error; see that its disk works"),
    ],
)
def test_errors_of_a_disk_name_the_file_and_the_remedy(tmp_path, error, said) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(UnwrittenError, match=rf"{path}: .*{said}"), whole_path(path):
        raise error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [ValueError("no number"), BrokenPipeError(errno.EPIPE, "Broken pipe"), KeyError("x")])
def test_other_errors_pass(tmp_path, error) -> None:
    with pytest.raises(type(error)) as caught, whole_path(tmp_path / "out"):
        raise error
    assert caught.value is error


# Where a file is written otherwise: helpers that are lent the path of an unfinished file, lines that are appended, and
# what lies in the folder for temporary files.
ALLOWED = {
    "data/writing/whole.py": "_moved",
    "data/writing/lock.py": "_take _replaced",
    "data/writing/rewriting.py": "_open_bytes _write_parquet",
    "data/importing/records.py": "write_rows",
    "data/importing/exports.py": "_part",
    "evaluation/metrics_file.py": "write_metrics",
    "training/run_folder.py": "close_run",
    "experiments/reproduce/redraws.py": "_one_redraw",
    "experiments/downstream/run.py": "_do",
}
WRITERS = {
    *("write_text", "write_bytes", "save_file", "savefig", "save_pretrained", "to_parquet", "ParquetWriter", "dump"),
    *("copy", "copy2", "copyfile", "copytree", "move", "rename", "replace", "renames", "savez", "savetxt"),
}


def writes(tree: ast.AST, within: str = "", lent: bool = False) -> Iterator[tuple[int, str, str]]:
    """Line, call and function of everything that writes a file outside of a `with whole_...`."""
    for node in ast.iter_child_nodes(tree):
        name, whole = within, lent
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            name, whole = node.name, False
        elif isinstance(node, (ast.With, ast.AsyncWith)):
            calls = [
                ast.unparse(item.context_expr.func) for item in node.items if isinstance(item.context_expr, ast.Call)
            ]
            whole = lent or any(call.split(".")[-1].startswith("whole_") for call in calls)
        elif isinstance(node, ast.Call) and not lent and is_writer(node):
            yield node.lineno, ast.unparse(node.func), within
        yield from writes(node, name, whole)


def is_writer(call: ast.Call) -> bool:
    """Whether a call writes a file, as far as its name and its mode show."""
    full = ast.unparse(call.func)
    name = full.split(".")[-1]
    if full == "os.open":
        return any(flag in ast.unparse(call) for flag in ("O_WRONLY", "O_RDWR", "O_CREAT"))
    if name in ("open", "fdopen", "NamedTemporaryFile"):
        own = call.args[
            0 if isinstance(call.func, ast.Attribute) and full.split(".")[0] not in ("gzip", "io", "os", "bz2") else 1 :
        ][:1]
        modes = [*own, *(word.value for word in call.keywords if word.arg == "mode")]
        return any(not isinstance(mode, ast.Constant) or set(str(mode.value)) & set("wax+") for mode in modes)
    if full in ("torch.save", "np.save", "numpy.save", "os.replace", "os.rename", "os.link"):
        return True
    if name in ("copy", "replace", "move", "rename", "copytree", "copy2", "copyfile"):
        return full.split(".")[0] in ("shutil", "os") or name == "rename"
    if name == "dump":
        return full.split(".")[0] in ("json", "pickle", "yaml")
    if name in ("safe_dump", "dump_all"):
        return len(call.args) > 1
    return name in WRITERS


def test_no_file_of_the_package_is_written_otherwise() -> None:
    found, used = [], set()
    for path in sorted((ROOT / "irm_fast").rglob("*.py")):
        module = path.relative_to(ROOT / "irm_fast").as_posix()
        for line, call, function in writes(ast.parse(path.read_text(encoding="utf-8"))):
            if function in ALLOWED.get(module, "").split():
                used.add((module, function))
            else:
                found.append(f"irm_fast/{module}:{line}: {call} in {function}: write it by irm_fast.data.writing.whole")
    assert not found, "\n".join(found)
    listed = {(module, function) for module, functions in ALLOWED.items() for function in functions.split()}
    assert used == listed, f"no longer needed: {sorted(listed - used)}"


@pytest.mark.parametrize(
    "text",
    [
        "def f(path):\n    path.write_text('x')",
        "def f(path):\n    with path.open('a') as file:\n        pass",
        "def f(path):\n    open(path, mode='wb')",
        "def f(path, mode):\n    gzip.open(path, mode)",
        "def f(model):\n    model.save_pretrained('x')",
        "torch.save({}, 'x')",
        "json.dump({}, file)",
        "with whole_path(path) as one:\n    def f():\n        path.write_text('x')",
    ],
)
def test_another_way_to_write_is_seen(text) -> None:
    assert len(list(writes(ast.parse(text)))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "with whole_path(path) as one:\n    save_file({}, one)",
        "with quiet(), whole_files(path) as one:\n    model.save_pretrained(one)",
        "open(path)\npath.open('rb')\ngzip.open(path, 'rb')",
        "json.dumps({})\nyaml.safe_dump({})\nreplace(config, x=1)\ntext.replace('a', 'b')",
    ],
)
def test_what_reads_or_is_lent_a_path_may(text) -> None:
    assert not list(writes(ast.parse(text)))
