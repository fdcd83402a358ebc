"""Packages that are optional: each is declared, and where it is not installed one line says how to get it."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

from irm_fast.common.extras import EXTRAS, MissingPackageError, missing, need, needing
from tests.test_house import ROOT, modules
from tests.without import hide

CORE = {"torch", "numpy", "safetensors", "typer", "packaging"}
CALLED = {"scikit-learn": "sklearn", "pyyaml": "yaml", "liger-kernel": "liger_kernel"}  # packages of other names
BY_CORE = {"jinja2", "markupsafe", "typing_extensions", "rich"}  # that torch and typer bring along
BY_OTHERS = {"tokenizers", "huggingface_hub", "triton"}  # that transformers, and torch for GPUs, bring along
# What a function names the remedy of, a script that is not installed, and the programs that `verify` compares.
OF_NOBODY = {"bitsandbytes", "mpmath", "sentence_transformers"}
OPTIONAL = {package for packages in EXTRAS.values() for package in packages}
NEED_NOTHING = {
    *("EmbeddingTrainConfig", "ImplicitRMLoss", "Log", "SignalHeads", "TrainConfig", "backends", "baselines", "hf"),
    *(
        "implicit_rm_loss",
        "linear_implicit_rm_loss",
        "nuisances",
        "reference",
        "stratify",
        "irm-fast --help",
        "irm-fast doctor",
    ),
}
IN_EMBEDDINGS = {"Diagnosis", "EmbeddingRewardModel", "diagnose", "implicit_scorer"}
LINE = re.compile(r"[^\n]+: needs the package (\w+), which is not installed; pip install 'irm-fast\[(\w+)\]'")


def required(extra: str | None) -> set[str]:
    """The packages that an extra requires, also by way of other extras, as they are imported; None: the core."""
    found = set()
    for text in requires("irm-fast") or []:
        name = re.split(r"[^\w.-]", text, maxsplit=1)[0].lower()
        wanted = re.search(r"extra == ['\"]([\w-]+)", text)
        if (wanted[1] if wanted else None) != extra:
            continue
        if name == "irm-fast":
            found |= set().union(*(required(other) for other in re.split(r"[\[\],]", text.partition(";")[0])[1:-1]))
        else:
            found.add(CALLED.get(name, name))
    return found


def test_the_table_is_that_of_the_installation() -> None:
    assert required(None) == CORE
    for extra, packages in EXTRAS.items():
        brought = required("train") | required("report") if extra in ("lora", "policy") else set()
        assert set(packages) == required(extra) - brought, extra
    assert required("all") == OPTIONAL - {"liger_kernel"}


def test_every_import_is_declared() -> None:
    found = set()
    for path, tree in modules(ROOT).values():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            found |= {(name.partition(".")[0], path) for name in names}
    known = {*sys.stdlib_module_names, *CORE, *OPTIONAL, *BY_CORE, *BY_OTHERS, *OF_NOBODY, "irm_fast"}
    assert not {(name, path) for name, path in found if name not in known}
    assert {name for name, _ in found} >= (CORE | OPTIONAL) - {"safetensors"}  # each is read somewhere


def without(*packages: str) -> dict[str, str]:
    """What comes of each public name and command where packages are not installed; "" is what works."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.common.core_only", *packages]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(run.stdout.splitlines()[-1])
    return {name: said.removeprefix("MissingPackageError: ") for name, said in found.items()}


def test_with_the_core_alone_a_line_says_what_is_missing() -> None:
    found = without(*OPTIONAL - BY_CORE, *BY_OTHERS, "pandas", "joblib")
    assert {name for name, said in found.items() if not said} == NEED_NOTHING
    for name, said in found.items():
        line = LINE.fullmatch(said)
        assert not said or line, said
        if line:
            assert (line[1] in EXTRAS[line[2]] and name.removesuffix(".load") in said) or name == "TrainConfig.load"


@pytest.mark.parametrize("extra", ["embeddings", "import", "train"])
def test_without_an_extra_what_needs_it_names_it(extra: str) -> None:
    hidden = set(EXTRAS[extra]) - BY_CORE - (set(EXTRAS["embeddings"]) if extra == "train" else set())
    found = without(*hidden)
    assert {name for name, said in found.items() if not said} >= NEED_NOTHING
    lines = [line for said in found.values() if (line := LINE.fullmatch(said))]
    assert {line[2] for line in lines} <= {extra, "import", "train"} and {line[1] for line in lines} <= hidden
    assert not [said for said in found.values() if "ModuleNotFoundError" in said or "No module named" in said]
    if extra == "train":
        assert not {name for name in IN_EMBEDDINGS if found[name]}
        assert (
            found["load"]
            == ("irm_fast.load: needs the package transformers, which is not installed; pip install 'irm-fast[train]'")
            or "pyarrow" in found["load"]
        )


def test_losses_are_computed_and_embeddings_fitted_without_the_other_extras(tmp_path: Path) -> None:
    hidden = (OPTIONAL - BY_CORE - set(EXTRAS["embeddings"])) | BY_OTHERS | {"pandas"}
    code = f"""
from tests.without import hide
hide({hidden})
import numpy as np, torch, irm_fast
rng, torch_random = np.random.default_rng(0), torch.Generator().manual_seed(0)
X, y = rng.normal(size=(300, 4)).astype(np.float32), (rng.random((300, 2)) < 0.4).astype(int)
model = irm_fast.EmbeddingRewardModel(hidden_layers=(), random_state=0).fit(X, y)
model.save({str(tmp_path / "model")!r})
same = irm_fast.EmbeddingRewardModel.load({str(tmp_path / "model")!r})
assert np.array_equal(model.predict_proba(X), same.predict_proba(X))
assert irm_fast.diagnose(y, propensity_design="constant").verdict
heads = irm_fast.SignalHeads(4, ["copy", "share"])
heads.loss(torch.from_numpy(X).requires_grad_(), torch.from_numpy(y)).backward()
print("whole")
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "whole\n", run.stderr


def test_the_line_names_the_extra_that_serves_the_caller() -> None:
    assert missing("json", None) is None
    assert "irm-fast[train]" in str(missing_line("pyarrow", "train")) and "[import]" in str(missing_line("pyarrow"))
    with pytest.raises(MissingPackageError, match=r"^lora_rank: needs the package peft.*irm-fast\[lora\]'$"):
        fail("peft", "lora_rank")
    with pytest.raises(ModuleNotFoundError, match="No module named 'nothing_of_ours'"), needing("x", "train"):
        import nothing_of_ours  # type: ignore[import-not-found]  # noqa: F401


def missing_line(package: str, extra: str | None = None) -> str | None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, package, None)
        return missing(package, extra)


def fail(package: str, what: str) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, package, None)
        need(package, what)


def test_what_is_imported_already_is_not_hidden() -> None:
    with pytest.raises(AssertionError):
        hide({"pytest"})
