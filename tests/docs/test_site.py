"""What the site does to a page, and the pages that the package writes for it."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import typer

from irm_fast.cli.commands import app
from irm_fast.training.config import EmbeddingTrainConfig, TrainConfig
from tests.docs.notebooks import NOTEBOOKS
from tests.docs.site import load_hook


def on_site(markdown: str, source: str = "how/log.md") -> str:
    """A page as the site has it."""
    page = SimpleNamespace(file=SimpleNamespace(src_uri=source))
    return str(load_hook("hooks").on_page_markdown(markdown, page))


def test_links_out_of_the_folder_become_names() -> None:
    assert on_site("see [SECURITY.md](../../SECURITY.md).") == "see `SECURITY.md`."
    assert on_site("[what was kept](../../benchmarks/results)") == "what was kept (`benchmarks/results`)"
    assert on_site("[why](../why/identification.md#how-sure)") == "[why](../why/identification.md#how-sure)"
    assert on_site("[a walk](../start/embeddings.ipynb)") == "[a walk](../start/embeddings.md)"
    assert on_site("[elsewhere](https://example.org/a.ipynb)") == "[elsewhere](https://example.org/a.ipynb)"


def test_a_list_follows_a_paragraph_without_an_empty_line() -> None:
    assert on_site("text:\n- one\n  more\n- two") == "text:\n\n- one\n  more\n- two"
    assert on_site("```sh\na\n- b\n```\n- one") == "```sh\na\n- b\n```\n\n- one"


def test_two_numbers_that_belong_together_stay_on_one_line() -> None:
    assert on_site("-0.1 ± 0.2 and .5 / .6, a / b") == "-0.1\xa0±\xa00.2 and .5\xa0/\xa0.6, a / b"


def test_a_notebook_becomes_a_page_with_what_it_prints() -> None:
    cells = list(load_hook("hooks")._cells(json.loads(Path(NOTEBOOKS[0]).read_text())))
    assert cells[0].startswith("# ") and cells[1].startswith("```python\n")
    assert [cell for cell in cells if cell.startswith("```output\n")]
    assert [cell for cell in cells if cell.startswith("![")]


def test_every_setting_and_every_option_is_on_its_page() -> None:
    generated = load_hook("generated")
    on_text, _, on_embeddings = generated.settings().partition("## On embeddings")
    for config, text in ((TrainConfig, on_text), (EmbeddingTrainConfig, on_embeddings)):
        for field in fields(config):
            assert text.count(f"\n| `{field.name}` | ") == 1
    commands = generated.commands()
    group = typer.main.get_command(app)
    for name, command in group.commands.items():
        part = commands.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        missing = [o for p in command.params for o in p.opts if o.startswith("--") and f"`{o}`" not in part]
        assert all(line in part for line in command.callback.examples) and f"irm-fast {name}" in part
        assert missing in ([], ["--help"])
