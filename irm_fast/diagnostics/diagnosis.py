"""Is the reward identified? What is assumed, what this log can test, how far the answer could be off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from irm_fast.diagnostics import arguments, counts, learned, level, order, ranges, recording, residuals, text
from irm_fast.diagnostics import context as who_when_where
from irm_fast.diagnostics import users as of_users
from irm_fast.diagnostics.arguments import Names
from irm_fast.diagnostics.cross_row import CrossRow
from irm_fast.diagnostics.result import Diagnosis
from irm_fast.diagnostics.segments import broken_buttons
from irm_fast.diagnostics.subject import FAILED, NOT_TESTABLE, Check, DiagnosedLog


def diagnose(
    feedback: np.ndarray,
    *,
    propensity_design: str | Sequence[str],
    signals: Sequence[str] | None = None,
    polarity: Sequence[int] | np.ndarray | None = None,
    misclick_rate: Sequence[float] | np.ndarray | None = None,
    reward_logits: np.ndarray | None = None,
    propensity_logits: np.ndarray | None = None,
    preference: np.ndarray | None = None,
    labels_ignorable: bool = False,
    weight: np.ndarray | None = None,
    users: Names | None = None,
    fold_rewards: np.ndarray | None = None,
    feature_names: Sequence[str] = (),
    propensity: np.ndarray | None = None,
    sessions: Names | None = None,
    times: np.ndarray | None = None,
    acted_at: np.ndarray | None = None,
    segments: Mapping[str, Names] | None = None,
    context: Sequence[str] = (),
    uncorrected_mean: float | None = None,
    misclick_sensitivity: Sequence[tuple[float, float]] | None = None,
    mean_error: float | None = None,
) -> Diagnosis:
    """Diagnose a log, and a fit to it where predictions are given: is the reward identified, and by what?

    The predictions may be somewhat off: see `residuals`. Together the checks reject what holds about once in 50 logs.
    A failed calibration says that the fit is poor, not that an assumption is wrong: it never contradicts. Ranking and
    scale have verdicts of their own: what users, times or misclicks do moves the scale and hardly the ranking.

    Args:
        feedback: Integers of shape (N, K): 1 acted, 0 silent, -1 missing.
        propensity_design: constant, hidden, features or known, for all signals or for each.
        signals: The names of the K signals.
        polarity: +1 or -1 for each signal; None: all +1.
        misclick_rate: A rate in [0, 1) for each signal; None: all 0.
        reward_logits: Reward logits of shape (N,), with the bias, of a model that was not trained on these rows; NaN in
            rows without a prediction. None: diagnose what the log alone shows.
        propensity_logits: Propensity logits of shape (N, K), as the reward logits.
        preference: Explicit labels of shape (N,): 1, 0, or -1 unknown.
        labels_ignorable: The user's word that the choice of rows to label does not depend on the preference.
        weight: The weight of each row, of shape (N,). Rows of weight 0 are left out; otherwise weights change no check,
            since all are conditional on the response.
        users: The user of each row, None where unknown; or None if all are.
        fold_rewards: Reward logits of shape (F, N), of F refits on the same rows.
        feature_names: The names of what the propensity design `features` reads.
        propensity: Known propensities of shape (N, K), probabilities, NaN where unknown; read for signals of the design
            `known`. None: those of the propensity logits.
        sessions: The session of each row, None where unknown; or None if all are. The same name under another user is
            another session.
        times: The time of each row in seconds since 1970, float64 of shape (N,), NaN where unknown.
        acted_at: The time of each action in the same seconds, float64 of shape (N, K), NaN where unknown.
        segments: By name the segment of each row, such as platform or version: N texts, None where unknown.
        context: What the given propensities already depend on, of `user`, `session`, `time`, `place`: an effect of it
            is then modelled, and no failure.
        uncorrected_mean: The mean preference of the fit before a correction for activity, from which the range of the
            mean preference starts; None: `reward_logits` are not corrected.
        misclick_sensitivity: Pairs of a misclick rate and the mean preference of a fit under it; None: to first order.
        mean_error: The standard error of the mean preference, where the fit knows it; None: that of its level alone.

    Returns:
        The diagnosis; `print` shows it as a page of text.

    Raises:
        ValueError: An argument has the wrong shape or an unknown value.

    Examples:
        >>> import numpy as np
        >>> feedback = np.random.default_rng(0).integers(0, 2, (1000, 1))
        >>> found = diagnose(feedback, propensity_design="constant", signals=["copy"])
        >>> found.kind
        'not identified'
        >>> found.remedies[0][:52]
        'Log one more action of the same polarity that does n'
    """
    feedback = np.asarray(feedback)
    arguments.check_feedback(feedback)
    rows, count = feedback.shape
    designs = arguments.designs_of(propensity_design, count)
    shapes = {
        "signals": (signals, (count,)),
        "polarity": (polarity, (count,)),
        "misclick_rate": (misclick_rate, (count,)),
        "reward_logits": (reward_logits, (rows,)),
        "propensity_logits": (propensity_logits, (rows, count)),
        "preference": (preference, (rows,)),
        "weight": (weight, (rows,)),
        "propensity": (propensity, (rows, count)),
        "times": (times, (rows,)),
        "acted_at": (acted_at, (rows, count)),
    }
    arguments.check_shapes(shapes)
    by_segment = {f"segments[{name!r}]": values for name, values in (segments or {}).items()}
    arguments.check_lengths({"users": users, "sessions": sessions, **by_segment}, rows)
    if (reward_logits is None) != (propensity_logits is None):
        raise ValueError("reward_logits and propensity_logits: got one of the two; expected both or none")

    # The log, its predictions, and the rows that count
    user_numbers, user_names = arguments.user_numbers(users, rows)
    log = DiagnosedLog(
        names=tuple(signals) if signals is not None else tuple(f"signal {k + 1}" for k in range(count)),
        designs=designs,
        feedback=feedback.astype(np.int64),
        polarity=np.ones(count, int) if polarity is None else np.asarray(polarity, int),
        misclick=np.zeros(count) if misclick_rate is None else np.asarray(misclick_rate, float),
        preference=np.broadcast_to(-1, rows) if preference is None else np.asarray(preference),
        users=user_numbers,
        known=np.broadcast_to(np.nan, (rows, count)),
        feature_names=feature_names,
        user_names=user_names,
        sessions=arguments.session_numbers(sessions, users, rows),
        times=None if times is None else np.asarray(times, float),
        acted_at=None if acted_at is None else np.asarray(acted_at, float),
        segments=arguments.texts(segments),
        context=arguments.check_context(context),
    )
    if propensity is not None:
        log = arguments.known_propensities(log, propensity)
    if reward_logits is not None and propensity_logits is not None:
        log = arguments.with_predictions(log, np.asarray(reward_logits, float), np.asarray(propensity_logits, float))
    if weight is not None and not (counted := np.asarray(weight) > 0).all():
        log = log.subset(counted)
    return _judged(log, labels_ignorable, fold_rewards, uncorrected_mean, mean_error, misclick_sensitivity)


def _judged(
    log: DiagnosedLog,
    labels_ignorable: bool,
    refits: np.ndarray | None,
    uncorrected_mean: float | None,
    mean_error: float | None,
    misclick_sensitivity: Sequence[tuple[float, float]] | None,
) -> Diagnosis:
    """Carry out the checks, and say what they say of ranking and scale; the arguments are those of `diagnose`."""
    cross_row, checks = _checks(log)
    verdict = text.verdict(log, checks, labels_ignorable)
    sensitivity = ranges.measure(
        log,
        fixed=verdict.scale == text.IDENTIFIED,
        broken=any(check.result == FAILED and check.about in ("identification", "scale") for check in checks),
        quiet=who_when_where.quiet(checks),
        in_order=order.untold(checks),
        refits=refits,
        uncorrected_mean=uncorrected_mean,
        misclick_sensitivity=misclick_sensitivity,
        mean_error=mean_error,
    )
    return Diagnosis(
        kind=verdict.kind,
        verdict=verdict.words,
        assumed=text.assumptions(log, labels_ignorable),
        tests=checks,
        sensitivity=sensitivity,
        remedies=text.remedies(log, verdict, checks),
        cross_row=cross_row,
        ranking=verdict.ranking,
        scale=verdict.scale,
        learned=verdict.learned,
    )


def _checks(log: DiagnosedLog) -> tuple[CrossRow | None, tuple[Check, ...]]:
    """Carry out all checks; return the dependence between rows of a user, and the checks in the order of the report."""
    calibration = residuals.calibration(log)
    for_good_fits = [residuals.inequality(log), residuals.agreement(log), residuals.triples(log), level.misclicks(log)]
    if "constant" in log.designs and calibration.result == FAILED:
        for_good_fits = [_undecided(check) for check in for_good_fits]
    user_activity = who_when_where.user(log)
    cross_row, users_alike = of_users.alike(log, user_activity)
    return cross_row, (
        counts.coactions(log),
        counts.nesting(log),
        counts.exclusive(log),
        counts.opposites(log),
        order.funnel(log),
        counts.known_propensities(log),
        counts.labels(log),
        broken_buttons(log),
        of_users.one_choice(log),
        *for_good_fits,
        who_when_where.time(log),
        who_when_where.place(log),
        who_when_where.segments(log),
        who_when_where.session(log, user_activity),
        user_activity,
        users_alike,
        of_users.act_on_everything(log),
        recording.silent_rows_by_day(log),
        recording.duplicates(log),
        learned.varies(log),
        learned.beats_constant(log),
        calibration,
    )


def _undecided(check: Check) -> Check:
    """Take back a failure under propensities that are taken as constant: if they are not, the check fails as well."""
    if check.result != FAILED:
        return check
    why = "; propensities that are not constant do the same, and the fit is poor: fit propensity design hidden first"
    return replace(check, result=NOT_TESTABLE, text=check.text + why)
