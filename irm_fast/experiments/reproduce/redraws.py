"""All redraws of all protocols, in processes; every result is kept as it comes (see the module `folder`)."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from irm_fast import __version__
from irm_fast.data.outputs import whole_file
from irm_fast.data.simulation import check_arguments
from irm_fast.experiments.reproduce.experiment import MADE, Experiment, population_of, read
from irm_fast.experiments.reproduce.folder import (
    check_folder,
    check_settings,
    prepare,
    read_results,
    results_file,
    whole_redraws,
)
from irm_fast.experiments.reproduce.population import (
    PROTOCOLS,
    SIGNALS,
    TEST_FRACTION,
    Population,
)

Job = tuple[str, int, Path]  # protocol, redraw, and the file of its results


def run_redraws(
    experiment: Experiment,
    output: Path,
    *,
    protocols: Sequence[str] = PROTOCOLS,
    redraws: int = 5,
    processes: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Fit every method to every redraw, and keep what comes out in a folder.

    Args:
        experiment: The data and the settings of the logs drawn from them.
        output: The folder.
        protocols: The protocols of propensities, of "rating" and "feature".
        redraws: How many logs to draw for each protocol, 2 or more.
        processes: How many redraws to fit at once; None for one a core.
        resume: Go on with an interrupted run, or with more redraws.
        overwrite: Replace an earlier run.

    Returns:
        The results as `Contest.measured` gives them, with "protocol" and "redraw", of all redraws in the folder.

    Raises:
        ValueError: An argument is out of range, the data cannot be used, or the folder holds something else.
    """
    # Checks
    for protocol in protocols:
        check_arguments(protocol, SIGNALS, experiment.alpha, experiment.target, 0, TEST_FRACTION)
    if redraws < 2:
        raise ValueError(f"redraws: got {redraws}; expected 2 or more, to tell a difference from chance")
    check_folder(output, resume=resume, overwrite=overwrite)
    rated = read(experiment)  # what cannot be read leaves no folder behind

    # Data
    prepare(output, experiment, resume=resume)
    responses = population_of(experiment, rated, output)
    check_settings(output, experiment, responses, resume=resume)

    # Fits
    jobs = [(protocol, seed) for seed in range(redraws) for protocol in protocols]
    _run(jobs, responses, experiment, output, processes or os.cpu_count() or 1)
    return whole_redraws(output)


def write_report(results: Sequence[Mapping[str, Any]], experiment: Experiment, output: Path) -> str:
    """Write table.md, results.csv and comparison.png to the folder of a run.

    Args:
        results: The results of `run_redraws`.
        experiment: The experiment.
        output: The folder.

    Returns:
        The table, and a line that says what was written.
    """
    from irm_fast.experiments.reproduce.picture import draw
    from irm_fast.experiments.reproduce.table import markdown, write_csv

    rows = json.loads((output / "settings.json").read_text(encoding="utf-8"))["rows"]
    how = (
        f"noise {experiment.noise:g}" if experiment.data == MADE else f"embedded by {Path(str(experiment.model)).name}"
    )
    about = f"{rows:,} responses, {how}, a fifth of them the test set; mean propensity {experiment.target:g}"
    table = markdown(results, experiment.name, f"{about}, alpha {experiment.alpha:g}; irm_fast {__version__}.")
    (output / "table.md").write_text(table, encoding="utf-8")
    write_csv(results, output / "results.csv")
    picture = draw(results, output / "comparison.png")
    missing = "" if picture else "; no picture: it needs matplotlib, pip install 'irm-fast[plot]'"
    return f"{table}\nwrote {output}/: table.md, results.csv{', comparison.png' if picture else missing}"


_shared: tuple[Population, Experiment] | None = None  # in a child process


def _share(population: Population, experiment: Experiment, threads: int) -> None:
    """Keep in a child process what all its jobs share."""
    global _shared
    import torch

    _shared = population, experiment
    torch.set_num_threads(threads)


def _in_child(job: Job) -> None:
    assert _shared is not None
    for _ in _one_redraw(job, *_shared):
        if not multiprocessing.parent_process().is_alive():  # type: ignore[union-attr]
            return  # killed: nobody waits for the rest


def _one_redraw(job: Job, population: Population, experiment: Experiment) -> Iterator[None]:
    """Fit what is not done yet, a method at a time, and append each result to the redraw's file."""
    from irm_fast.experiments.reproduce.contest import Contest, entrants

    protocol, seed, path = job
    results = read_results(path)
    done = {(result["method"], result["signals"]) for result in results}
    wanted = [key for key in entrants(SIGNALS) if key not in done]
    if not wanted:
        return
    if path.exists():  # without a line that was cut off
        with whole_file(path) as file:
            file.writelines(json.dumps(result) + "\n" for result in results)
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

    from irm_fast.experiments.reproduce.contest import entrants

    work = [(*job, results_file(output, *job)) for job in jobs]

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
            with _interruptions_ignored():  # children inherit it: the parent is told of one, and ends them
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


@contextmanager
def _interruptions_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
