"""What the site does to a page before it becomes HTML, so that pages read alike there and in the repository.

Links that lead out of the folder `docs` become the names of the files, as the site holds no more than that folder. A
list may follow a paragraph without an empty line between them. Notebooks become pages, with what their cells print.
Two numbers that belong together, as 0.1 ± 0.2, stay on one line.
"""

import json
import posixpath
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

NOTEBOOK = re.compile(r"(\]\((?![a-z]+:)[^)\s]+)\.ipynb\b")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)\s#]+)(#[^)\s]*)?\)")
PAIR = re.compile(r"(\d) ([±/]) (?=[.\d])")
ITEM = re.compile(r"\s*([-*]|\d+\.) ")


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """The files of the site: each notebook is a page of its own, in the place of the file.

    Args:
        files: MkDocs' files.
        config: MkDocs' settings.
    """
    from mkdocs.structure.files import File

    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        notebook = json.loads(Path(file.abs_src_path).read_text(encoding="utf-8"))
        name = file.src_uri.removesuffix(".ipynb") + ".md"
        files.append(File.generated(config, name, content="\n\n".join(_cells(notebook))))
    return files


def _cells(notebook: dict[str, Any]) -> Iterator[str]:
    """The cells of a notebook as Markdown."""
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        yield text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                yield f"![A picture that this code draws](data:image/png;base64,{data['image/png']})"
            elif shown := "".join(output.get("text", "") or data.get("text/plain", "")):
                yield f"```output\n{shown.rstrip()}\n```"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The Markdown that MkDocs turns into HTML.

    Args:
        markdown: The text of the page.
        page: MkDocs' page.
    """
    pieces = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(f"{piece}\n" if piece.startswith("```") else _prose(piece, page.file.src_uri) for piece in pieces)


def _prose(text: str, source: str) -> str:
    text = LINK.sub(lambda found: _inside(found, source), NOTEBOOK.sub(r"\1.md", text))
    return _spaced(PAIR.sub("\\1\N{NO-BREAK SPACE}\\2\N{NO-BREAK SPACE}", text))


def _inside(found: re.Match[str], source: str) -> str:
    """The link, or the name of the file that it leads to where that is outside of `docs`."""
    words, target = found.group(1).strip("`"), found.group(2)
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(source), target))
    if path.startswith("docs/"):
        return found.group(0)
    return f"`{path}`" if words in (path, posixpath.basename(path)) else f"{words} (`{path}`)"


def _spaced(text: str) -> str:
    """The text with an empty line before each list that follows a paragraph."""
    lines = text.split("\n")
    spaced = lines[:1]
    for before, line in pairwise(lines):
        begins = line[:1] != " " and ITEM.match(line)
        if begins and before.strip() and not ITEM.match(before) and before[:1] != " ":
            spaced.append("")
        spaced.append(line)
    return "\n".join(spaced)
