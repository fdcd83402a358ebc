"""What the command line needs beside its commands: expected errors in a line, settings as options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, get_args, get_type_hints

import typer
from typer.core import TyperGroup

from irm_fast.training.config import MISSING, TrainConfig


class Commands(TyperGroup):
    """Turns expected errors into one line and exit code 2; `--debug` lets the traceback through."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):  # caught below otherwise, by descent
            raise
        except KeyboardInterrupt as interrupt:
            typer.echo("; ".join(["interrupted", *map(str, interrupt.args)]), err=True)
            raise typer.Exit(130) from None
        except (ValueError, OSError, RuntimeError) as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """One option for each field of TrainConfig in the place of `**settings`; None stands for not given."""
    parameters = inspect.signature(command, eval_str=True).parameters.values()
    given = [parameter for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    hints = get_type_hints(TrainConfig)
    for setting in fields(TrainConfig):
        kinds = get_args(hints[setting.name]) or (hints[setting.name],)
        kind = kinds[0] if len(kinds) == 1 or kinds[0] is int else str  # mappings are parsed by TrainConfig
        shown = "" if kind is bool or setting.default in (MISSING, None) else str(setting.default)
        option = typer.Option(help=setting.metadata["help"], show_default=shown or False)
        given.append(
            inspect.Parameter(
                setting.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[kind | None, option],
            )
        )
    command.__signature__ = inspect.Signature(given)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in given}
    return command
