"""Links of all pages lead to a file, and to a heading of it; what code says of a page is where it says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.docs.notebooks import NOTEBOOKS
from tests.docs.site import load_hook

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *NOTEBOOKS]
FOLDERS = ("irm_fast", "kernels", "tests", "benchmarks", "examples", "docs")
SOURCES = {".py", ".md", ".h", ".cpp", ".sh", ".yml"}


def prose(page: Path) -> str:
    """The text of a page without its blocks of code."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = [cell["source"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n".join("".join(lines) for lines in cells)
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The names by which headings are linked."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def faults(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert faults(page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A title\n[a](other.md) [b](#a-title) [c](#nothing) [d](https://example.org)\n")
    assert faults(page) == ["other.md", "#nothing"]


def test_pages_that_files_name_are_there() -> None:
    files = [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]
    named = [
        (file, name)
        for file in files
        if file.suffix in SOURCES
        for name in re.findall(r"(?<![\w./])docs/[\w./-]+\.(?:md|png|ipynb)\b", file.read_text(encoding="utf-8"))
    ]
    assert len(named) > 20
    assert [(str(file), name) for file, name in named if not (ROOT / name).exists()] == []


def test_the_readme_is_a_screen_and_a_half() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_pages_of_results_have_a_date_and_a_version() -> None:
    pages = [page for page in (ROOT / "docs" / "results").rglob("*.md") if page.name != "index.md"]
    assert len(pages) > 8
    for page in pages:
        assert re.search(r"Version \d+\.\d+\.\d+\b[^.]*\b2\d{3}", page.read_text().replace("\n", " ")), page


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]))
    docs = ROOT / "docs"
    there = [path for path in PAGES if docs in path.parents]
    pages = {path.relative_to(docs).with_suffix(".md").as_posix() for path in there}
    assert pages | set(load_hook("generated").PAGES) == listed
