"""All redraws of all protocols, in processes; every result is kept as it comes, so that a run can be resumed."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from irm_fast import __version__
from irm_fast.rated import Rated, read_rated
from irm_fast.reproduce.population import (
    PROTOCOLS,
    SIGNALS,
    TEST_FRACTION,
    Population,
    embedded,
    of_rated,
    semi_synthetic,
)
from irm_fast.simulate import check_arguments, check_ratings

MADE = "semi-synthetic"
HUB = ("hs", "ufb", "saferlhf")
FEWEST = 100  # responses
Job = tuple[str, int, Path]  # protocol, redraw, and the file of its results


@dataclass(frozen=True)
class Experiment:
    """data: "semi-synthetic", a file of rated responses or pairs, or hs, ufb, saferlhf on the hub.

    model: folder or hub id of a decoder or an encoder that embeds the texts; None for made data.  alpha, target: of the
    protocols, as in `irm_fast.simulate`.  limit: only the first so many responses.  max_length: tokens.  noise: of made
    ratings, whose quality has deviation 1.
    """

    data: str
    model: str | None = None
    alpha: float = 0.5
    target: float = 0.2
    limit: int | None = None
    max_length: int = 1024
    noise: float = 0.45


def run(
    experiment: Experiment,
    output: Path,
    *,
    protocols: Sequence[str] = PROTOCOLS,
    redraws: int = 5,
    processes: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Fit every method to every redraw, keep what comes out in a folder, and return it: see `Contest.measured`.

    processes: how many redraws at once; None: one a core.  resume: go on with an interrupted run, or with more redraws.

    Raises:
        ValueError: an argument out of range, data that cannot be used, or a folder that holds something else.
    """
    for protocol in protocols:
        check_arguments(protocol, SIGNALS, experiment.alpha, experiment.target, 0, TEST_FRACTION)
    if redraws < 2:
        raise ValueError(f"redraws: got {redraws}; expected 2 or more, to tell a difference from chance")
    rated = read(experiment)  # what cannot be read leaves no folder behind
    _prepare(output, experiment, resume=resume, overwrite=overwrite)
    population = _made(experiment) if rated is None else _embedded(rated, experiment, output)
    _check_settings(output, experiment, population, resume=resume)
    jobs = [(protocol, seed) for seed in range(redraws) for protocol in protocols]
    _run(jobs, population, experiment, output, processes or os.cpu_count() or 1)
    return [result for job in jobs for result in read_results(_file(output, *job))]


def report(results: Sequence[Mapping[str, Any]], experiment: Experiment, output: Path) -> str:
    """Write table.md, results.csv and comparison.png to the folder; the table, and what was written."""
    from irm_fast.reproduce.picture import draw
    from irm_fast.reproduce.table import markdown, write_csv

    name = experiment.data if experiment.data in (MADE, *HUB) else Path(experiment.data).name
    table = markdown(results, name)
    (output / "table.md").write_text(table, encoding="utf-8")
    write_csv(results, output / "results.csv")
    picture = draw(results, output / "comparison.png")
    missing = "" if picture else "; no picture: it needs matplotlib, pip install 'irm-fast[plot]'"
    return f"{table}\nwrote {output}/: table.md, results.csv{', comparison.png' if picture else missing}"


def read(experiment: Experiment) -> Rated | None:
    """The rated responses of an experiment; None for made embeddings, which have no texts."""
    if experiment.data == MADE:
        return None
    if experiment.model is None:
        raise ValueError("model: none given; texts need a decoder or an encoder that embeds them")
    if experiment.data in HUB:
        from irm_fast.hub import fetch_rated

        return fetch_rated(experiment.data, experiment.limit)
    rated = read_rated(experiment.data)
    rated = rated if experiment.limit is None else rated.subset(np.arange(min(experiment.limit, len(rated))))
    if len(rated) < FEWEST:
        raise ValueError(
            f"data: {experiment.data} holds {len(rated)} responses; expected {FEWEST} or more to compare on"
        )
    check_ratings(rated)
    return rated


def _made(experiment: Experiment) -> Population:
    rows = {} if experiment.limit is None else {"rows": experiment.limit}
    return semi_synthetic(noise=experiment.noise, **rows)


def _embedded(rated: Rated, experiment: Experiment, output: Path) -> Population:
    """With embeddings that are written to the folder, or read from it."""
    path = output / "embeddings.safetensors"
    return of_rated(rated, embedded(rated, str(experiment.model), path, max_length=experiment.max_length))


def read_results(path: Path) -> list[dict[str, Any]]:
    """What a redraw has so far; a line that was cut off by an interruption does not count."""
    results = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            results.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return results


def _file(output: Path, protocol: str, seed: int) -> Path:
    return output / "redraws" / f"{protocol}-{seed}.jsonl"


OURS = ("settings.json", "redraws", "embeddings.safetensors", "table.md", "results.csv", "comparison.png")


def _prepare(output: Path, experiment: Experiment, *, resume: bool, overwrite: bool) -> None:
    """Make the folder; an earlier run's files in it are kept, replaced, or an error."""
    if resume and overwrite:
        raise ValueError("resume and overwrite: both are set; choose one")
    settings = output / "settings.json"
    if output.exists() and any(output.iterdir()):
        if "experiment" not in (_json(settings) or {}):
            raise ValueError(f"output: {output} is not empty and holds no earlier run; choose another folder")
        worth_keeping = [*output.glob("redraws/*.jsonl"), *output.glob("embeddings*")]
        if worth_keeping and not (resume or overwrite):
            raise ValueError(f"output: {output} holds an earlier run; --resume goes on, --overwrite replaces it")
        if not resume:
            _remove(output)
    (output / "redraws").mkdir(parents=True, exist_ok=True)
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


def _check_settings(output: Path, experiment: Experiment, population: Population, *, resume: bool) -> None:
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


_shared: tuple[Population, Experiment] | None = None  # in a child process


def _share(population: Population, experiment: Experiment, threads: int) -> None:
    """In each child, once."""
    global _shared
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told of an interruption, and ends the children
    _shared = population, experiment
    torch.set_num_threads(threads)


def _in_child(job: Job) -> None:
    assert _shared is not None
    for _ in _one_redraw(job, *_shared):
        if not multiprocessing.parent_process().is_alive():  # type: ignore[union-attr]
            return  # killed: nobody waits for the rest


def _one_redraw(job: Job, population: Population, experiment: Experiment) -> Iterator[None]:
    """Fit what is not done yet, a method at a time, and append each result to the redraw's file."""
    from irm_fast.reproduce.contest import Contest, entrants

    protocol, seed, path = job
    results = read_results(path)
    done = {(result["method"], result["signals"]) for result in results}
    wanted = [key for key in entrants(SIGNALS) if key not in done]
    if not wanted:
        return
    if path.exists():  # without a line that was cut off
        whole = path.with_suffix(".whole")
        whole.write_text("".join(json.dumps(result) + "\n" for result in results), encoding="utf-8")
        os.replace(whole, path)
    contest = Contest(population.redraw(protocol, seed, alpha=experiment.alpha, target=experiment.target), seed)
    for key in wanted:
        result = {"protocol": protocol, "redraw": seed} | contest.measured(key)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        yield


def _run(
    jobs: Sequence[tuple[str, int]], population: Population, experiment: Experiment, output: Path, processes: int
) -> None:
    from tqdm import tqdm

    from irm_fast.reproduce.contest import entrants

    work = [(*job, _file(output, *job)) for job in jobs]

    def count() -> int:
        return sum(len(read_results(path)) for *_, path in work)

    processes = min(processes, len(jobs))
    with tqdm(total=len(jobs) * len(entrants(SIGNALS)), initial=count(), unit="fit", file=sys.stderr) as bar:

        def show() -> None:
            bar.update(count() - bar.n)

        if processes == 1:
            for job in work:
                for _ in _one_redraw(job, population, experiment):
                    show()
        else:
            _in_processes(work, population, experiment, processes, show)


def _in_processes(
    work: Sequence[Job], population: Population, experiment: Experiment, processes: int, show: Callable[[], None]
) -> None:
    """A process a redraw at a time. One that dies, of too little memory say, ends the run with an error."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    context, shared = multiprocessing.get_context("spawn"), (population, experiment, threads)
    with (
        patch.dict(os.environ, OMP_NUM_THREADS=str(threads)),  # children inherit it
        ProcessPoolExecutor(processes, context, _share, shared) as pool,
    ):
        try:
            waiting = {pool.submit(_in_child, job) for job in work}
            while waiting:
                finished, waiting = wait(waiting, 1.0, FIRST_COMPLETED)
                show()
                for job in finished:
                    job.result()
        except BrokenProcessPool:
            lost = "a process ended abruptly, of too little memory perhaps; --resume with fewer --processes goes on"
            raise RuntimeError(lost) from None
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
