"""The settings by which every command reads a log, and what a setting is: a dataclass field that carries its help."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar, get_type_hints

from irm_fast.common.headings import READ
from irm_fast.data.declarations import MAX_ERRORS, Declarations, OnError
from irm_fast.training.setting_values import check_bounds, convert

Config = TypeVar("Config")


def option(
    default: Any,
    help: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    group: str = READ,
) -> Any:
    """A setting of a run: a dataclass field whose metadata hold its help and its bounds.

    Args:
        default: The default value; MISSING for a setting that has to be given.
        help: The line that `irm-fast train --help` prints.
        above: The value has to be greater than this.
        at_least: The value has to be this or greater.
        below: The value has to be less than this.
        at_most: The value has to be this or less.
        group: The heading under which help has it.
    """
    bounds = {"above": above, "at_least": at_least, "below": below, "at_most": at_most}
    return field(default=default, metadata={"help": help, "group": group, **bounds})


def with_help(config: type[Config]) -> type[Config]:
    """Add the help of all settings to the docstring of their dataclass, as `help` shows it.

    Args:
        config: The dataclass, whose docstring has a section "Raises".
    """
    found = fields(config)  # type: ignore[arg-type]  # a dataclass, which no bound can say
    settings = "".join(f"    {setting.name}: {setting.metadata['help']}\n" for setting in found)
    about, raises, rest = inspect.cleandoc(config.__doc__ or "").partition("Raises:\n")
    config.__doc__ = f"{about}Args:\n{settings}\n{raises}{rest}"
    return config


@dataclass(kw_only=True)
class TextSettings:
    """How conversations are to be read.

    Values are converted and checked on construction; they may be text, as the command line has them.

    Raises:
        ValueError: A field has the wrong type or is out of range. The message says which, what it got, and what is
            expected.
    """

    map: Mapping[str, str] | None = option(
        None, "Where fields stand that have other names: prompt=input.messages,feedback.copy=n_copies>0"
    )
    fold_system: bool = option(False, "Put a system turn at the beginning of the first user turn.")
    join_turns: bool = option(False, "Make one turn of neighbouring turns of one speaker.")
    on_error: OnError = option("fail", "Rows that are wrong: fail, skip them, or quarantine them in a file.")
    max_errors: float | str = option(
        MAX_ERRORS, "Number of wrong rows, or share such as 5%, from which on skipping is failing.", at_least=0
    )

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for setting in fields(self):
            value = convert(setting.name, getattr(self, setting.name), kinds[setting.name])
            setattr(self, setting.name, value)
            if setting.default is MISSING and not value:
                raise ValueError(f"{setting.name}: got an empty one; expected a value")
            bounds = {name: bound for name, bound in setting.metadata.items() if name not in ("help", "group")}
            check_bounds(setting.name, value, **bounds)
        _ = self.declared  # which checks the rest

    @property
    def declared(self) -> Declarations:
        """What the settings declare."""
        return Declarations.of_settings({setting.name: getattr(self, setting.name) for setting in fields(self)})


@dataclass(kw_only=True)
class LogSettings(TextSettings):
    """How a log is to be read: what its fields and signals mean, and what becomes of rows that are wrong.

    Raises:
        ValueError: As `TextSettings`.
    """

    signals: str | None = option(None, "The signals to read, comma separated; all of the feedback by default.")
    polarity: Mapping[str, int] | None = option(None, "Polarity of signals: NAME=1 or NAME=-1, ...")
    absent: str | Mapping[str, str] = option(
        "error", "A feedback key that some rows lack: silent, missing or error; or NAME=silent,..."
    )
    null: str | Mapping[str, str] = option("missing", "null in feedback: missing or silent; or NAME=silent,...")
    counts: str | None = option(None, "Signals whose values are numbers of actions, comma separated; or all.")
