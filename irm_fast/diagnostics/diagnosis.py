"""Is the reward identified? What is assumed, what this log can test, how far the answer could be off."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from irm_fast.data.signals import DESIGNS, action_rate
from irm_fast.diagnostics import counts, residuals, text
from irm_fast.diagnostics.calibration import logit, refit
from irm_fast.diagnostics.counts import (
    ENOUGH,
    FAILED,
    LEVEL,
    NEEDS_PREDICTIONS,
    NOT_TESTABLE,
    PASSED,
    TOO_FEW,
    Check,
    Observations,
)
from irm_fast.diagnostics.cross_row import CrossRow, cross_row_dependence
from irm_fast.diagnostics.sensitivity import SharedActivity, rank_correlation, refit_agreement, sample, shared_activity

ACTIVITY = (0.5, 1.0, 2.0)  # standard deviations on the logit
FOR_GOOD_FITS = ("inequality", "pairwise agreement", "third signal")
USERS = 30  # with several rows; fewer decide nothing
ACROSS_ROWS = 0.05  # relative covariance between rows of one user that moves the scale too little to matter


@dataclass(frozen=True)
class Sensitivity:
    """How far scale and ranking would move; None where there are no predictions, or nothing to compare.

    mean_g: mean preference as fitted.  shared_activity: two signals or more, see `sensitivity.SharedActivity`.
    mean_g_range: one signal: from the mean action rate to 1; with cross-row dependence: from the fitted mean (users
    differ in how easily they are pleased) to the mean corrected for shared activity (they differ in that alone).
    rank_with_action_rate: Spearman correlation of the fitted preference with the action rate (one signal): the ranking
    under a constant propensity; under a constant preference nothing is left of the ranking.
    refit_agreement: mean Spearman correlation of refits; agreement does not prove that they are right.
    """

    mean_g: float | None = None
    mean_g_range: tuple[float, float] | None = None
    rank_with_action_rate: float | None = None
    shared_activity: tuple[SharedActivity, ...] = ()
    refit_agreement: float | None = None


@dataclass(frozen=True)
class Diagnosis:
    """Whether the reward is identified, and on what that rests.

    Attributes:
        kind: `identified`, `conditional`, `not identified` or `contradicted`.
        verdict: The same in words.
        assumed: What has to be believed for this propensity design.
        tests: What was tested, and its result.
        sensitivity: How far scale and ranking would move if assumptions failed.
        remedies: The cheapest remedy for each problem.
        cross_row: Dependence between rows of one user, where users repeat and there are predictions.
    """

    kind: str
    verdict: str
    assumed: tuple[str, ...]
    tests: tuple[Check, ...]
    sensitivity: Sensitivity
    remedies: tuple[str, ...] = ()
    cross_row: CrossRow | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold: lists and mappings, None for what is not finite."""
        cross = self.cross_row
        content = {name: value for name, value in asdict(self).items() if name != "cross_row"}
        if cross is not None:
            content["cross_row"] = {**cross._asdict(), "rho": cross.rho.tolist(), "interval": cross.interval.tolist()}
        plain: dict[str, Any] = _plain(content)
        return plain

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Diagnosis:
        """The diagnosis that `to_dict` described."""
        sensitivity, cross = dict(content["sensitivity"]), content.get("cross_row")
        moved = tuple(SharedActivity(**entry) for entry in sensitivity.pop("shared_activity"))
        span = sensitivity.pop("mean_g_range")
        return cls(
            kind=content["kind"],
            verdict=content["verdict"],
            assumed=tuple(content["assumed"]),
            tests=tuple(Check(**entry) for entry in content["tests"]),
            sensitivity=Sensitivity(**sensitivity, shared_activity=moved, mean_g_range=span and tuple(span)),
            remedies=tuple(content["remedies"]),
            cross_row=cross
            and CrossRow(**{**cross, **{name: np.array(cross[name], float) for name in ("rho", "interval")}}),
        )

    def summary(self) -> str:
        """The verdict, what failed, what would help, in a few lines."""
        return text.summary(self.to_dict())

    def __str__(self) -> str:
        return text.report(self.to_dict())


def diagnose(
    feedback: np.ndarray,
    *,
    signals: Sequence[str] | None = None,
    polarity: Sequence[int] | np.ndarray | None = None,
    misclick_rate: Sequence[float] | np.ndarray | None = None,
    propensity_design: str | Sequence[str],
    reward_logits: np.ndarray | None = None,
    propensity_logits: np.ndarray | None = None,
    preference: np.ndarray | None = None,
    labels_ignorable: bool = False,
    weight: np.ndarray | None = None,
    users: Sequence[Hashable | None] | np.ndarray | None = None,
    fold_rewards: np.ndarray | None = None,
    feature_names: Sequence[str] = (),
) -> Diagnosis:
    """Diagnose a log, and a fit to it where predictions are given.

    Predictions may be somewhat off, see `residuals`. Together the tests reject what holds about once in 60 logs. A
    failed calibration says that the fit is poor, not that an assumption is wrong: it never contradicts.

    Args:
        feedback: (N, K) of 1 acted, 0 silent, -1 missing.
        signals: K names; default "signal 1", "signal 2", ...
        polarity: (K,) of +1 and -1; default all +1.
        misclick_rate: (K,) in [0, 1); default all 0.
        propensity_design: constant, hidden, features or known, for all signals or one for each.
        reward_logits: (N,), with the bias, of a model that was not trained on these rows; NaN in rows without such a
            prediction. None: only what the log alone shows.
        propensity_logits: (N, K) of the same model.
        preference: (N,) explicit labels 1, 0, -1 unknown.
        labels_ignorable: The user's word that the choice of rows to label does not depend on the preference.
        weight: (N,); rows of weight 0 are left out, otherwise weights change no test: all are conditional on the
            response.
        users: (N,) names, None where unknown.
        fold_rewards: (F, N) reward logits of refits on the same rows.
        feature_names: Names of what the `features` design reads.

    Raises:
        ValueError: An argument has the wrong shape or an unknown value.

    Examples:
        >>> import numpy as np, irm_fast
        >>> feedback = np.random.default_rng(0).integers(0, 2, (200, 1))
        >>> irm_fast.diagnose(feedback, propensity_design="constant").kind
        'not identified'
    """
    # Arguments
    feedback = np.asarray(feedback)
    designs = _check_arguments(
        feedback,
        propensity_design,
        users,
        signals=signals,
        polarity=polarity,
        misclick_rate=misclick_rate,
        reward_logits=reward_logits,
        propensity_logits=propensity_logits,
        preference=preference,
        weight=weight,
    )

    # Rows that count, with predictions where there are any
    rows, count = feedback.shape
    kept = np.ones(rows, bool) if weight is None else np.asarray(weight) > 0
    log = Observations(
        names=tuple(signals) if signals is not None else tuple(f"signal {k + 1}" for k in range(count)),
        feedback=feedback.astype(np.int64),
        polarity=np.ones(count, int) if polarity is None else np.asarray(polarity, int),
        misclick=np.zeros(count) if misclick_rate is None else np.asarray(misclick_rate, float),
        users=_numbers(users, rows),
        known=np.full((rows, count), np.nan),
    )
    if reward_logits is not None and propensity_logits is not None:
        log = _with_predictions(log, np.asarray(reward_logits, float), np.asarray(propensity_logits, float), designs)
    log = log.subset(kept)
    labels = np.full(rows, -1) if preference is None else np.asarray(preference)
    named = None if users is None else [user for user, keep in zip(users, kept, strict=True) if keep]

    # Tests
    crossed, cross_test = _cross_row(log, named)
    tests = _tests(log, designs, cross_test)

    # Verdict
    labelled = min((labels[kept] == 1).sum(), (labels[kept] == 0).sum()) >= ENOUGH
    kind, verdict = text.verdict(log, designs, tests, labelled, labels_ignorable, feature_names)
    return Diagnosis(
        kind=kind,
        verdict=verdict,
        assumed=text.assumptions(log, designs, bool((labels >= 0).any()), labels_ignorable, feature_names),
        tests=tuple(tests),
        sensitivity=_sensitivity(log, crossed, fold_rewards),
        remedies=text.remedies(log, kind, tests),
        cross_row=crossed,
    )


def _check_arguments(
    feedback: np.ndarray,
    design: str | Sequence[str],
    users: Sequence[Hashable | None] | np.ndarray | None,
    **given: Any,
) -> tuple[str, ...]:
    """The propensity design of every signal. Raises ValueError as `diagnose`."""
    if feedback.ndim != 2 or not np.isin(feedback, (-1, 0, 1)).all():
        got = f"{feedback.shape}" if feedback.ndim != 2 else "other values"
        raise ValueError(f"feedback: got {got}; expected (N, K) of 1 acted, 0 silent, -1 missing")
    rows, count = feedback.shape
    designs = (design,) * count if isinstance(design, str) else tuple(design)
    if not set(designs) <= set(DESIGNS) or len(designs) != count:
        expected = f"one of {', '.join(DESIGNS)}, or {count} of them"
        raise ValueError(f"propensity_design: got {design!r}; expected {expected}")
    shapes = {"reward_logits": (rows,), "preference": (rows,), "weight": (rows,), "propensity_logits": (rows, count)}
    for name, value in given.items():
        shape = shapes.get(name, (count,))
        if value is not None and np.shape(value) != shape:
            raise ValueError(f"{name}: got shape {np.shape(value)}; expected {shape}, as the feedback's")
    if users is not None and len(users) != rows:
        raise ValueError(f"users: got {len(users)}; expected {rows}, as the feedback's rows")
    if (given["reward_logits"] is None) != (given["propensity_logits"] is None):
        raise ValueError("reward_logits and propensity_logits: got one of the two; expected both or none")
    return designs


def _tests(log: Observations, designs: Sequence[str], cross_test: Check) -> list[Check]:
    """All tests, in the order of the report."""
    calibration = residuals.calibration(log)
    tests = [
        counts.coactions(log),
        counts.nesting(log),
        counts.opposites(log),
        residuals.inequality(log),
        residuals.agreement(log),
        residuals.triples(log),
        cross_test,
        calibration,
    ]
    if "constant" in designs and calibration.result == FAILED:
        tests = [_undecided(test) if test.name in FOR_GOOD_FITS else test for test in tests]
    return tests


def _with_predictions(
    log: Observations, reward: np.ndarray, propensity: np.ndarray, designs: Sequence[str]
) -> Observations:
    """The signals with predicted probabilities, action rates refitted on the rows that have a prediction."""
    own, m = expit(reward[:, None] * log.polarity), expit(propensity)
    known = np.where(np.array(designs) == "known", m, np.nan)
    predicted = np.isfinite(reward) & (np.isfinite(propensity) | (log.feedback < 0)).all(axis=1)
    m = np.where(np.isfinite(m), m, 0.5)  # of entries that are missing in the log as well
    rates = np.full(m.shape, np.nan)
    raw = action_rate(own, m, log.misclick)
    features = logit(np.column_stack([own[:, :1], m]))
    for k in range(m.shape[1]):
        recorded = predicted & (log.feedback[:, k] >= 0)
        rates[predicted, k] = raw[predicted, k]
        if recorded.any():
            rates[recorded, k] = refit(log.feedback[recorded, k], raw[recorded, k], features[recorded])
    own = np.where(predicted[:, None], own, np.nan)
    return Observations(log.names, log.feedback, log.polarity, log.misclick, log.users, known, own, m, rates)


def _numbers(users: Sequence[Hashable | None] | np.ndarray | None, rows: int) -> np.ndarray:
    """(N,) integers: one for each user, and one of its own for each row without a user."""
    if users is None:
        return np.arange(rows)
    numbers: dict[Hashable, int] = {}
    return np.array([i if user is None else numbers.setdefault(user, rows + i) for i, user in enumerate(users)], int)


def _cross_row(log: Observations, users: Sequence[Hashable | None] | None) -> tuple[CrossRow | None, Check]:
    """The statistic of users who repeat, and the test that they do not differ."""
    name = "users alike"
    if users is None or len(log.names) < 2:
        why = "needs user ids" if users is None else "one signal assumes nothing about users"
        return None, Check(name, NOT_TESTABLE, why)
    if log.rates is None:
        return None, Check(name, NOT_TESTABLE, NEEDS_PREDICTIONS)
    found = cross_row_dependence(log.feedback, log.rates, users)
    if found.users < USERS or not math.isfinite(found.z):
        return None, Check(name, TOO_FEW, f"{found.users} users have several rows (at least {USERS} wanted)")
    beyond = cross_row_dependence(log.feedback, log.rates, users, slack=ACROSS_ROWS)
    p_value = float(norm.sf(beyond.z))
    same = [pair for pair in log.pairs()] or [(0, 1)]
    j, k = same[0]
    low, high = (float(bound) for bound in found.interval[j, k])
    said = (
        f"different rows of one user: z = {found.z:.1f}, relative covariance of {log.names[j]} and {log.names[k]} "
        f"{found.rho[j, k]:.2f} ({low:.2f} to {high:.2f}); {found.users} users"
    )
    if p_value < LEVEL:
        said += "; users share an activity, or some are easier to please, or each sees responses of one kind"
    return found, Check(name, FAILED if p_value < LEVEL else PASSED, said, found.z, p_value, (low, high))


def _undecided(test: Check) -> Check:
    """A test that failed under propensities taken as constant: if they are not, it fails as well."""
    if test.result != FAILED:
        return test
    why = "; propensities that are not constant do the same, and the fit is poor: fit propensity hidden first"
    return replace(test, result=NOT_TESTABLE, text=test.text + why)


def _sensitivity(log: Observations, crossed: CrossRow | None, refits: np.ndarray | None) -> Sensitivity:
    agreement = None if refits is None else refit_agreement(np.asarray(refits, float))
    if log.own is None or log.propensity is None or not np.isfinite(log.own).any():
        return Sensitivity(refit_agreement=agreement)
    rows = np.flatnonzero(np.isfinite(log.own[:, 0]))
    own, m = log.own[rows], log.propensity[rows]
    g = own[:, 0] if log.polarity[0] > 0 else 1 - own[:, 0]
    mean = float(g.mean())
    if len(log.names) == 1:
        rate = own[:, 0] * m[:, 0]
        low = float(rate.mean())
        band = (low, 1.0) if log.polarity[0] > 0 else (0.0, 1 - low)
        return Sensitivity(mean, band, rank_correlation(own[:, 0], rate), refit_agreement=agreement)
    pairs = sorted(log.pairs(), key=lambda pair: -log.telling(*pair)[0])
    if not pairs:
        return Sensitivity(mean, refit_agreement=agreement)
    j, k = pairs[0]
    some = sample(np.arange(len(rows)))
    moved = tuple(shared_activity(own[some, j], m[some, j], m[some, k], sd) for sd in ACTIVITY)
    span = None
    if crossed is not None and math.isfinite(crossed.rho[j, k]) and log.polarity[j] > 0:
        span = (mean, float(np.clip(mean * (1 + max(0.0, crossed.rho[j, k])), 0, 1)))
    return Sensitivity(mean, span, None, moved, agreement)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
