"""The arguments of `EmbeddingRewardModel.fit` other than the embeddings, checked and in uniform shapes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from irm_fast.common.warning import warn_caller
from irm_fast.data.groups import group_rows
from irm_fast.data.signals import contradictory, implied_misclicks, known_logits
from irm_fast.embeddings import given
from irm_fast.embeddings.declared import declare, designs_of, followers, order_of


@dataclass(frozen=True)
class Observed:
    """The observations of N rows and K signals.

    Attributes:
        signals: The names of the K signals.
        feedback: Feedback (int8) of shape (N, K): 1 acted, 0 silent, -1 not recorded.
        preference: Explicit preferences (int8) of shape (N,): 1, 0, or -1 unknown; None if there are none.
        weight: Row weights (float32) of shape (N,).
        polarity: +1 or -1 for each signal.
        after: For each signal the number of the signal that it follows, -1 if it follows none.
        misclick_rate: A rate in [0, 1) for each signal.
        designs: For each signal one of `DESIGN_CHOICES`.
        propensity: Known propensities (float64) of shape (N, K), or None.
        features: Propensity features (float32) of shape (N, F), or None.
        groups: N names; the rows of a group are held out together. None means the users.
        users: N user names, None where unknown; None if all are unknown.
        sessions: N names of sessions, None where unknown; None if all are unknown.
        times: Seconds since 1970 (float64) of shape (N,), NaN where unknown; None if all are unknown.
        label_probability: The probability (float64) with which each row was drawn for labelling, of shape (N,), NaN
            where unknown; None if all are unknown.
    """

    signals: tuple[str, ...]
    feedback: np.ndarray
    preference: np.ndarray | None
    weight: np.ndarray
    polarity: tuple[int, ...]
    after: tuple[int, ...]
    misclick_rate: tuple[float, ...]
    designs: tuple[str, ...]
    propensity: np.ndarray | None
    features: np.ndarray | None
    groups: Sequence[Hashable] | None
    users: Sequence[Hashable | None] | None
    sessions: Sequence[Hashable | None] | None
    times: np.ndarray | None
    label_probability: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.feedback)

    @property
    def has_context(self) -> bool:
        """Whether anything is known of who was shown the rows, and when."""
        return not (self.users is None and self.sessions is None and self.times is None)

    def known_logits(self) -> np.ndarray:
        """Return propensity logits (float32) of shape (N, K) for the design `known`, 0 for other signals."""
        known = np.array([design == "known" for design in self.designs])
        if self.propensity is None:
            return np.zeros(self.feedback.shape, np.float32)
        return known_logits(torch.from_numpy(np.where(known, self.propensity, np.nan))).numpy()

    def in_order(self) -> Observed:
        """Return the observations with a follower taken as one with its first, where no third signal shows how often.

        The first then acts where either did, and the follower is not recorded. A warning names the two.
        """
        feedback, after = self.feedback.copy(), list(self.after)
        for follower, first in followers(self.after):
            same = [sign == self.polarity[first] for sign in self.polarity]
            if sum(same) - sum(other == first for other in self.after) < 2:
                text = f"{self.signals[follower]} follows {self.signals[first]}, and no third signal of this polarity"
                warn_caller(f"after: {text} shows how often: they are taken as one signal")
                feedback[:, first] = feedback[:, [first, follower]].max(axis=1)
                feedback[:, follower], after[follower] = -1, -1
        return replace(self, feedback=feedback, after=tuple(after))

    def labels(self) -> np.ndarray:
        """Return `preference`, or -1 for every row if there are none."""
        return np.full(len(self), -1, np.int8) if self.preference is None else self.preference

    def counted(self) -> Observed:
        """Return the rows whose weight is above 0."""
        rows = np.flatnonzero(self.weight > 0).tolist()

        def of(names: Sequence[Any] | None) -> list[Any] | None:
            if names is None:
                return None
            held = list(names)  # some sequences are slow to read one by one
            return [held[row] for row in rows]

        return replace(
            self,
            feedback=self.feedback[rows],
            preference=None if self.preference is None else self.preference[rows],
            weight=self.weight[rows],
            propensity=None if self.propensity is None else self.propensity[rows],
            features=None if self.features is None else self.features[rows],
            groups=of(self.groups),
            users=of(self.users),
            sessions=of(self.sessions),
            times=None if self.times is None else self.times[rows],
            label_probability=None if self.label_probability is None else self.label_probability[rows],
        )

    def group_numbers(self) -> np.ndarray | None:
        """Return group numbers from 0, of shape (N,): of the groups, or else of the users; None without either."""
        names = self.groups if self.groups is not None else self.users
        return None if names is None else group_rows(names)

    def folds(self, count: int, random: np.random.RandomState) -> np.ndarray:
        """Divide the rows into folds of about equal size, with all rows of a group (or else of a user) in one fold.

        Args:
            count: The number of folds; there are fewer if there are fewer groups.
            random: Decides the order in which groups of equal size are placed.

        Returns:
            Fold numbers (integer) from 0, of shape (N,).

        Raises:
            ValueError: All rows are in one group.
        """
        numbers = self.group_numbers()
        group = np.arange(len(self)) if numbers is None else numbers
        sizes = np.bincount(group)
        count = min(count, len(sizes))
        if count < 2:
            name = "users" if self.groups is None and self.users is not None else "groups"
            raise ValueError(
                f"{name}: got 1 group of n_samples={len(self)}; expected at least 2, to hold one out, or no {name}"
            )
        order = random.permutation(len(sizes))
        order = order[np.argsort(-sizes[order], kind="stable")]
        fold, load = np.empty(len(sizes), int), np.zeros(count, int)
        several = int((sizes > 1).sum())
        for number in order[:several]:  # the largest first, each to the emptiest fold
            fold[number] = load.argmin()
            load[fold[number]] += sizes[number]
        fold[order[several:]] = _emptiest(load, len(order) - several)
        return fold[group]


def _emptiest(load: np.ndarray, count: int) -> np.ndarray:
    """Return the folds (integer) of so many single rows, each in turn to the emptiest fold, of shape (count,).

    Args:
        load: The number of rows that each fold has before, of shape (folds,).
        count: The number of single rows.
    """
    folds = len(load)
    most = max(int(load.max()), -(-(int(load.sum()) + count) // folds))  # rows that a fold has in the end, at most
    places = np.concatenate([np.arange(had, most + 1) * folds + number for number, had in enumerate(load)])
    found: np.ndarray = np.sort(places)[:count] % folds  # in the order in which they are filled
    return found


def observe(
    rows: int,
    feedback: Any,
    *,
    design: Any,
    polarity: Any,
    after: Any = None,
    misclick_rate: Any,
    propensity: Any = None,
    features: Any = None,
    preference: Any = None,
    weight: Any = None,
    users: Any = None,
    sessions: Any = None,
    times: Any = None,
    groups: Any = None,
    label_probability: Any = None,
    contradictions: str = "error",
) -> Observed:
    """Check the arguments of a fit and bring them into uniform shapes.

    Unknown is None, NaN, `pandas.NA` or NaT in all of them. Arrays may be tensors of torch, or frames and series.

    Args:
        rows: The number N of rows of the embeddings.
        feedback: Feedback of shape (N,) or (N, K): 1 acted, 0 silent, -1 or unknown where not recorded. (N, 0) means no
            signals. The columns of a frame name the signals.
        design: One of `DESIGN_CHOICES` for all signals, a sequence of K, or a mapping by name.
        polarity: +1 or -1 for all signals, a sequence of K, or a mapping by name. None means +1.
        after: A mapping from a signal to the one that it follows, by name or number. None means that none does.
        misclick_rate: A rate in [0, 1) for all signals, a sequence of K, or a mapping by name. None means 0.
        propensity: Known propensities in (0, 1], shaped like the feedback; NaN where they are not known. None if no
            signal has the design `known`.
        features: Finite propensity features of shape (N, F), or None.
        preference: Explicit preferences of shape (N,): 1, 0, or -1 unknown. None if there are none.
        weight: Row weights of at least 0, of shape (N,). None means 1.
        users: N user names, None where unknown. None if all are unknown.
        sessions: N names of sessions, as the users.
        times: N times, as seconds since 1970 or as datetimes. None if all are unknown.
        groups: N names of groups. None means the users.
        label_probability: Probabilities in (0, 1] of shape (N,), NaN where unknown. None if all are unknown.
        contradictions: "error", or "drop" to give rows with evidence for both sides the weight 0, with a warning.

    Raises:
        ValueError: An argument has a wrong shape or value, a design lacks its propensities or features, or a row (with
            "drop" every row) has evidence for both sides. The message says which argument, what was given and what is
            expected.
    """
    acts = _feedback(feedback, rows)
    signals = declare(feedback, acts.shape[1], polarity, misclick_rate)
    observed = Observed(
        signals=signals.names,
        feedback=acts,
        preference=None if preference is None else given.ternary("preference", preference, (rows,)),
        weight=given.weights(weight, rows),
        polarity=signals.polarity,
        after=order_of(after, signals.names, signals.polarity),
        misclick_rate=signals.misclick_rate,
        designs=designs_of(design, signals.names),
        propensity=None if propensity is None else given.probabilities("propensity", propensity, acts.shape),
        features=None if features is None else given.matrix("propensity_features", features, rows),
        groups=given.names("groups", groups, rows),
        users=given.names("users", users, rows),
        sessions=given.names("sessions", sessions, rows),
        times=None if times is None else given.seconds(times, rows),
        label_probability=None if label_probability is None else given.chances(label_probability, rows),
    )
    _check_designs(observed)
    if contradictions == "drop":
        return _without_contradictions(observed)
    _check_evidence(observed)
    return observed


def _check_designs(observed: Observed) -> None:
    """Raise ValueError unless every design has what it reads."""
    lacking = {"known": ("propensity", observed.propensity), "features": ("propensity_features", observed.features)}
    for design, (name, value) in lacking.items():
        if design in observed.designs and value is None:
            raise ValueError(f"{name}: none given; the {design!r} design reads it: pass {name} too")
    known = np.array([design == "known" for design in observed.designs])
    if observed.propensity is not None and (np.isnan(observed.propensity) & (observed.feedback >= 0))[:, known].any():
        raise ValueError("propensity: NaN where the feedback is recorded; expected a probability for every entry")


def warn_of_unread(observed: Observed) -> None:
    """Warn of propensity features that no declared design reads."""
    if observed.features is not None and not {"auto", "hidden", "features"}.intersection(observed.designs):
        warn_caller(
            f"propensity_features: not read by the declared propensity_design {', '.join(set(observed.designs))}; "
            "expected 'features', 'hidden' or 'auto' for one signal, or no features"
        )


def check_actions(observed: Observed) -> None:
    """Raise ValueError if no row of weight above 0 has an action or an explicit preference."""
    counted = observed.weight > 0
    labelled = observed.preference is not None and (observed.preference[counted] >= 0).any()
    if not (observed.feedback[counted] == 1).any() and not labelled:
        raise ValueError(
            "feedback: no signal ever acts and no preference is given: there is only one class; expected actions"
        )


def _check_evidence(observed: Observed) -> None:
    """Raise ValueError if a row of weight above 0 proves both that the response is preferred and that it is not."""
    rows = _contradictions(observed)
    if len(rows):
        raise ValueError(
            f"feedback: row {rows[0]} has evidence for both sides ({len(rows)} have); expected one, a misclick_rate, "
            "or contradictions='drop', which leaves such rows out"
        )


def _without_contradictions(observed: Observed) -> Observed:
    """Return the rows with the weight 0 for those with evidence for both sides, and warn of these.

    Raises:
        ValueError: No row of weight above 0 is left.
    """
    rows, weight = _contradictions(observed), observed.weight.copy()
    if not len(rows):
        return observed
    counted = int((weight > 0).sum())
    weight[rows] = 0
    if not weight.any():
        raise ValueError(f"feedback: all {counted} rows contradict themselves; expected rows of one side")
    implied = implied_misclicks(observed.signals, observed.polarity, observed.feedback, observed.labels())
    warn_caller(f"left out {len(rows)} of {counted} rows that contradict themselves{implied}")
    return replace(observed, weight=weight)


def _contradictions(observed: Observed) -> np.ndarray:
    """Return the numbers of the rows of weight above 0 that contradict themselves, whatever misclicks explain."""
    certain = np.array(observed.misclick_rate) == 0
    both = contradictory(observed.polarity, observed.feedback, observed.labels(), certain)
    return np.flatnonzero(both & (observed.weight > 0))


def _feedback(value: Any, rows: int) -> np.ndarray:
    """Return feedback as int8 of shape (N, K), with a column of -1 if there are no signals, or raise ValueError."""
    if value is None:
        raise ValueError("feedback: requires y to be passed, but the target y is None")
    array = given.numbers("feedback", value)
    if array.ndim not in (1, 2):
        raise ValueError(f"feedback: got shape {array.shape}; expected ({rows},) or ({rows}, K)")
    array = array[:, None] if array.ndim == 1 else array
    if array.shape == (rows, 0):  # explicit labels alone
        array = np.full((rows, 1), -1)
    return given.ternary("feedback", array, (rows, array.shape[1]))
