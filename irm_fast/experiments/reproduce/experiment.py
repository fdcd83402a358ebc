"""Experiment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from irm_fast.data.files import closest
from irm_fast.data.rated import Rated, read_rated
from irm_fast.data.simulation import check_ratings
from irm_fast.experiments.reproduce.population import Population, embedded, of_rated, semi_synthetic

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


def read(experiment: Experiment) -> Rated | None:
    """The rated responses of an experiment; None for made embeddings, which have no texts."""
    if experiment.data == MADE:
        return None
    if experiment.data not in HUB and not Path(experiment.data).exists():
        known = (MADE, *HUB)
        hint = closest(experiment.data, known)
        raise ValueError(f"data: {experiment.data} is no file{hint}; expected one, or {', '.join(known)}")
    if experiment.model is None:
        raise ValueError("model: none given; texts need a decoder or an encoder that embeds them")
    if experiment.data in HUB:
        from irm_fast.data.hub import fetch_rated

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
