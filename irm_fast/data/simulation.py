"""Simulation: a log of implicit feedback whose truth is known, drawn from rated responses.

Each signal k follows `f = r* a`: r* is 1 if the response is preferred, a is 1 if the user is active, which is drawn
with the propensity p_k. Two protocols set the propensity:

rating: the published protocol of the paper (ImplicitRM, arXiv:2603.23184) and its relatives. With ratings y,
    `L = 1 + 4 (y - min) / (max - min)` and `p = min(1, c alpha^(5 - L))`, where c makes the mean of p the
    target. It depends on the hidden rating, not on what can be seen.
feature: `p_k = sigmoid(b_k + sum_j w_kj z_j)`, where z are visible features of the response text,
    standardised and cut at 3 standard deviations, w is `WEIGHTS`, and b_k makes the mean of p_k the target.
    It knows the text only, never the rating. The log holds these very z as `features`, and p is logistic in
    them: a model trained with the propensity design "features" is well specified on such a log. On real logs
    that is more than can be hoped for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from irm_fast.data.features import FEATURES, text_features
from irm_fast.data.groups import group_numbers, hold_out, number_prompts
from irm_fast.data.log import Log
from irm_fast.data.messages import Messages
from irm_fast.data.rated import Rated, check_both
from irm_fast.data.writing.outputs import check_file, check_suffix
from irm_fast.data.writing.whole import whole_file

SIGNALS = ("click", "copy", "share", "save")
# What moves users to act differs much between responses (by about 1.5 on the logit) and between signals: long answers
# are clicked open, code and numbers copied, short and lively ones shared, long ones with lists saved.
WEIGHTS = np.array(
    [
        [1.2, 0.0, 0.6, -0.8, 0.5],
        [0.6, 0.9, 1.2, -0.5, -0.3],
        [-0.8, 0.0, 0.5, 0.5, 1.1],
        [1.1, 0.6, 0.8, 0.0, -0.6],
    ]
)


@dataclass(frozen=True)
class Simulation:
    """A log and its truth: N rows in the same order, with K signals.

    Attributes:
        log: The log, which does not hold the truth.
        truth: The rated responses behind the log.
        propensity: The true propensities (float64) of shape (N, K).
        test: Rated responses that are not in the log, to test with, or None.
    """

    log: Log
    truth: Rated
    propensity: np.ndarray
    test: Rated | None


def simulate(
    rated: Rated,
    *,
    protocol: Literal["rating", "feature"],
    signals: int,
    alpha: float = 0.5,
    target: float = 0.2,
    seed: int = 0,
    test_fraction: float = 0.0,
) -> Simulation:
    """Draw a log from rated responses; the same seed gives the same log.

    Args:
        rated: The rated responses.
        protocol: "rating" (propensities that fall with the rating) or "feature" (propensities that depend on what can
            be seen of the text), see the head of this module. "feature" also gives the log these features.
        signals: The number of signals, 1 to 4 of click, copy, share and save, drawn independently.
        alpha: How steeply activity falls with the rating, in (0, 1]; of "rating" only.
        target: The mean propensity, in (0, 1).
        seed: The seed of all draws.
        test_fraction: The share of rows to hold out as a clean test; one prompt or pair stays on one side.

    Raises:
        ValueError: An argument is out of range, the ratings are all equal, the rows are all preferred or none is, or no
            action was drawn.

    Examples:
        >>> rated = read_rated("rated.jsonl")  # doctest: +SKIP
        >>> sim = simulate(rated, protocol="feature", signals=2)  # doctest: +SKIP
        >>> sim.log.feedback.mean(axis=0)  # doctest: +SKIP
        array([0.1, 0.1])
    """
    check_arguments(protocol, signals, alpha, target, seed, test_fraction)
    test = None
    if test_fraction:
        held = hold_out(response_groups(rated), test_fraction, seed)
        rated, test = rated.subset(~held), rated.subset(held)
    check_ratings(rated)
    features = None if protocol == "rating" else standard_features(rated.messages)
    propensity = propensities(rated.rating, features, signals, alpha, target)
    feedback = draw_feedback(rated.preference, propensity, seed)
    if not feedback.any():
        raise ValueError(f"no action was drawn in {len(rated)} rows; expected more rows or a higher target")
    log = Log(
        ids=rated.ids,
        messages=rated.messages,
        signals=SIGNALS[:signals],
        polarity=(1,) * signals,
        feedback=feedback,
        preference=np.full(len(rated), -1, np.int8),
        weight=None,
        propensity=None,
        features=features,
        feature_names=() if features is None else FEATURES,
        user_ids=None,
    )
    return Simulation(log, rated, propensity, test)


def response_groups(rated: Rated) -> np.ndarray:
    """Number the groups (N,) of responses that must not be parted: those to one prompt, or of one pair."""
    return group_numbers(number_prompts(rated.messages).prompts, rated.pair)  # -1 is no pair, as `NO_NAME` is no name


def propensities(
    rating: np.ndarray, features: np.ndarray | None, signals: int, alpha: float, target: float
) -> np.ndarray:
    """Return true propensities (N, K): of protocol "feature" where there are features (N, F), else of "rating"."""
    if features is not None:
        return feature_propensity(features, signals, target)
    return np.tile(rating_propensity(rating, alpha, target)[:, None], (1, signals))


def stream(seed: int, name: str) -> np.random.Generator:
    """The random numbers of a seed for one use, independent of those for any other, and of `draw_feedback`.

    Args:
        seed: The seed.
        name: What they are for.
    """
    return np.random.default_rng([seed, *name.encode()])


def draw_feedback(preference: np.ndarray, propensity: np.ndarray, seed: int) -> np.ndarray:
    """Draw feedback (int8, N, K) of 1 acted and 0 silent from preferences (N,) and propensities (N, K): f = r* a.

    Whoever draws preferences from the same seed takes a `stream`: shared random numbers would tie the two.
    """
    # A stream of its own for each signal: asking for one more leaves the others as they were.
    streams = [np.random.default_rng([seed, k]) for k in range(1, propensity.shape[1] + 1)]
    active = np.column_stack([stream.random(len(preference)) for stream in streams]) <= propensity
    feedback: np.ndarray = active & (preference == 1)[:, None]
    return feedback.astype(np.int8)


def rating_propensity(rating: np.ndarray, alpha: float, target: float) -> np.ndarray:
    """Return the propensities (N,) of protocol "rating", from ratings (N,) that are not all equal."""
    level = 1 + 4 * (rating - rating.min()) / (rating.max() - rating.min())
    decay = alpha ** (5 - level)

    def propensity(log_c: float) -> np.ndarray:
        values: np.ndarray = np.minimum(1, np.exp(log_c) * decay)
        return values

    log_c = _solve(lambda c: float(propensity(c).mean()), np.log(target), -np.log(decay.min()), target)
    return propensity(log_c)


def feature_propensity(features: np.ndarray, signals: int, target: float) -> np.ndarray:
    """Return the propensities (N, K) of protocol "feature", from standardised features (N, F)."""
    slopes = WEIGHTS[:signals] @ features.T.astype(np.float64)
    return np.column_stack([_sigmoid(slope + level_of(slope, target)) for slope in slopes])


def level_of(slope: np.ndarray, target: float) -> float:
    """Return what has to be added to logits (N,) for the mean of their sigmoid to be the target."""
    return _solve(lambda level: float(_sigmoid(slope + level).mean()), -50.0, 50.0, target)


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    probability: np.ndarray = np.exp(-np.logaddexp(0, -logit))
    return probability


def standard_features(messages: list[Messages]) -> np.ndarray:
    """Return visible features (float32, N, F) of responses: mean 0, deviation 1, then cut at 3; 0 if constant."""
    raw = text_features(messages)
    deviation = raw.std(axis=0)
    # A column that is constant but for rounding has no scale of its own.
    scale = np.where(deviation > 1e-9 * np.abs(raw).max(axis=0), deviation, np.inf)
    standard: np.ndarray = np.clip((raw - raw.mean(axis=0)) / scale, -3, 3)
    return standard.astype(np.float32)


def _solve(increasing: Callable[[float], float], low: float, high: float, target: float) -> float:
    """Return the argument at which an increasing function reaches the target, by bisection to the last bit."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if increasing(middle) < target else (low, middle)
    return high


def check_arguments(protocol: str, signals: int, alpha: float, target: float, seed: int, test_fraction: float) -> None:
    """Raise ValueError for an argument of `simulate` that is out of range."""
    for name, value, right, expected in (
        ("protocol", protocol, protocol in ("rating", "feature"), "'rating' or 'feature'"),
        ("signals", signals, signals in range(1, len(SIGNALS) + 1), f"1 to {len(SIGNALS)}"),
        ("alpha", alpha, 1e-6 <= alpha <= 1, "a number from 1e-6 to 1"),
        ("target", target, 1e-6 <= target < 1, "a number from 1e-6 to below 1"),
        ("seed", seed, seed >= 0, "a whole number from 0"),
        ("test_fraction", test_fraction, 0 <= test_fraction < 1, "a number from 0 to below 1"),
    ):
        if not right:
            raise ValueError(f"{name}: got {value!r}; expected {expected}")


def check_ratings(rated: Rated) -> None:
    """Raise ValueError for ratings that nothing can be drawn from."""
    if not len(rated):
        raise ValueError("no rated rows; expected at least two")
    if rated.rating.min() == rated.rating.max():
        raise ValueError(f"rating: all {len(rated)} are {rated.rating[0]:g}; expected ratings that differ")
    check_both(rated)


def output_paths(out: Path | str, *, overwrite: bool) -> tuple[Path, Path, Path]:
    """Return the paths of a simulation: log (NAME.jsonl), truth (NAME.truth.jsonl) and test (NAME.test.jsonl).

    Args:
        out: The path of the log.
        overwrite: Whether files of these names may be replaced.

    Raises:
        ValueError: The name does not end in .jsonl, or one of the paths is a folder.
        OutputExistsError: One of the files exists and may not be replaced.
    """
    log_path = Path(out)
    check_suffix(log_path, ".jsonl")
    paths = log_path, log_path.with_suffix(".truth.jsonl"), log_path.with_suffix(".test.jsonl")
    for path in paths:
        check_file(path, overwrite=overwrite)
    return paths


def write_simulation(sim: Simulation, out: Path | str, *, overwrite: bool = False) -> tuple[Path, Path]:
    """Write the log, the truth beside it (NAME.truth.jsonl), and the test, if there is one (NAME.test.jsonl).

    Args:
        sim: The simulation.
        out: The path of the log, NAME.jsonl.
        overwrite: Delete what an earlier run wrote, its test file too.

    Returns:
        The paths of log and truth. The truth holds the true propensities; the log does not.

    Raises:
        ValueError: The name of the log does not end in .jsonl.
        FileExistsError: One of the files exists, and `overwrite` is False.
    """
    log_path, truth_path, test_path = output_paths(out, overwrite=overwrite)
    log_path.parent.mkdir(parents=True, exist_ok=True)
    for path in (log_path, truth_path, test_path):
        path.unlink(missing_ok=True)
    _write(log_path, (_log_row(sim.log, i) for i in range(len(sim.log))))
    names = sim.log.signals
    truth = (
        _rated_row(sim.truth, i) | {"propensity": dict(zip(names, sim.propensity[i].tolist(), strict=True))}
        for i in range(len(sim.truth))
    )
    _write(truth_path, truth)
    if (test := sim.test) is not None:
        _write(test_path, (_rated_row(test, i) for i in range(len(test))))
    return log_path, truth_path


def _write(path: Path, rows: Iterable[dict[str, object]]) -> None:
    """Write rows as JSONL."""
    with whole_file(path, newline="\n") as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")


def _texts(messages: Messages) -> dict[str, object]:
    """Return prompt and completion, the prompt as a text where it is one turn of the user."""
    *prompt, completion = messages
    single = len(prompt) == 1 and prompt[0]["role"] == "user" and prompt[0]["content"].strip()
    return {"prompt": prompt[0]["content"] if single else prompt, "completion": completion["content"]}


def _log_row(log: Log, i: int) -> dict[str, object]:
    """Return row i of a log as it is written."""
    feedback = dict(zip(log.signals, log.feedback[i].tolist(), strict=True))
    row = {"id": log.ids[i]} | _texts(log.messages[i]) | {"feedback": feedback}
    if log.features is not None:
        row["features"] = dict(zip(log.feature_names, log.features[i].tolist(), strict=True))
    return row


def _rated_row(rated: Rated, i: int) -> dict[str, object]:
    """Return rated response i as it is written."""
    row = {"id": rated.ids[i]} | _texts(rated.messages[i])
    row |= {"rating": float(rated.rating[i]), "preference": int(rated.preference[i])}
    return row | {"pair": int(rated.pair[i])} if rated.pair[i] >= 0 else row
