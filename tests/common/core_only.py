"""Prints as JSON what comes of all public names and commands where the packages named are not installed."""

from __future__ import annotations

import json
import sys
from typing import Any

import typer

from tests.without import hide


def said(work: Any) -> str:
    """What an error of some work says; "" where there is none."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main() -> None:
    hide(set(sys.argv[1:]))
    import irm_fast

    found = {name: said(lambda name=name: getattr(irm_fast, name)) for name in irm_fast.__all__}
    found["TrainConfig.load"] = said(lambda: irm_fast.TrainConfig.load("none.yaml"))

    from irm_fast.cli.commands import app
    from irm_fast.cli.common import check_packages

    program: Any = typer.main.get_command(app)
    for name, command in program.commands.items():
        found[f"irm-fast {name}"] = said(lambda command=command, name=name: check_packages(command.callback, name))
    help_shown = program.main(["--help"], standalone_mode=False) in (0, None)
    found["irm-fast --help"] = "" if help_shown else "no help"
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
