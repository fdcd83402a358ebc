"""What a comparison is run on: rated responses or made embeddings, and the settings of the logs drawn from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from irm_fast.data.problems import closest
from irm_fast.data.rated import Rated, read_rated
from irm_fast.data.simulation import check_ratings
from irm_fast.experiments.reproduce.population import Population, embedded, of_rated, semi_synthetic

MADE = "semi-synthetic"
HUB = ("hs", "ufb", "saferlhf")
FEWEST = 100  # responses


@dataclass(frozen=True)
class Experiment:
    """The settings of a comparison that decide its numbers, beside the number of redraws.

    Attributes:
        data: "semi-synthetic", a file of rated responses or pairs, or "hs", "ufb" or "saferlhf" from the hub.
        model: Folder or hub id of a decoder or an encoder that embeds the texts; None for made data.
        alpha: The decay of the rating protocol.
        target: The mean propensity of each signal.
        limit: The number of responses to use, the first ones; None for all.
        max_length: The number of tokens of a row, at most.
        noise: The noise of made ratings, of a quality whose deviation is 1.
    """

    data: str
    model: str | None = None
    alpha: float = 0.5
    target: float = 0.2
    limit: int | None = None
    max_length: int = 1024
    noise: float = 0.45

    @property
    def name(self) -> str:
        """The data as tables name them."""
        return self.data if self.data in (MADE, *HUB) else Path(self.data).name


def check_experiment(experiment: Experiment, protocols: Sequence[str]) -> None:
    """See that the data are known and that each setting has an effect.

    Args:
        experiment: The experiment.
        protocols: The protocols that are run.

    Raises:
        ValueError: The data are no file and no known name, texts are given without a model, or a setting that is not
            left at its default has no effect.
    """
    known = (MADE, *HUB)
    if experiment.data not in known and not Path(experiment.data).exists():
        hint = closest(experiment.data, known)
        raise ValueError(f"data: {experiment.data} is no file{hint}; expected one, or {', '.join(known)}")
    idle = _without_effect(experiment, protocols)
    for setting in fields(experiment):
        value = getattr(experiment, setting.name)
        if setting.name in idle and value != setting.default:
            raise ValueError(f"{setting.name}: got {value!r}, which has no effect {idle[setting.name]}; leave it out")
    if experiment.data != MADE and experiment.model is None:
        raise ValueError("model: none given; texts need a decoder or an encoder that embeds them")


def in_effect(experiment: Experiment, protocols: Sequence[str]) -> dict[str, Any]:
    """The settings that have an effect, by name."""
    idle = _without_effect(experiment, protocols)
    return {name: value for name, value in asdict(experiment).items() if name not in idle}


def _without_effect(experiment: Experiment, protocols: Sequence[str]) -> dict[str, str]:
    """The settings that decide nothing, each with where it does not."""
    found = {} if "rating" in protocols else {"alpha": "without the protocol rating"}
    if experiment.data == MADE:
        return found | dict.fromkeys(("model", "max_length"), f"on {MADE} data, which have no texts")
    return found | {"noise": f"on rated responses: it is that of {MADE} ratings"}


def read(experiment: Experiment) -> Rated | None:
    """Read the rated responses of an experiment that `check_experiment` has seen.

    Returns:
        The responses; None for made embeddings, which have no texts.

    Raises:
        ValueError: The responses are too few, or all of one rating.
    """
    if experiment.data == MADE:
        return None
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


def population_of(experiment: Experiment, rated: Rated | None, output: Path) -> Population:
    """The population that logs are drawn from.

    Args:
        experiment: The experiment.
        rated: Its rated responses, as `read` returns them.
        output: The folder of the run, which holds their embeddings or gets them.
    """
    if rated is None:
        rows = {} if experiment.limit is None else {"rows": experiment.limit}
        return semi_synthetic(noise=experiment.noise, **rows)
    path = output / "embeddings.safetensors"
    return of_rated(rated, embedded(rated, str(experiment.model), path, max_length=experiment.max_length))
