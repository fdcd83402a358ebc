"""The folder of a comparison: what is kept in it, so that a run can be resumed, and what must not be mixed."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from irm_fast import __version__
from irm_fast.experiments.reproduce.population import PROTOCOLS, SIGNALS, Population

if TYPE_CHECKING:
    from irm_fast.experiments.reproduce.experiment import Experiment


def whole_redraws(output: Path) -> list[dict[str, Any]]:
    """The results of every redraw in a folder that has them all, also those of earlier runs with other protocols."""
    from irm_fast.experiments.reproduce.contest import entrants

    found = [read_results(path) for path in sorted(output.glob("redraws/*.jsonl"), key=_place)]
    return [result for results in found if len(results) >= len(entrants(SIGNALS)) for result in results]


def _place(path: Path) -> tuple[int, int]:
    protocol, seed = path.stem.rsplit("-", 1)
    return PROTOCOLS.index(protocol), int(seed)


def read_results(path: Path) -> list[dict[str, Any]]:
    """What a redraw has so far; a line that was cut off by an interruption does not count."""
    results = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            results.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return results


def results_file(output: Path, protocol: str, seed: int) -> Path:
    """A line of JSON for each method that is done."""
    return output / "redraws" / f"{protocol}-{seed}.jsonl"


OURS = ("settings.json", "redraws", "embeddings.safetensors", "table.md", "results.csv", "comparison.png")


def check_folder(output: Path, *, resume: bool, overwrite: bool) -> None:
    """Raises ValueError if there is something in it that must not be replaced."""
    if resume and overwrite:
        raise ValueError("resume and overwrite: both are set; choose one")
    if not output.exists() or not any(output.iterdir()):
        return
    if "experiment" not in (_json(output / "settings.json") or {}):
        raise ValueError(f"output: {output} is not empty and holds no earlier run; choose another folder")
    worth_keeping = [*output.glob("redraws/*.jsonl"), *output.glob("embeddings*")]
    if worth_keeping and not (resume or overwrite):
        raise ValueError(f"output: {output} holds an earlier run; --resume goes on, --overwrite replaces it")


def prepare(output: Path, experiment: Experiment, *, resume: bool) -> None:
    """Make the folder; unless a run is resumed, without what an earlier one wrote."""
    if not resume:
        _remove(output)
    (output / "redraws").mkdir(parents=True, exist_ok=True)
    settings = output / "settings.json"
    if not settings.exists():  # marks the folder as ours before the embeddings, which take long
        settings.write_text(json.dumps({"experiment": asdict(experiment)}, indent=2) + "\n", encoding="utf-8")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _remove(output: Path) -> None:
    """What a run writes, and nothing else that lies there."""
    for name in (*OURS, "embeddings.safetensors.parts"):
        path = output / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def check_settings(output: Path, experiment: Experiment, population: Population, *, resume: bool) -> None:
    """Results of other settings or data must not be mixed with those to come."""
    content = hashlib.blake2b(digest_size=16)
    for values in (population.X, population.rating, population.preference):
        content.update(np.ascontiguousarray(values).tobytes())
    settings = asdict(experiment)
    path = output / "settings.json"
    before = json.loads(path.read_text(encoding="utf-8"))
    if resume:
        for name, value in before["experiment"].items():
            if value != settings.get(name):
                raise ValueError(f"{name}: got {settings.get(name)!r}; {output} was run with {value!r}")
        if before.get("content", content.hexdigest()) != content.hexdigest():
            raise ValueError(f"data: {output} was run on other ratings or embeddings; choose another folder")
        if before.get("version", __version__) != __version__:
            raise ValueError(f"version: {output} was run with irm_fast {before['version']}; choose another folder")
    now = {"version": __version__, "experiment": settings, "rows": len(population.X), "content": content.hexdigest()}
    path.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
