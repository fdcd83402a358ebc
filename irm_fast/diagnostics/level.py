"""The level of a fit: what moves it along, refitted to the log under a misclick rate; its error, and the rate it shows.

Let s be the predicted reward logits, and t_k the propensity logits of signal k. The likelihood of the log (MATH: the
marginal form, several signals) is maximised over a slope and a shift of s, and over a shift of every t_k and a slope of
it along s, so that the reward keeps its ranking. There are few parameters, and none bends to a single row. What is held
up to another misclick rate is what a fit under that rate might have been.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import expit, log_expit
from scipy.stats import norm

from irm_fast.data.signals import contradictory
from irm_fast.diagnostics.calibration import logit
from irm_fast.diagnostics.sensitivity import sample
from irm_fast.diagnostics.subject import (
    FAILED,
    LEVEL,
    NEEDS_PREDICTIONS,
    NOT_TESTABLE,
    PASSED,
    TOO_FEW,
    Check,
    DiagnosedLog,
    by_user,
)

ROWS = 20_000  # evenly spaced; more tell the level well enough
COACTIONS = 100  # with fewer, a reward of a wrong form looked like misclicks
RATES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4)  # of misclicks, alike for all signals
SLACK = 0.015  # between a rate and the declared ones: less is no matter
SLOPE_SD, SHIFT_SD = 1.0, 2.0  # prior deviations, for logs that tell little
ITERATIONS, HALVINGS, DONE = 30, 6, 0.02  # of the fit; nats from which a step is worth its time
STEP = 1e-4  # of a numerical derivative


class Level(NamedTuple):
    """A level under one misclick rate.

    Attributes:
        losses: The loss of each row (natural logarithms), of shape (n,).
        mean: The mean preference.
        error: Its standard error: of the level alone, at the ranking of the reward as it is.
        parameters: Log slope and shift of s; shifts, and slopes along s, of every t_k; of shape (2 + 2 K,).
    """

    losses: np.ndarray
    mean: float
    error: float
    parameters: np.ndarray


class _Rows:
    """n rows with predictions, as the likelihood reads them."""

    def __init__(self, log: DiagnosedLog) -> None:
        assert log.own is not None and log.propensity is not None
        rows = np.isfinite(log.own).all(axis=1) & np.isfinite(log.propensity).all(axis=1)
        if (log.misclick == 0).any():  # under which no row has evidence for both sides
            rows &= ~contradictory(log.polarity, log.feedback, log.preference)
        rows = np.flatnonzero(rows)
        some = sample(rows, ROWS)
        self.share = len(some) / max(1, len(rows))
        self.feedback, self.users, self.label = log.feedback[some], log.users[some], log.preference[some]
        self.side = log.polarity > 0
        self.reward = logit(log.own[some, 0]) * log.polarity[0]
        self.propensity = logit(log.propensity[some])
        self.along = (self.reward - self.reward.mean()) / max(float(self.reward.std()), 1e-6)
        self.free = np.array([float(design != "known") for design in log.designs])

    def losses(self, parameters: np.ndarray, misclick: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the losses (n,) and their derivatives by the parameters, of shape (n, 2 + 2 K)."""
        count = len(self.free)
        slope, shift = np.exp(parameters[0]), parameters[1]
        level, tilt = parameters[2 : 2 + count] * self.free, parameters[2 + count :] * self.free
        s, t = slope * self.reward + shift, self.propensity + level + tilt * self.along[:, None]
        m, acted, silent = expit(t), self.feedback == 1, self.feedback == 0
        with np.errstate(divide="ignore"):
            mistaken = log_expit(t) + np.log(misclick)
        own = np.where(acted, log_expit(t), np.where(silent, log_expit(-t), 0.0))
        other = np.where(acted, mistaken, np.where(silent, np.log1p(-misclick * m), 0.0))
        liked = np.where(self.side, own, other).sum(axis=1) + log_expit(s)
        disliked = np.where(self.side, other, own).sum(axis=1) + log_expit(-s)
        liked, disliked = np.where(self.label == 0, -np.inf, liked), np.where(self.label == 1, -np.inf, disliked)
        whole = np.logaddexp(liked, disliked)
        q = np.exp(liked - whole)
        w = np.where(self.side, q[:, None], 1 - q[:, None])
        by_silence = w * m + (1 - w) * misclick * m * (1 - m) / (1 - misclick * m)
        by_t = np.where(acted, m - 1, np.where(silent, by_silence, 0.0)) * self.free
        by_s = expit(s) - q
        columns = [by_s[:, None] * np.column_stack([slope * self.reward, np.ones(len(s))]), by_t]
        return -whole, np.hstack([*columns, by_t * self.along[:, None]])

    def mean(self, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the mean preference, and its derivatives by the parameters."""
        slope = np.exp(parameters[0])
        g = expit(slope * self.reward + parameters[1])
        by_s = g * (1 - g)
        gradient = np.zeros(len(parameters))
        gradient[:2] = (by_s * slope * self.reward).mean(), by_s.mean()
        return float(g.mean()), gradient


def refit_level(log: DiagnosedLog, misclick: np.ndarray) -> Level:
    """Refit the level of the predictions to the log.

    The standard error is that of the sandwich, over users (Huber 1967; Liang and Zeger, Biometrika 1986).

    Args:
        log: A log with predictions.
        misclick: A rate in [0, 1) for each signal, of shape (K,).
    """
    rows = _Rows(log)
    return _with_error(rows, _fitted(rows, misclick, np.zeros(2 + 2 * len(rows.free))), misclick)


def _fitted(rows: _Rows, misclick: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return the parameters of the least loss, by the outer products of the scores (Berndt et al. 1974)."""
    precision, parameters = _precision(rows), start
    losses, scores = rows.losses(parameters, misclick)
    value = losses.sum() + precision @ parameters**2 / 2
    for _ in range(ITERATIONS):
        gradient = scores.sum(axis=0) + precision * parameters
        step = np.linalg.solve(scores.T @ scores + np.diag(precision), gradient)
        if gradient @ step < DONE:
            break
        step, before = step * min(1.0, 2 / np.abs(step).max()), value
        for _ in range(HALVINGS):
            losses, scores = rows.losses(parameters - step, misclick)
            value = losses.sum() + precision @ (parameters - step) ** 2 / 2
            if value < before:
                parameters = parameters - step
                break
            step = step / 2
        else:
            break
    return parameters


def _precision(rows: _Rows) -> np.ndarray:
    count = len(rows.free)
    return 1 / np.array([SLOPE_SD] + [SHIFT_SD] * (1 + count) + [SLOPE_SD] * count) ** 2


def _with_error(rows: _Rows, parameters: np.ndarray, misclick: np.ndarray) -> Level:
    losses, scores = rows.losses(parameters, misclick)
    size, precision = len(parameters), np.diag(_precision(rows))
    steps = [
        (rows.losses(parameters + step, misclick)[1] - rows.losses(parameters - step, misclick)[1]).sum(axis=0)
        for step in STEP * np.eye(size)
    ]
    curvature = np.array(steps) / (2 * STEP)
    summed = np.column_stack([by_user(column, rows.users) for column in scores.T])
    mean, gradient = rows.mean(parameters)
    moved = np.linalg.solve((curvature + curvature.T) / 2 + precision, gradient)
    error = float(np.sqrt(max(0.0, moved @ (summed.T @ summed + precision) @ moved) * rows.share))
    return Level(losses, mean, error, parameters)


def misclicks(log: DiagnosedLog) -> Check:
    """Check that no other misclick rate foretells the actions better than the declared one.

    Rows that displease but for mistakes have actions that are unrelated, as those of rows that please. Whether the log
    has such rows shows in how co-actions depend on the reward: by its form alone, so that a reward of another form may
    look alike. The statistic is the gain of the best rate in likelihood, in standard errors: twice those of the
    difference of the losses, since the models are nested (Vuong, Econometrica 1989).
    """
    name = "misclicks"
    pairs = list(log.pairs())
    if not pairs:
        return Check(name, NOT_TESTABLE, "needs two signals of one polarity", about="scale")
    if log.own is None or log.propensity is None:
        return Check(name, NOT_TESTABLE, NEEDS_PREDICTIONS, about="scale")
    together = max(log.telling(*pair)[0] for pair in pairs)
    if together < COACTIONS or not all(log.telling(*pair)[1] for pair in pairs):
        return Check(name, TOO_FEW, f"{together} co-actions (at least {COACTIONS} wanted)", about="scale")
    rows = _Rows(log)
    declared = np.asarray(log.misclick, float)
    mistaken = contradictory(log.polarity, log.feedback, log.preference).any()
    best, lead = _best_rate(rows, declared, least=RATES[1] if mistaken else 0.0)
    said = f"no rate foretells the actions better than {_declared(declared)}"
    if not lead.any():
        return Check(name, PASSED, said, 0.0, 1.0, about="scale")
    error = float(np.sqrt((by_user(lead - lead.mean(), rows.users) ** 2).sum()))
    z = 2 * float(lead.sum()) / max(error, 1e-12)
    said = (
        f"a rate of {best:g} foretells the actions better than {_declared(declared)}: by {lead.sum():.0f} nats in "
        f"{len(lead)} rows, {z:.1f} standard errors"
    )
    p_value = float(norm.sf(z))
    result = FAILED if p_value < LEVEL else PASSED
    return Check(name, result, said, best, p_value, about="scale", details=({"misclick_rate": best},))


def _best_rate(rows: _Rows, declared: np.ndarray, least: float) -> tuple[float, np.ndarray]:
    """Return the rate under which the log is likeliest, and its lead over the declared rates in each row, (n,).

    From the declared rates outwards, in both directions, until a rate loses; none below `least`.
    """
    parameters = _fitted(rows, declared, np.zeros(2 + 2 * len(declared)))
    losses = rows.losses(parameters, declared)[0]
    best, lead = float("nan"), np.zeros_like(losses)
    higher = [rate for rate in RATES if rate > declared.max() + SLACK]
    lower = [rate for rate in reversed(RATES) if least <= rate < declared.min() - SLACK]
    for rates in (higher, lower):
        start, before = parameters, 0.0
        for rate in rates:
            other = np.full(len(declared), rate)
            start = _fitted(rows, other, start)
            gain = losses - rows.losses(start, other)[0]
            if gain.sum() <= before:
                break
            before = gain.sum()
            if before > lead.sum():
                best, lead = rate, gain
    return best, lead


def _declared(rates: np.ndarray) -> str:
    if not rates.any():
        return "none"
    return "the declared " + ", ".join(dict.fromkeys(f"{rate:g}" for rate in rates))
