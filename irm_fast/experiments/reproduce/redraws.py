"""All redraws of all protocols, in processes; every result is kept as it comes (see the module `folder`)."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from irm_fast import __version__
from irm_fast.common.extras import missing
from irm_fast.data.simulation import check_arguments
from irm_fast.data.telling import quiet, tell
from irm_fast.data.writing.lock import only_run
from irm_fast.data.writing.whole import disk_errors, whole_file, write_whole
from irm_fast.experiments.processes import side_by_side
from irm_fast.experiments.reproduce.experiment import (
    MADE,
    Experiment,
    check_experiment,
    in_effect,
    population_of,
    read,
)
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
from irm_fast.experiments.run_folder import SETTINGS
from irm_fast.models.threads import cores

_EVERY = 60.0  # seconds between two lines where there is no terminal
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
        ValueError: An argument is out of range or has no effect, the data cannot be used, or the folder holds something
            else.
    """
    with only_run(output, "irm-fast reproduce", folder=True):
        return _run_redraws(experiment, output, protocols, redraws, processes, resume=resume, overwrite=overwrite)


def _run_redraws(
    experiment: Experiment,
    output: Path,
    protocols: Sequence[str],
    redraws: int,
    processes: int | None,
    *,
    resume: bool,
    overwrite: bool,
) -> list[dict[str, Any]]:
    """`run_redraws` in a folder that no other run writes to."""
    # Checks
    for protocol in protocols:
        check_arguments(protocol, SIGNALS, experiment.alpha, experiment.target, 0, TEST_FRACTION)
    if redraws < 2:
        raise ValueError(f"redraws: got {redraws}; expected 2 or more, to tell a difference from chance")
    check_experiment(experiment, protocols)
    check_folder(output, resume=resume, overwrite=overwrite)
    rated = read(experiment)  # what cannot be read leaves no folder behind

    # Data
    settings = in_effect(experiment, protocols)
    prepare(output, settings, resume=resume)
    responses = population_of(experiment, rated, output)
    check_settings(output, settings, responses)

    # Fits
    jobs = [(protocol, seed) for seed in range(redraws) for protocol in protocols]
    _run(jobs, responses, experiment, output, processes or cores())
    return whole_redraws(output)


def write_report(results: Sequence[Mapping[str, Any]], experiment: Experiment, output: Path) -> str:
    """Write table.md, best_of_n.md, results.csv and two pictures to the folder of a run.

    Args:
        results: The results of `run_redraws`.
        experiment: The experiment.
        output: The folder.

    Returns:
        The tables, and a line that says what was written.
    """
    from irm_fast.experiments.reproduce import best_of_n
    from irm_fast.experiments.reproduce.picture import draw
    from irm_fast.experiments.reproduce.table import markdown, write_csv

    kept = json.loads((output / SETTINGS).read_text(encoding="utf-8"))
    how = (
        f"noise {experiment.noise:g}" if experiment.data == MADE else f"embedded by {Path(str(experiment.model)).name}"
    )
    about = f"{kept['rows']:,} responses, {how}, a fifth of them the test set; mean propensity {experiment.target:g}"
    alpha = kept["experiment"].get("alpha")  # of the protocol rating, if it was run
    about += f"; irm_fast {__version__}." if alpha is None else f", alpha {alpha:g}; irm_fast {__version__}."
    table, picks = (write(results, experiment.name, about) for write in (markdown, best_of_n.markdown))
    write_whole(output / "table.md", table)
    write_whole(output / "best_of_n.md", picks)
    write_csv(results, output / "results.csv")
    picture = draw(results, output / "comparison.png")
    best_of_n.draw(results, output / "best_of_n.png")
    pictures = ", comparison.png, best_of_n.png" if picture else f"; no picture: it {missing('matplotlib')}"
    return f"{table}\n{picks}\nwrote {output}/: table.md, best_of_n.md, results.csv{pictures}"


def _in_child(job: Job, population: Population, experiment: Experiment) -> None:
    for _ in _one_redraw(job, population, experiment):
        pass


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
        with disk_errors(path), path.open("a", encoding="utf-8") as file:
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
    total, said = len(jobs) * len(entrants(SIGNALS)), time.monotonic()
    with tqdm(total=total, initial=count(), unit="fit", file=sys.stderr, disable=quiet() or None) as bar:

        def show() -> None:
            nonlocal said
            done = count()
            bar.update(done - bar.n)
            if bar.disable and time.monotonic() - said > _EVERY:
                said = time.monotonic()
                tell(f"{done} of {total} fits are done")

        if processes == 1:
            for job in work:
                for _ in _one_redraw(job, population, experiment):
                    show()
            return
        shared = (population, experiment)
        try:
            for _ in side_by_side(_in_child, work, shared=shared, processes=processes, tick=show):
                pass
        except RuntimeError as error:
            raise RuntimeError(f"{error}; --resume goes on with what is done") from error
