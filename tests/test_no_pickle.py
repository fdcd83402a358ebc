"""None of our files is a pickle, and no code that comes with a file is run: asserted of every line of the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
RUNS = {
    "eval",
    "exec",
    "compile",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "torch.save",
}
FROM_ELSEWHERE = {"from_pretrained", "from_config", "load_dataset"}
ALLOWED = {
    "irm_fast/models/foreign_files.py": {"pickle"},  # the kind of an error
}


def faults(tree: ast.Module, where: str) -> Iterator[str]:
    """Yield what reads a pickle or runs code of a file, each with its line."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            for name in names:
                if name.split(".")[0] in PICKLES - ALLOWED.get(where, set()):
                    yield f"{where}:{node.lineno}: imports {name}; our files are JSON and safetensors"
        if not isinstance(node, ast.Call):
            continue
        called, given = ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        last = called.rpartition(".")[2]
        if called in RUNS or given.get("allow_pickle", "False") != "False":
            yield f"{where}:{node.lineno}: calls {called}, which runs or loads whatever a file says"
        if called == "torch.load" and given.get("weights_only") != "True":
            yield f"{where}:{node.lineno}: torch.load without weights_only=True"
        if last in FROM_ELSEWHERE and given.get("trust_remote_code", "False") != "False":
            yield f"{where}:{node.lineno}: {last} with trust_remote_code={given['trust_remote_code']}"
        if last in ("run", "Popen", "check_output") and given.get("shell", "False") != "False":
            yield f"{where}:{node.lineno}: a command by the shell"


def test_nothing_in_the_package_loads_a_pickle_or_runs_code_of_a_file() -> None:
    found, files = [], [path for folder in ("irm_fast", "kernels") for path in (ROOT / folder).rglob("*.py")]
    for path in files:
        found += faults(ast.parse(path.read_text(encoding="utf-8")), str(path.relative_to(ROOT)))
    assert not found, "\n".join(found)
    assert len(files) > 150


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "yaml.load(text)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_what_would_is_seen(line: str) -> None:
    assert [*faults(ast.parse(line), "irm_fast/data/log.py")]


def test_what_does_not_is_left_alone() -> None:
    fine = "torch.load(path, weights_only=True)\nyaml.safe_load(text)\nre.compile(text)\nmodel.eval()\nnp.load(path)"
    assert not [*faults(ast.parse(fine), "irm_fast/data/log.py")]
