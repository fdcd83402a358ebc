"""The folder of a comparison: what is kept in it, so that a run can be resumed, and what must not be mixed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from irm_fast import __version__
from irm_fast.data.writing.outputs import OutputFolder, check_choice
from irm_fast.data.writing.whole import write_whole
from irm_fast.experiments.reproduce.population import PROTOCOLS, SIGNALS, Population
from irm_fast.experiments.run_folder import SETTINGS, deciding_versions, marked_by, other_setting, warn_of_versions

FOLDER = OutputFolder(
    "run",
    files=(
        *(SETTINGS, "embeddings.safetensors", "table.md", "best_of_n.md", "results.csv", "comparison.png"),
        "best_of_n.png",
    ),
    folders=("redraws", "embeddings.safetensors.parts"),
    is_marked=marked_by("experiment"),
    mark=SETTINGS,
)


def whole_redraws(output: Path) -> list[dict[str, Any]]:
    """The results of every redraw in a folder that has them all, also those of earlier runs with other protocols."""
    from irm_fast.experiments.reproduce.contest import entrants

    found = [read_results(path) for path in sorted(output.glob("redraws/*.jsonl"), key=_place)]
    return [result for results in found if len(results) >= len(entrants(SIGNALS)) for result in results]


def _place(path: Path) -> tuple[int, int]:
    protocol, seed = path.stem.rsplit("-", 1)
    return PROTOCOLS.index(protocol), int(seed)


def read_results(path: Path) -> list[dict[str, Any]]:
    """The results that a redraw has so far; a line that was cut off by an interruption does not count."""
    results = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            results.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return results


def results_file(output: Path, protocol: str, seed: int) -> Path:
    """The file of a redraw, which holds a line of JSON for each method that is done."""
    return output / "redraws" / f"{protocol}-{seed}.jsonl"


def check_folder(output: Path, *, resume: bool, overwrite: bool) -> None:
    """See that a run may begin in a folder, or go on there; nothing is written.

    Args:
        output: The folder.
        resume: Whether to go on with an earlier run.
        overwrite: Whether to replace an earlier run.

    Raises:
        ValueError: Both are set; the folder holds something else; or it holds a run, and neither is set.
    """
    check_choice(resume=resume, overwrite=overwrite)
    if FOLDER.check(output) != "ours":
        return
    worth_keeping = [*output.glob("redraws/*.jsonl"), *output.glob("embeddings*")]
    if worth_keeping and not (resume or overwrite):
        raise FOLDER.held(output, "an earlier run", resume=True)
    if not resume:
        FOLDER.check_replaceable(output)


def prepare(output: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
    """Make the folder; unless a run is resumed, without what an earlier one wrote.

    Args:
        output: The folder.
        settings: The settings of the experiment that have an effect.
        resume: Whether the run goes on with an earlier one; other versions of packages are warned of.
    """
    if not resume:
        FOLDER.clear_own(output)
    (output / "redraws").mkdir(parents=True, exist_ok=True)
    path = output / SETTINGS
    if path.exists():
        warn_of_versions(json.loads(path.read_text(encoding="utf-8")), output)
    else:  # marks the folder as ours before the embeddings, which take long
        first = {"experiment": dict(settings), "versions": deciding_versions()}
        write_whole(path, json.dumps(first, indent=2) + "\n")


def check_settings(output: Path, settings: Mapping[str, Any], population: Population) -> None:
    """Refuse to mix results of other settings or data with those to come, and write down the present ones.

    Args:
        output: The folder of the run, which `prepare` has made.
        settings: The settings of the experiment that have an effect; others stay as an earlier run of other protocols
            had them.
        population: The population that logs are drawn from.

    Raises:
        ValueError: The earlier run had other settings, other data, or another version of this package.
    """
    content = hashlib.blake2b(digest_size=16)
    for values in (population.X, population.rating, population.preference):
        content.update(np.ascontiguousarray(values).tobytes())
    path = output / SETTINGS
    before = json.loads(path.read_text(encoding="utf-8"))
    kept = before["experiment"]
    for name, value in settings.items():
        if kept.get(name, value) != value:
            raise other_setting(name, value, kept[name], output)
    if before.get("content", content.hexdigest()) != content.hexdigest():
        raise ValueError(
            f"data: {output} was run on other ratings or embeddings; choose another folder, or --overwrite"
        )
    if before.get("version", __version__) != __version__:
        raise other_setting("version", __version__, before["version"], output)
    now = {"version": __version__, "experiment": kept | settings, "rows": len(population.X)}
    write_whole(path, json.dumps(before | now | {"content": content.hexdigest()}, indent=2) + "\n")
