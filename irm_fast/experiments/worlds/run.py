"""The run: every method in every world, at every size and redraw; each log is kept as it is done."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from irm_fast.common.extras import missing
from irm_fast.data.telling import tell
from irm_fast.data.writing.lock import only_run
from irm_fast.data.writing.outputs import OutputFolder
from irm_fast.data.writing.whole import write_whole
from irm_fast.experiments.processes import side_by_side
from irm_fast.experiments.reproduce.picks import AT
from irm_fast.experiments.run_folder import SETTINGS, begin, marked_by
from irm_fast.experiments.worlds.knobs import ANSWERS, WORLDS, World

ROWS = (2000, 8000, 32_000)
TEST = 6000  # answers of the clean test set, to whole questions
FEWEST = 300  # rows of a log: below, few logs hold an action of each kind in every fold
FOLDER = OutputFolder(
    "run",
    files=(SETTINGS, "worlds.md", "worlds.csv", "worlds.png"),
    folders=("logs",),
    is_marked=marked_by("worlds"),
    mark=SETTINGS,
)


class Job(NamedTuple):
    """One log.

    Attributes:
        world: The world.
        rows: Its rows.
        redraw: The number of its redraw, which is its seed.
        place: The file of its results.
    """

    world: World
    rows: int
    redraw: int
    place: Path


def run_worlds(
    output: Path,
    *,
    rows: Sequence[int] = ROWS,
    redraws: int = 5,
    test: int = TEST,
    processes: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Draw logs of every world, fit every method to each, and measure it on clean answers.

    Args:
        output: The folder.
        rows: The sizes of the logs.
        redraws: How many logs to draw of each world and size, 2 or more.
        test: Answers of the clean test set, a multiple of 3 from 18 on.
        processes: How many logs at once; None for one a core.
        resume: Go on with an interrupted run, or with more sizes or redraws.
        overwrite: Replace an earlier run.

    Returns:
        For each log of the folder "world", "rows", "redraw", "acts" (how often each signal acts), in "methods" what
        `Entrants.measured` gives for each, and in "said" what `Entrants.said` gives; of redraws that have all worlds.

    Raises:
        ValueError: An argument is out of range, or the folder holds something else.
    """
    if redraws < 2:
        raise ValueError(f"redraws: got {redraws}; expected 2 or more, to tell a difference from chance")
    for count in rows:
        if count < FEWEST:
            raise ValueError(f"rows: got {count}; expected {FEWEST} or more, to hold actions of each kind")
    if test < AT or test % ANSWERS:
        raise ValueError(
            f"test: got {test}; expected a multiple of {ANSWERS}, so that questions stay whole, from {AT} on"
        )
    settings = {"test": test, "worlds": [asdict(world) for world in WORLDS]}
    with only_run(output, "irm-fast worlds", folder=True):
        begin(FOLDER, output, settings, resume=resume, overwrite=overwrite)
        jobs = [
            Job(world, count, redraw, output / "logs" / f"{number:02d}-{count}-{redraw}.json")
            for count in sorted(set(rows))  # those of one size and redraw share their texts
            for redraw in range(redraws)
            for number, world in enumerate(WORLDS)
        ]
        left = [job for job in jobs if not job.place.exists()]
        for done, (job, seconds) in enumerate(side_by_side(_do, left, shared=(test,), processes=processes), 1):
            tell(f"{done} of {len(left)}: {job.world.name}, {job.rows:,} rows, redraw {job.redraw}, {seconds:.0f} s")
        return results_of(output)


def results_of(output: Path) -> list[dict[str, Any]]:
    """The results in a folder, as of `run_worlds`: of redraws that have all worlds, and sizes with two of these."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(output.glob("logs/*.json"))]
    worlds = Counter((result["rows"], result["redraw"]) for result in found)
    whole = [result for result in found if worlds[result["rows"], result["redraw"]] == len(WORLDS)]
    redraws = Counter(result["rows"] for result in whole)
    return [result for result in whole if redraws[result["rows"]] >= 2 * len(WORLDS)]


def write_report(results: Sequence[dict[str, Any]], output: Path) -> str:
    """Write worlds.md, worlds.csv and worlds.png to the folder of a run.

    Args:
        results: The results of `run_worlds`.
        output: The folder.

    Returns:
        The tables, and a line that says what was written.
    """
    from irm_fast.experiments.worlds.picture import draw
    from irm_fast.experiments.worlds.table import markdown, write_csv

    text = markdown(results)
    write_whole(output / "worlds.md", text)
    write_csv(results, output / "worlds.csv")
    picture = draw(results, output / "worlds.png")
    drawn = ", worlds.png" if picture else f"; no picture: it {missing('matplotlib')}"
    return f"{text}\nwrote {output}/: worlds.md, worlds.csv{drawn}"


def _do(job: Job, test: int) -> float:
    """Fit every method to a log, keep what it came to, and return the seconds that it took."""
    from irm_fast.experiments.worlds.drawing import draw_log
    from irm_fast.experiments.worlds.methods import Entrants
    from irm_fast.experiments.worlds.texts import make_texts

    start = time.perf_counter()
    texts = make_texts(test + job.rows, job.redraw)
    drawn = draw_log(job.world, texts, job.rows, job.redraw)
    entrants = Entrants(job.world, drawn, job.redraw)
    result = {
        "world": job.world.name,
        "rows": job.rows,
        "redraw": job.redraw,
        "acts": drawn.redraw.log.feedback.mean(axis=0).tolist(),
        "methods": {name: entrants.measured(name) for name in entrants.methods()},
        "said": entrants.said(),
    }
    job.place.parent.mkdir(parents=True, exist_ok=True)
    write_whole(job.place, json.dumps(result, indent=1) + "\n")
    return time.perf_counter() - start
