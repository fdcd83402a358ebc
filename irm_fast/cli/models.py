"""The command `doctor`, which looks at the installation."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from irm_fast.cli.help import example
from irm_fast.cli.options import AsJson
from irm_fast.cli.tables import show_table
from irm_fast.cli.terminal import echo


@example("irm-fast doctor", "irm-fast doctor --json")
def doctor(as_json: AsJson = False) -> None:
    """Is irm-fast installed so that it works here, and what will it use? Exit code 1 if something is broken."""
    from irm_fast.models.installation import examine

    found = examine()
    broken = [one for one in found if one.status == "broken"]
    if as_json:
        from irm_fast.models.machine import describe_machine

        facts = None if any(one.name == "torch" for one in broken) else describe_machine()
        echo(json.dumps({"works": not broken, "findings": [asdict(one) for one in found], "machine": facts}, indent=2))
    else:
        rows = [(one.status, f"{one.area}: {one.name}", one.said) for one in found]
        show_table(("", "what", "found"), rows)
        for one in found:
            if one.remedy:
                echo(f"{one.status}: {one.area}, {one.name}: {one.remedy}")
        echo(f"{len(broken)} broken: irm-fast does not work as it is" if broken else "nothing is broken")
    raise typer.Exit(bool(broken))
