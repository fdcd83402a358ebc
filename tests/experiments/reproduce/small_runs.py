"""A small comparison, its results, and a file of rated responses."""

from __future__ import annotations

import json

import numpy as np

from irm_fast.experiments.reproduce import experiment, redraws

EXPERIMENT = experiment.Experiment(experiment.MADE, target=0.5, limit=300)


def go(output, **more):
    """Its results: of two redraws of one protocol, unless more is said."""
    settings = {"protocols": ("feature",), "redraws": 2, "processes": 1} | more
    return redraws.run_redraws(EXPERIMENT, output, **settings)


def without_time(result: dict) -> dict:
    """A result but for its seconds, which differ from run to run."""
    return {name: value for name, value in result.items() if name != "seconds"}


def write_rated(path, n=240):
    """Write responses whose rating goes with their words."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for i in range(n):
            good = int(rng.random() < 0.5)
            text = " ".join(["good" if good else "bad"] * int(rng.integers(1, 9)))
            row = {
                "id": str(i),
                "prompt": f"question {i}",
                "completion": text,
                "rating": good * 2 + int(rng.integers(2)),
            }
            file.write(json.dumps(row) + "\n")
