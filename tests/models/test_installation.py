"""`irm-fast doctor`: what it finds here, and that it sees what is broken."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from typing import Any

import pytest
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.losses import dispatch
from irm_fast.models import installation
from irm_fast.models.installation import Finding


def of(findings: list[Finding], area: str, name: str) -> Finding:
    [one] = [one for one in findings if (one.area, one.name) == (area, name)]
    return one


def test_a_sound_installation_works(monkeypatch: Any) -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    report = json.loads(result.stdout)
    findings = [Finding(**each) for each in report["findings"]]
    assert result.exit_code == 0 and report["works"] and not [one for one in findings if one.status == "broken"]
    assert of(findings, "packages", "torch").said.startswith(report["versions"]["torch"])
    assert "agrees with the definition" in of(findings, "loss", "cpu").said
    assert "varlen, in float32" in of(findings, "attention", "cpu").said
    assert report["machine"]["cores"] >= 1
    monkeypatch.setattr(installation, "examine", lambda: findings)
    shown = CliRunner().invoke(app, ["doctor"]).stdout
    assert "packages: torch" in shown and "nothing is broken" in shown and "\x1b" not in shown


@pytest.mark.parametrize(("here", "said"), [(None, "is not installed"), ("0.1", "0.1; supported")])
def test_a_package_that_lacks_or_does_not_fit(monkeypatch: Any, here: str | None, said: str) -> None:
    monkeypatch.setattr(installation, "installed", lambda name: here)
    found = installation._package("numpy", ">=1.26")
    assert found.status == "broken" and found.said.startswith(said) and found.remedy == "pip install 'numpy>=1.26'"


def test_a_package_that_cannot_be_imported() -> None:
    found = installation._package("typer", "")
    assert found.status == "ok"
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "typer", None)
        found = installation._package("typer", "")
    assert found.status == "broken" and "cannot be imported" in found.said


def test_an_extra_that_is_installed_and_cannot_be_imported_is_broken() -> None:
    assert not [one for one in installation._check_packages() if one.status == "broken"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "sklearn", None)
        [found] = [one for one in installation._check_packages() if one.status == "broken"]
    assert found.name == "scikit-learn" and found.remedy.startswith("pip install --force-reinstall 'scikit-learn")


def test_a_kernel_that_is_wrong_is_broken(monkeypatch: Any) -> None:
    assert 0 < installation._difference_from_definition("cpu") < 1e-5
    monkeypatch.setattr(installation, "_difference_from_definition", lambda kind: 0.5)
    found = of([*installation._check_losses()], "loss", "cpu")
    assert found.status == "broken" and "differs from the definition by 5.0e-01" in found.said and found.remedy


def test_without_the_kernel_it_is_said_which_backend_is_used_and_why(monkeypatch: Any) -> None:
    monkeypatch.setattr(dispatch, "_why_not", lambda name: "it was not built" if name == "cpu" else None)
    found = of([*installation._check_losses()], "loss", "cpu")
    assert found.status == "note" and found.said.startswith("reference: slower") and "it was not built" in found.said
    assert "C++ compiler" in found.remedy


def test_a_check_that_fails_is_a_finding_and_the_exit_code_says_so(monkeypatch: Any) -> None:
    def _check_devices() -> Any:
        yield Finding("devices", "cpu", "ok", "a processor")
        raise RuntimeError("driver too old\nand more")

    assert [one.said for one in installation._guarded(_check_devices)] == [
        "a processor",
        "RuntimeError: driver too old",
    ]

    def no_folder() -> str:
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr(tempfile, "gettempdir", no_folder)
    monkeypatch.setattr(installation, "examine", lambda: [*installation._check_resources()])
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1 and "broken: resources, TMPDIR: TMPDIR=FOLDER" in result.stdout


def test_missing_extras_come_with_their_command(monkeypatch: Any) -> None:
    monkeypatch.setattr(installation, "installed", lambda name: None)
    found = of([*installation._check_extras()], "extras", "import")
    assert (found.status, found.said.partition(",")[0]) == ("note", "duckdb is not installed; supported >=1.2")
    assert found.remedy == "pip install 'irm-fast[import]'"
    assert not {"test", "dev"} & {one.name for one in installation._check_extras()}


def test_the_version_is_said_without_heavy_imports() -> None:
    code = "import sys; sys.argv = ['irm-fast', '--version']; from irm_fast.cli import main; main()\n"
    code += "assert not {'torch', 'typer', 'numpy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("irm-fast 0")
