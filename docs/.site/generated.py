"""Pages of the reference that the package writes: the settings of training, and the commands with their options."""

import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

PAGES = ("reference/settings.md", "reference/commands.md")


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """The files of the site, with the pages of this module.

    Args:
        files: MkDocs' files.
        config: MkDocs' settings.
    """
    from mkdocs.structure.files import File

    sys.path.insert(0, str(Path(config.config_file_path).parent))
    for name, text in zip(PAGES, (settings(), commands()), strict=True):
        files.append(File.generated(config, name, content=text))
    return files


def settings() -> str:
    """The settings of `TrainConfig` and of `EmbeddingTrainConfig`, under the headings that help has them."""
    from irm_fast.common.headings import HEADINGS
    from irm_fast.training.config import EmbeddingTrainConfig, TrainConfig

    parts = [
        "# Settings of training",
        "Arguments of `TrainConfig` and `EmbeddingTrainConfig`, keys of a YAML file (`--config`), and options of "
        "`irm-fast train`, where `_` is `-`. [How to train](../how/training.md) says what they do.",
    ]
    for config, title in ((TrainConfig, "Training a language model"), (EmbeddingTrainConfig, "On embeddings")):
        parts.append(f"## {title}: `{config.__name__}`")
        kinds = get_type_hints(config)
        for heading in HEADINGS:
            found = [field for field in fields(config) if field.metadata["group"] == heading]
            rows = [[f"`{f.name}`", _kind(kinds[f.name]), _default(f.default), f.metadata["help"]] for f in found]
            if rows:
                parts += [f"### {heading}", _table(["setting", "values", "default", "meaning"], rows)]
    return "\n\n".join(parts) + "\n"


def commands() -> str:
    """The commands of `irm-fast`, with their arguments and options."""
    import typer

    from irm_fast.cli.commands import app

    parts = [
        "# Commands",
        "`irm-fast COMMAND --help` says the same. `irm-fast doctor` says what is installed and used.",
    ]
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        examples = "\n".join(command.callback.examples)
        parts += [f"## {name}", _sentences(command.help or ""), f"```sh\n{examples}\n```"]
        rows = [row for parameter in command.params for row in _parameter(parameter)]
        parts.append(_table(["option", "default", "meaning"], rows))
    return "\n\n".join(parts) + "\n"


def _parameter(parameter: Any) -> Iterator[list[str]]:
    """The row of an option, or of an argument."""
    if getattr(parameter, "hidden", False) or parameter.name == "help":
        return
    names = parameter.opts + parameter.secondary_opts if parameter.param_type_name == "option" else [parameter.name]
    default = "needed" if parameter.required else _default(parameter.default)
    yield [", ".join(f"`{name}`" for name in names), default, _sentences(getattr(parameter, "help", None) or "")]


def _sentences(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("\b", "")).strip()


def _kind(kind: Any) -> str:
    """The values of a type in words."""
    if get_origin(kind) is not None and all(isinstance(value, str) for value in get_args(kind)):
        return ", ".join(f"`{value}`" for value in get_args(kind))
    parts = [part for part in get_args(kind) or (kind,) if part is not type(None)]
    words = {int: "whole number", float: "number", bool: "true, false", str: "text"}
    if get_origin(kind) is not None and kind not in words and not _is_union(kind):
        return "mapping"
    return " or ".join(dict.fromkeys(words.get(part) or _kind(part) for part in parts))


def _is_union(kind: Any) -> bool:
    return str(get_origin(kind)) in ("typing.Union", "<class 'types.UnionType'>")


def _default(value: Any) -> str:
    if value is MISSING:
        return "needed"
    if value is None or value == "" or callable(value):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
