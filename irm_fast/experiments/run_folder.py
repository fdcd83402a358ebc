"""The beginning of a run that keeps what is done: its folder, and the settings that a resumed run must share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from irm_fast import __version__
from irm_fast.common.warning import warn_caller
from irm_fast.data.writing.outputs import OutputFolder, check_choice
from irm_fast.data.writing.whole import write_whole
from irm_fast.models.machine import installed

SETTINGS = "settings.json"
DECIDING = ("accelerate", "numpy", "scikit-learn", "scipy", "torch", "transformers", "trl")  # they decide numbers too


def marked_by(name: str) -> Callable[[Path], bool]:
    """A function that says whether a folder's settings have this name, by which they are those of a kind of run."""

    def is_marked(folder: Path) -> bool:
        try:
            settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(settings, dict) and name in settings

    return is_marked


def begin(folder: OutputFolder, output: Path, settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
    """See that a run may begin in a folder or go on there, and write down its settings and versions.

    Args:
        folder: The kind of folder.
        output: The folder.
        settings: What decides the numbers of the run, beside the version of this package.
        resume: Whether to go on with an earlier run.
        overwrite: Whether to replace an earlier run.

    Raises:
        ValueError: Both are set; the folder holds something else; it holds a run, and neither is set; or the run that
            is to go on had other settings.
    """
    check_choice(resume=resume, overwrite=overwrite)
    now, path = json.loads(json.dumps({"version": __version__, **settings})), output / SETTINGS
    if folder.check(output) == "ours":
        if resume:
            before = json.loads(path.read_text(encoding="utf-8"))
            for name in now:
                if before.get(name) != now[name]:
                    raise other_setting(name, now[name], before.get(name), output)
            warn_of_versions(before, output)
            return
        if not overwrite:
            raise folder.held(output, "an earlier run", resume=True)
        folder.check_replaceable(output)
        folder.clear_own(output)
    output.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(now | {"versions": deciding_versions()}, indent=2) + "\n")


def deciding_versions() -> dict[str, str]:
    """The versions of the packages of `DECIDING` that are installed."""
    return {name: here for name in DECIDING if (here := installed(name))}


def warn_of_versions(before: Mapping[str, Any], output: Path) -> None:
    """Warn if a run goes on with other versions of packages than it began with.

    Args:
        before: The settings of the run, with "versions", which runs of earlier versions did not keep.
        output: The folder.
    """
    now = deciding_versions()
    then = {name: version for name, version in before.get("versions", {}).items() if now.get(name) != version}
    if then:
        got = ", ".join(f"{name} {now.get(name, 'not installed')}" for name in then)
        warn_caller(
            f"versions: got {got}; {output} was begun with {' '.join(f'{name}=={then[name]}' for name in then)}, and "
            "numbers may differ by that; install these, choose another folder, or --overwrite"
        )


def other_setting(name: str, got: Any, before: Any, output: Path) -> ValueError:
    """The error for a run that is to go on in a folder with another setting than it began with.

    Args:
        name: The name of the setting; "version" for the version of this package.
        got: The present setting.
        before: The setting of the run.
        output: The folder.
    """
    remedy = f"install irm-fast {before}" if name == "version" else "give the options of then"
    return ValueError(
        f"{name}: got {got!r}; {output} was run with {before!r}; {remedy}, choose another folder, or --overwrite"
    )
