"""Choose what of the context propensities depend on, and fit it: user, time, place in the session.

A part of the context is kept if it predicts the patterns of proven rows (`context_layer`) of held-out users better, by
more than one standard error.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from irm_fast.data.groups import group_rows
from irm_fast.embeddings.context import Bins, fingerprint, places
from irm_fast.embeddings.context_layer import (
    GRID,
    ContextLayer,
    ContextLogits,
    ContextRows,
    Presence,
    by_group,
    context_logits,
    fit_layer,
    logit,
    pattern_score,
    signs,
)
from irm_fast.embeddings.observed import Observed
from irm_fast.embeddings.problem import Problem, Split

ENOUGH = 30  # rows that show propensities: proven, and with a second signal recorded
SAMPLE = 5_000  # of these to fit a layer to, at most
PART = 2**17  # rows, and the rest of a user, whose offsets are looked at on the whole grid at once
SURE = 0.9  # where actions may be misclicks: the `two_step.proof` from which an action proves a row


@dataclass(frozen=True)
class Context:
    """How propensities depend on who was shown a response, when and where.

    Attributes:
        layer: The layer.
        bins: The bins of the parts that are columns, "time" and "place".
        who: "user", or "session" where users are unknown: what has offsets.
        users: The fingerprints (int64) of the users, in increasing order, of shape (U,); empty without offsets.
        offsets: Mean and standard deviation (float32) of the offset of each user, of shape (U, 2).
    """

    layer: ContextLayer
    bins: Mapping[str, Bins]
    who: str
    users: Tensor
    offsets: Tensor

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the context that propensities depend on: some of "time", "place", and "user" or "session"."""
        return (*self.bins, *((self.who,) if self.layer.sd > 0 else ()))

    @torch.no_grad()
    def logits(
        self,
        base: Tensor,
        users: Sequence[Hashable | None] | None,
        sessions: Sequence[Hashable | None] | None,
        times: np.ndarray | None,
    ) -> Tensor:
        """Return propensity logits (N, K) of rows that come later; what is unknown of a row is neutral.

        Args:
            base: Base logits of shape (N, K).
            users: N user names, None where unknown; or None.
            sessions: N names of sessions, None where unknown; or None.
            times: Seconds since 1970 of shape (N,), NaN where unknown; or None.
        """
        rows = base.double().cpu()
        logits = self.layer.logits(rows, _columns(self.bins, When(len(rows), users, sessions, times)))
        if self.layer.sd > 0:
            mean, sd = self._offsets(len(rows), users if self.who == "user" else sessions)
            chance = torch.softmax(-((GRID - mean[:, None]) ** 2) / (2 * sd[:, None] ** 2), 1)
            acts = torch.sigmoid(logits[:, None, :] + GRID[:, None]) * chance[:, :, None]
            logits = torch.where(self.layer.free, logit(acts.sum(1)), logits)
        return logits.to(base)

    def _offsets(self, rows: int, users: Sequence[Hashable | None] | None) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the users' offsets, both (N,); those of the prior where unknown."""
        mean, sd = torch.zeros(rows, dtype=torch.float64), self.layer.sd.repeat(rows)
        if users is not None and len(self.users):
            names = torch.tensor([0 if user is None else fingerprint(user) for user in users])
            place = torch.searchsorted(self.users, names).clamp(max=len(self.users) - 1)
            known = (self.users[place] == names) & torch.tensor([user is not None for user in users])
            mean[known], sd[known] = self.offsets[place[known]].double().unbind(1)
        return mean, sd.clamp(min=0.2)  # the grid resolves no less


@dataclass(frozen=True)
class When:
    """When and where N rows were shown.

    Attributes:
        rows: The number N of rows.
        users: N user names, None where unknown; or None.
        sessions: N names of sessions, None where unknown; or None.
        times: Seconds since 1970 of shape (N,), NaN where unknown; or None.
    """

    rows: int
    users: Sequence[Hashable | None] | None
    sessions: Sequence[Hashable | None] | None
    times: np.ndarray | None

    def values(self, part: str) -> np.ndarray:
        """Return the numbers (N,) of which "time" or "place" makes bins, NaN where unknown."""
        found = self.places if part == "place" else self.times
        return np.full(self.rows, np.nan) if found is None else found

    @cached_property
    def places(self) -> np.ndarray | None:
        """The place of each row in its session, of shape (N,), NaN where unknown; None without sessions."""
        return None if self.sessions is None else places(self.sessions, self.times, self.users)


def _columns(bins: Mapping[str, Bins], when: When) -> Tensor:
    """Return the columns (N, C) of the parts in `bins`, in their order."""
    found = [part.columns(when.values(name)) for name, part in bins.items()]
    return torch.from_numpy(np.hstack([np.zeros((when.rows, 0)), *found]))


class FoundContext(NamedTuple):
    """A fitted context.

    Attributes:
        layer: The layer that was fitted to all rows.
        by_fold: The layers that were fitted without a fold.
        bins: As of `Context`.
        training: The logits of the rows by `layer`.
        held_out: The logits of each row by the layer without its fold.
        offsets: Mean and standard deviation (float64) of the offset of each user, of shape (U, 2); None without users.
    """

    layer: ContextLayer
    by_fold: Sequence[ContextLayer]
    bins: Mapping[str, Bins]
    training: ContextLogits
    held_out: ContextLogits
    offsets: Tensor | None

    def part(self, base: Tensor) -> Tensor:
        """Return the part of the logits (N, K) that comes from the context, not from the base logits (N, K).

        Args:
            base: Base logits without the part of a signal that acted before.
        """
        return self.training.alone - self.layer.mixed(base.double().cpu())

    def context(self, observed: Observed) -> Context:
        """Return what predicts other rows than the ones `observed` that it was fitted to."""
        who, names = _who(observed)
        if self.offsets is None:
            return Context(self.layer, self.bins, who, torch.empty(0, dtype=torch.int64), torch.empty(0, 2))
        numbers = dict(zip(names, group_rows(names).tolist(), strict=True))
        numbers.pop(None, None)
        prints = torch.tensor([fingerprint(name) for name in numbers], dtype=torch.int64)
        order = prints.argsort()
        place = torch.tensor(list(numbers.values()), dtype=torch.int64)[order]
        return Context(self.layer, self.bins, who, prints[order], self.offsets[place].float())


@dataclass(frozen=True)
class _Data:
    """N rows with their base logits, and what is asked of them."""

    rows: ContextRows  # with base logits of the mean over the folds
    apart: ContextRows  # with base logits of a fit that did not see the row; layers are fitted to these
    reward: Tensor  # (N,)
    folds: Tensor  # (N,)
    telling: Tensor  # (N,) bool: rows that show propensities

    @classmethod
    def of(cls, problem: Problem, split: Split, observed: Observed, proof: Tensor) -> _Data:
        base, order = split.logits, problem.order(split.found)
        feedback, side = torch.from_numpy(observed.feedback), torch.tensor(observed.polarity)
        proves = proof.cpu() > SURE
        plus, minus = (((feedback == 1) & (side == sign) & proves).any(1).long() for sign in (1, -1))
        labels = observed.preference
        label = torch.full((len(observed),), -1) if labels is None else torch.from_numpy(labels)
        proven = torch.where(label >= 0, 2 * label.long() - 1, plus - minus)
        recorded = ((feedback >= 0) & (side == proven[:, None])).sum(1)
        rows = ContextRows(
            base=(base.training - order.training).double().cpu(),
            columns=torch.zeros(len(observed), 0, dtype=torch.float64),
            order=order.training.double().cpu(),
            feedback=feedback.double(),
            side=side,
            free=torch.tensor([design != "known" for design in observed.designs]),
            proves=proves,
            proven=proven,
            labelled=label >= 0,
            weight=torch.from_numpy(observed.weight).double(),
            user=torch.from_numpy(group_rows(_who(observed)[1])),
        )
        telling = (proven != 0) & (recorded >= torch.where(label >= 0, 1, 2))
        apart = replace(rows, base=(base.held_out - order.held_out).double().cpu(), order=order.held_out.double().cpu())
        return cls(rows, apart, split.reward.held_out.double().cpu(), torch.from_numpy(problem.folds), telling)

    def with_columns(self, columns: Tensor) -> _Data:
        return replace(self, rows=replace(self.rows, columns=columns), apart=replace(self.apart, columns=columns))

    def presence(self, before: ContextLayer | None) -> Presence:
        """Return the presence of actions; `before` is an earlier layer, by which an action is likely or not."""
        rows = self.rows
        logits = rows.base if before is None else before.logits(rows.base, rows.columns)
        return Presence(rows, logits, self.reward)

    def _of_whole_users(self, mask: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield parts of some rows, a mask (N,), each of whole users: row numbers, numbers of users, whose a row is."""
        rows = torch.nonzero(mask)[:, 0]
        if len(rows) > PART:
            rows = rows[torch.argsort(self.rows.user[rows], stable=True)]
        user = self.rows.user[rows]
        first = 0
        while first < len(rows):
            end = first + PART
            if end < len(rows):  # not within a user
                end = int(torch.searchsorted(user, user[end - 1], right=True))
            own, whose = torch.unique(user[first:end], return_inverse=True)
            yield rows[first:end], own, whose
            first = end

    def sampled(self, rows: Tensor) -> Tensor:
        """Return some of the rows, a mask (N,): those of whole users, about as many telling ones as are needed."""
        telling = torch.bincount(self.rows.user[rows & self.telling], minlength=int(self.rows.user.max()) + 1)
        order = torch.randperm(len(telling), generator=torch.Generator().manual_seed(0))
        kept = torch.zeros(len(telling), dtype=torch.bool)
        kept[order] = telling[order].cumsum(0) <= max(SAMPLE, int(telling.max()))
        return rows & kept[self.rows.user]

    def layer(self, presence: Presence | None, start: ContextLayer | None, fold: int | None = None) -> ContextLayer:
        """Fit a layer without a fold, or to all rows."""
        rows = torch.ones_like(self.telling) if fold is None else self.folds != fold
        return fit_layer(self.apart, presence, self.sampled(rows), start)

    def score(self, layer: ContextLayer, presence: Presence | None, fold: int) -> Tensor:
        """Return the log likelihood (U,) of the patterns of each user's rows in a fold."""
        found = torch.zeros(int(self.apart.user.max()) + 1, dtype=torch.float64)
        for rows, own, whose in self._of_whole_users(self.folds == fold):
            part = replace(self.apart.subset(rows), user=whose)
            found[own] = pattern_score(layer, part, None if presence is None else presence[rows])
        return found

    def held_out_logits(self, layers: Sequence[ContextLayer], presence: Presence | None) -> ContextLogits:
        """Return the logits of each row by the layer without its fold, given the rows of its user in its fold."""
        pattern, alone = torch.empty_like(self.apart.base), torch.empty_like(self.apart.base)
        for fold, layer in enumerate(layers):
            for rows, _, whose in self._of_whole_users(self.folds == fold):
                part = replace(self.apart.subset(rows), user=whose)
                said = None if presence is None else signs(layer, part, presence[rows])
                pattern[rows], alone[rows] = context_logits(layer, part, said)
        return ContextLogits(pattern, alone)

    def training_logits(self, layer: ContextLayer, presence: Presence | None) -> tuple[ContextLogits, Tensor | None]:
        """Return the logits of all rows by a layer, and mean and deviation (U, 2) of users' offsets; None without."""
        if presence is None:
            return context_logits(layer, self.rows, None), None
        pattern, alone = torch.empty_like(self.rows.base), torch.empty_like(self.rows.base)
        offsets = torch.zeros(int(self.rows.user.max()) + 1, 2, dtype=torch.float64)
        for rows, own, whose in self._of_whole_users(torch.ones_like(self.telling)):
            part = replace(self.rows.subset(rows), user=whose)
            said = signs(layer, part, presence[rows])
            pattern[rows], alone[rows] = context_logits(layer, part, said)
            offsets[own] = _offsets(layer, by_group(said, whose))
        return ContextLogits(pattern, alone), offsets


def fit_context(
    problem: Problem, split: Split, observed: Observed, proof: Tensor, earlier: FoundContext | None = None
) -> FoundContext | None:
    """Fit how propensities depend on the context, and choose the parts of it that they depend on.

    Args:
        problem: The N rows.
        split: Propensities that do not know the context, and a reward.
        observed: The rows, with their users, sessions and times.
        proof: `two_step.proof` of shape (N, K).
        earlier: A fit to the same rows with another reward, whose parts are kept. None to choose the parts.

    Returns:
        The context; or None if there is none, if fewer than 30 rows outside a fold show propensities, or if no part
        predicts held-out actions better.
    """
    if not observed.has_context:
        return None
    data = _Data.of(problem, split, observed, proof)
    if min(int((data.telling & (data.folds != fold)).sum()) for fold in data.folds.unique()) < ENOUGH:
        return None
    when = When(len(observed), observed.users, observed.sessions, observed.times)
    if earlier is None:
        parts = _choose(data, when)
        if parts is None:
            return None
        data, bins, presence, by_fold = parts.data, parts.bins, parts.presence, parts.layers
    else:
        bins = earlier.bins
        data = data.with_columns(_columns(bins, when))
        presence = None if earlier.offsets is None else data.presence(earlier.layer)
        by_fold = [data.layer(presence, start, fold) for fold, start in enumerate(earlier.by_fold)]
    layer = data.layer(presence, by_fold[0])
    training, offsets = data.training_logits(layer, presence)
    return FoundContext(layer, by_fold, bins, training, data.held_out_logits(by_fold, presence), offsets)


@dataclass(frozen=True)
class _Parts:
    """Some parts of the context, with a layer without each fold."""

    data: _Data  # with the columns of the bins
    bins: Mapping[str, Bins]
    presence: Presence | None  # None: users are no part
    layers: Sequence[ContextLayer]
    scores: Sequence[Tensor]  # of each fold, (U,)

    def better(self, data: _Data, bins: Mapping[str, Bins], presence: Presence | None) -> _Parts | None:
        """Return other parts, fitted, if they predict held-out patterns better by more than one standard error.

        If the first fold is not predicted better at all, the others are not tried.
        """
        layers, scores = list[ContextLayer](), list[Tensor]()
        for fold, start in enumerate(self.layers):
            layers.append(data.layer(presence, start, fold))
            scores.append(data.score(layers[-1], presence, fold))
            if fold == 0 and not (scores[0] - self.scores[0]).sum() > 0:
                return None
        counted = torch.bincount(data.rows.user[data.telling], minlength=len(scores[0])) > 0
        gain = (torch.stack(scores).sum(0) - torch.stack(list(self.scores)).sum(0))[counted]
        if len(gain) < 2 or not gain.sum() > gain.std() * len(gain) ** 0.5:
            return None
        return _Parts(data, bins, presence, layers, scores)

    def with_columns(self, when: When) -> _Parts:
        """Return the parts with time and place, where they predict better."""
        now = self
        for name in ("time", "place"):
            found = None if name in now.bins else Bins.of(when.values(name))
            if found is not None:
                bins = {**now.bins, name: found}
                now = now.better(now.data.with_columns(_columns(bins, when)), bins, now.presence) or now
        return now


def _choose(data: _Data, when: When) -> _Parts | None:
    """Choose the parts of the context; return None if no part is kept."""
    layers: list[ContextLayer] = []
    for fold in range(int(data.folds.max()) + 1):
        layers.append(data.layer(None, layers[0] if layers else None, fold))
    nothing = _Parts(data, {}, None, layers, [data.score(layer, None, fold) for fold, layer in enumerate(layers)])

    # Columns; users; and columns again, which users who differ much may have hidden
    parts = nothing.with_columns(when)
    several = torch.bincount(data.rows.user)[data.rows.user] > 1
    if (several & data.telling).any():
        users = parts.better(parts.data, parts.bins, parts.data.presence(None))
        parts = parts if users is None else users.with_columns(when)
    return None if parts is nothing else parts


def _who(observed: Observed) -> tuple[str, Sequence[Hashable | None]]:
    """Return what has offsets, users or else sessions, and its name for each row."""
    for name, names in (("user", observed.users), ("session", observed.sessions)):
        if names is not None and any(entry is not None for entry in names):
            return name, names
    return "user", [None] * len(observed)


def _offsets(layer: ContextLayer, said: Tensor) -> Tensor:
    """Return mean and standard deviation (U, 2) of the users' offsets, of which their rows say `said` (U, Q)."""
    chance = torch.softmax(layer.log_prior() + said, 1)
    mean = chance @ GRID
    return torch.stack([mean, (chance @ GRID**2 - mean**2).clamp(min=0).sqrt()], 1)
