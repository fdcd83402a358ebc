"""What the site does to a page before it becomes HTML, so that pages read alike there and in the repository.

Links that lead out of the folder `docs` become the names of the files, as the site holds no more than that folder. A
list may follow a paragraph without an empty line between them.
"""

import posixpath
import re
from itertools import pairwise
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)\s#]+)(#[^)\s]*)?\)")
ITEM = re.compile(r"\s*([-*]|\d+\.) ")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The Markdown that MkDocs turns into HTML.

    Args:
        markdown: The text of the page.
        page: MkDocs' page.
    """
    pieces = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(piece if piece.startswith("```") else _prose(piece, page.file.src_uri) for piece in pieces)


def _prose(text: str, source: str) -> str:
    return _spaced(LINK.sub(lambda found: _inside(found, source), text))


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
