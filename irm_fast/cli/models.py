"""The command `doctor`, which looks at the installation."""

from __future__ import annotations

from irm_fast.cli.answers import Answer, Table
from irm_fast.cli.help import example


@example("irm-fast doctor", "irm-fast doctor --json")
def doctor() -> Answer:
    """Is irm-fast installed so that it works here, and what will it use? Exit code 1 if something is broken."""
    from irm_fast.models.installation import examine

    found = examine()
    broken = [one for one in found if one.status == "broken"]
    facts = {}
    if not any(one.name == "torch" for one in broken):
        from irm_fast.models.machine import describe_machine, versions

        facts = {"versions": versions(), "machine": describe_machine()}
    table = Table(("", "what", "found"), [(one.status, f"{one.area}: {one.name}", one.said) for one in found])
    remedies = [f"{one.status}: {one.area}, {one.name}: {one.remedy}" for one in found if one.remedy]
    end = f"{len(broken)} broken: irm-fast does not work as it is" if broken else "nothing is broken"
    return Answer({"works": not broken, "findings": found, **facts}, [table, *remedies, end], code=bool(broken))
