"""The lowest versions that are tested are those that pyproject.toml states."""

from __future__ import annotations

import re
from importlib.metadata import requires

from tests.test_house import ROOT

RANGE = re.compile(r"([\w.-]+)(?:\[\w+\])?[^;]*>=([\d.]+)")


def lowest() -> dict[str, str]:
    """By package the version of .ci/lowest.txt."""
    lines = (ROOT / ".ci" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_the_lowest_versions_are_the_lower_bounds() -> None:
    texts = [text for text in requires("irm-fast") or [] if "extra == 'docs'" not in text.replace('"', "'")]
    bounds = {match[1].lower(): match[2] for text in texts if (match := RANGE.match(text))}
    developers = {"ruff", "mypy", "pytest-benchmark"}  # whose results are none of the package's
    stated = {name: version for name, version in bounds.items() if name not in developers}
    tested = lowest()
    assert stated.keys() == tested.keys()
    for name, bound in stated.items():
        assert re.fullmatch(rf"{re.escape(bound)}(\.0)*", tested[name]), f"{name}: {tested[name]}, stated {bound}"
