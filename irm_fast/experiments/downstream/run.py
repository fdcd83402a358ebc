"""The run: policies to start from, reward models, best of n and optimised policies, each kept as it is done."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from irm_fast.common.extras import missing, need
from irm_fast.data.telling import tell
from irm_fast.data.writing.lock import only_run
from irm_fast.data.writing.outputs import OutputFolder
from irm_fast.data.writing.whole import write_whole
from irm_fast.experiments.downstream.report import PICTURES, draw, markdown
from irm_fast.experiments.downstream.rewards import REWARDS, TRAINED
from irm_fast.experiments.downstream.settings import Settings, make_world
from irm_fast.experiments.processes import side_by_side
from irm_fast.experiments.run_folder import SETTINGS, begin, marked_by

TABLE = "downstream.md"


FOLDER = OutputFolder(
    "run",
    files=(SETTINGS, TABLE, *(picture.file for picture in PICTURES)),
    folders=("seed-*",),
    is_marked=marked_by("optimisation"),
    mark=SETTINGS,
)


class Job(NamedTuple):
    """A piece of the run, which leaves one file or folder.

    Attributes:
        kind: "start", "reward", "best of n" or "policy".
        seed: The seed of its world.
        name: The reward; "" where there is none.
        place: What it leaves.
    """

    kind: str
    seed: int
    name: str
    place: Path


def run_downstream(
    output: Path,
    settings: Settings,
    *,
    seeds: int = 3,
    processes: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Make worlds, train a reward model by each method, and optimise a policy against each.

    Args:
        output: The folder.
        settings: The sizes.
        seeds: The number of worlds, 2 or more.
        processes: How many pieces to do at once; None for one a core.
        resume: Go on with an interrupted run, or with more worlds.
        overwrite: Replace an earlier run.

    Returns:
        The points of all curves of all whole worlds in the folder: "seed", "curve" ("best of n" or "policy"), "reward",
        and what `best_of_n` and `optimise` measured.

    Raises:
        MissingPackageError: TRL is not installed.
        ValueError: An argument is out of range, or the folder holds something else.
    """
    need("trl", "irm-fast downstream")
    if seeds < 2:
        raise ValueError(f"seeds: got {seeds}; expected 2 or more, to tell a difference from chance")
    with only_run(output, "irm-fast downstream", folder=True):
        begin(FOLDER, output, asdict(settings), resume=resume, overwrite=overwrite)
        for stage in stages(output, range(seeds)):
            left = [job for job in stage if not job.place.exists()]
            for job, seconds in side_by_side(_do, left, shared=(settings,), processes=processes):
                tell(f"seed {job.seed}: {job.kind} {job.name}".rstrip() + f", {seconds:.0f} s")
        return results_of(output)


def write_report(points: Sequence[dict[str, Any]], output: Path) -> str:
    """Write the table and the pictures to the folder of a run.

    Args:
        points: The points of all curves, as `run_downstream` returns them.
        output: The folder.

    Returns:
        The table, and a line that says what was written.
    """
    text = markdown(points)
    write_whole(output / TABLE, text)
    drawn = [path.name for path in draw(points, output)]
    pictures = ", ".join(["", *drawn]) if drawn else f"; no picture: it {missing('matplotlib')}"
    return f"{text}\nwrote {output}/: {TABLE}{pictures}"


def stages(output: Path, seeds: Iterable[int]) -> Iterator[list[Job]]:
    """The pieces of some worlds; those of one stage need what the stages before it have left."""
    every = [(seed, output / f"seed-{seed}") for seed in seeds]
    yield [Job("start", seed, "", folder / "policy") for seed, folder in every]
    yield [Job("reward", seed, name, folder / "rewards" / name) for name in TRAINED for seed, folder in every]
    yield [
        *(
            Job("policy", seed, name, folder / "policies" / f"{name}.json")
            for seed, folder in every
            for name in REWARDS
        ),
        *(Job("best of n", seed, "", folder / "best_of_n.json") for seed, folder in every),
    ]


def results_of(output: Path) -> list[dict[str, Any]]:
    """The points in a folder, as of `run_downstream`: of every world of which nothing is left to do."""
    found: list[dict[str, Any]] = []
    names = (path.name.removeprefix("seed-") for path in output.glob("seed-*"))
    for seed in sorted(int(name) for name in names if name.isdecimal()):
        *_, measured = stages(output, [seed])
        for job in measured if all(job.place.exists() for job in measured) else ():
            points = json.loads(job.place.read_text(encoding="utf-8"))
            found += [{"seed": seed, "curve": job.kind, "reward": job.name, **point} for point in points]
    return found


def _do(job: Job, settings: Settings) -> float:
    """Do a piece, in a process of its own, and return the seconds that it took; what it leaves is whole or absent."""
    from datasets import disable_progress_bars

    from irm_fast.models.foreign_files import quiet_transformers

    start = time.perf_counter()
    unfinished = job.place.with_name(f".unfinished {job.place.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    job.place.parent.mkdir(parents=True, exist_ok=True)
    disable_progress_bars()
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of names that TRL and transformers give up
        _PIECES[job.kind](job._replace(place=unfinished), settings)
    unfinished.rename(job.place)
    return time.perf_counter() - start


def _start(job: Job, settings: Settings) -> None:
    """The model that reward models start from, and the policy."""
    from irm_fast.experiments.downstream.policy import train_policy
    from irm_fast.experiments.tiny_decoder import make_tiny_decoder

    world, folder = make_world(settings, job.seed), job.place.parent
    make_tiny_decoder((turn["content"] for turns in world.answers for turn in turns), folder / "decoder", seed=job.seed)
    train_policy(world.answers, job.place, width=settings.width, epochs=settings.policy_epochs, seed=job.seed)


def _reward(job: Job, settings: Settings) -> None:
    from irm_fast.experiments.downstream.rewards import train_reward

    simulation, decoder = make_world(settings, job.seed).simulation, job.place.parent.parent / "decoder"
    train_reward(job.name, simulation, decoder, job.place, epochs=settings.reward_epochs, seed=job.seed)


def _policy(job: Job, settings: Settings) -> None:
    from irm_fast.experiments.downstream.grpo import optimise
    from irm_fast.experiments.downstream.rewards import Reward

    world, folder = make_world(settings, job.seed), job.place.parent.parent
    reward = Reward(job.name, folder / "rewards", world.answers)
    points = optimise(folder / "policy", reward, world, settings.optimisation, job.seed)
    write_whole(job.place, json.dumps(points, indent=1) + "\n")


def _best_of_n(job: Job, settings: Settings) -> None:
    from irm_fast.experiments.downstream.picked import best_of_n

    folder = job.place.parent
    picks = best_of_n(folder / "policy", folder / "rewards", make_world(settings, job.seed), settings, job.seed)
    write_whole(job.place, json.dumps(picks, indent=1) + "\n")


_PIECES: dict[str, Callable[[Job, Settings], None]] = {
    "start": _start,
    "reward": _reward,
    "policy": _policy,
    "best of n": _best_of_n,
}
