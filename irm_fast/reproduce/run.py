"""All redraws of all protocols, in processes; every result is kept as it comes, so that a run can be resumed."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

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


def _prepare(output: Path, experiment: Experiment, *, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise ValueError("resume and overwrite: both are set; choose one")
    if output.exists() and any(output.iterdir()):
        if not (output / "settings.json").is_file():
            raise ValueError(f"output: {output} is not empty and holds no earlier run; choose another folder")
        worth_keeping = [*output.glob("redraws/*.jsonl"), *output.glob("embeddings*")]
        if worth_keeping and not (resume or overwrite):
            raise ValueError(f"output: {output} holds an earlier run; --resume goes on, --overwrite replaces it")
        if not resume:
            shutil.rmtree(output)
    (output / "redraws").mkdir(parents=True, exist_ok=True)
    settings = output / "settings.json"
    if not settings.exists():  # marks the folder as ours before the embeddings, which take long
        settings.write_text(json.dumps({"experiment": asdict(experiment)}, indent=2) + "\n", encoding="utf-8")


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
    now = {"experiment": settings, "rows": len(population.X), "content": content.hexdigest()}
    path.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")


_shared: tuple[Population, Experiment] | None = None


def _share(population: Population, experiment: Experiment, threads: int) -> None:
    """In each process, once."""
    global _shared
    import torch

    _shared = population, experiment
    torch.set_num_threads(threads)


def _share_with_child(*shared: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told of an interruption, and ends the children
    _share(*shared)


def _one_redraw(job: tuple[str, int, Path]) -> None:
    """Fit what is not done yet, and append each result to the redraw's file."""
    from irm_fast.reproduce.contest import Contest, entrants

    assert _shared is not None
    (protocol, seed, path), (population, experiment) = job, _shared
    results = read_results(path)
    done = {(result["method"], result["signals"]) for result in results}
    wanted = [key for key in entrants(SIGNALS) if key not in done]
    if not wanted:
        return
    redraw = population.redraw(protocol, seed, alpha=experiment.alpha, target=experiment.target)
    contest = Contest(redraw, seed)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(result) + "\n" for result in results)  # without a line that was cut off
        for key in wanted:
            if (parent := multiprocessing.parent_process()) is not None and not parent.is_alive():
                return  # killed: nobody waits for the rest
            file.write(json.dumps({"protocol": protocol, "redraw": seed} | contest.measured(key)) + "\n")
            file.flush()


def _run(
    jobs: Sequence[tuple[str, int]], population: Population, experiment: Experiment, output: Path, processes: int
) -> None:
    from tqdm import tqdm

    from irm_fast.reproduce.contest import entrants

    files = [_file(output, *job) for job in jobs]
    work = [(*job, path) for job, path in zip(jobs, files, strict=True)]

    def count() -> int:
        return sum(len(read_results(path)) for path in files)

    processes = min(processes, len(jobs))
    threads = max(1, (os.cpu_count() or 1) // processes)
    with tqdm(total=len(jobs) * len(entrants(SIGNALS)), initial=count(), unit="fit") as bar:

        def show() -> None:
            bar.update(count() - bar.n)

        if processes == 1:
            _in_this_process(work, (population, experiment, threads), show)
        else:
            _in_processes(work, (population, experiment, threads), processes, show)


def _in_this_process(work: Sequence[tuple], shared: tuple, show: Callable[[], None]) -> None:
    import torch

    before = torch.get_num_threads()
    _share(*shared)
    try:
        for job in work:
            _one_redraw(job)
            show()
    finally:
        torch.set_num_threads(before)


def _in_processes(work: Sequence[tuple], shared: tuple, processes: int, show: Callable[[], None]) -> None:
    context = multiprocessing.get_context("spawn")
    with _environment(OMP_NUM_THREADS=str(shared[2])), context.Pool(processes, _share_with_child, shared) as pool:
        for result in [pool.apply_async(_one_redraw, (job,)) for job in work]:
            while not result.ready():
                result.wait(1.0)
                show()
            result.get()
        show()


class _environment:
    """Variables that new processes inherit."""

    def __init__(self, **variables: str) -> None:
        self._variables, self._before = variables, dict(os.environ)

    def __enter__(self) -> None:
        os.environ.update(self._variables)

    def __exit__(self, *_: Any) -> None:
        os.environ.clear()
        os.environ.update(self._before)
