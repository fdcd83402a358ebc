"""Choose what of the context propensities depend on, and fit it: user, time, place in the session.

A part of the context is kept if it predicts the patterns of proven rows (`context_layer`) of held-out users better, by
more than one standard error.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from irm_fast.data.log import group_rows
from irm_fast.embeddings.context import Bins, fingerprint, places
from irm_fast.embeddings.context_layer import (
    GRID,
    ContextLayer,
    ContextLogits,
    ContextRows,
    by_group,
    context_logits,
    fit_layer,
    logit,
    pattern_score,
    signs,
)
from irm_fast.embeddings.observed import Observed
from irm_fast.embeddings.reward_step import PropensityLogits

ENOUGH = 30  # rows that show propensities: proven, and with a second signal recorded
SAMPLE = 5_000  # of these to fit a layer to, at most
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
        context: What predicts other rows.
        training: The logits of the rows by the layer that was fitted to all of them.
        held_out: The logits of each row by the layer that was fitted without its fold.
        by_fold: The layers that were fitted without a fold.
    """

    context: Context
    training: ContextLogits
    held_out: ContextLogits
    by_fold: Sequence[ContextLayer]

    def part(self, base: Tensor) -> Tensor:
        """Return the part of the logits (N, K) that comes from the context, not from the base logits (N, K).

        Args:
            base: Base logits without the part of a signal that acted before.
        """
        return self.training.alone - self.context.layer.mixed(base.double().cpu())


@dataclass(frozen=True)
class _Data:
    """N rows with their base logits, and what is asked of them."""

    rows: ContextRows  # with base logits of the mean over the folds
    apart: ContextRows  # with base logits of a fit that did not see the row; layers are fitted to these
    reward: Tensor  # (N,)
    folds: Tensor  # (N,)
    telling: Tensor  # (N,) bool: rows that show propensities
    before: ContextLayer | None  # an earlier layer, whose propensities tell how likely a row has an action

    def with_columns(self, columns: Tensor) -> _Data:
        return replace(self, rows=replace(self.rows, columns=columns), apart=replace(self.apart, columns=columns))

    def presence(self) -> Tensor:
        rows = self.rows
        return rows.presence(
            rows.base if self.before is None else self.before.logits(rows.base, rows.columns), self.reward
        )

    def sampled(self, rows: Tensor) -> Tensor:
        """Return some of the rows, a mask (N,): those of whole users, about as many telling ones as are needed."""
        telling = torch.bincount(self.rows.user[rows & self.telling], minlength=int(self.rows.user.max()) + 1)
        order = torch.randperm(len(telling), generator=torch.Generator().manual_seed(0))
        kept = torch.zeros(len(telling), dtype=torch.bool)
        kept[order] = telling[order].cumsum(0) <= max(SAMPLE, int(telling.max()))
        return rows & kept[self.rows.user]

    def by_fold(
        self, presence: Tensor | None, start: Sequence[ContextLayer | None] | None = None
    ) -> list[ContextLayer]:
        """Fit a layer without each fold."""
        found: list[ContextLayer] = []
        for fold in range(int(self.folds.max()) + 1):
            first = start[fold] if start is not None else found[0] if found else None
            found.append(fit_layer(self.apart, presence, self.sampled(self.folds != fold), first))
        return found

    def scores(self, layers: Sequence[ContextLayer], presence: Tensor | None) -> Tensor:
        """Return the held-out log likelihood (U,) of the patterns of each user; a user is in one fold."""
        found = torch.zeros(int(self.apart.user.max()) + 1, dtype=torch.float64)
        for fold, layer in enumerate(layers):
            rows = self.folds == fold
            some = None if presence is None else presence[rows]
            part = pattern_score(layer, self.apart.subset(rows), some)
            found[: len(part)] += part
        return found

    def held_out_logits(self, layers: Sequence[ContextLayer], presence: Tensor | None) -> ContextLogits:
        """Return the logits of each row by the layer without its fold, given the rows of its user in its fold."""
        pattern, alone = torch.empty_like(self.apart.base), torch.empty_like(self.apart.base)
        for fold, layer in enumerate(layers):
            rows = self.folds == fold
            found = context_logits(layer, self.apart.subset(rows), None if presence is None else presence[rows])
            pattern[rows], alone[rows] = found.pattern, found.alone
        return ContextLogits(pattern, alone)


def fit_context(
    observed: Observed,
    base: PropensityLogits,
    order: PropensityLogits,
    reward: Tensor,
    proof: Tensor,
    folds: np.ndarray,
    earlier: FoundContext | None = None,
) -> FoundContext | None:
    """Fit how propensities depend on the context, and choose the parts of it that they depend on.

    Args:
        observed: The N rows, with their users, sessions and times.
        base: Propensity logits that do not know the context.
        order: The part of them that comes from a signal that acted before.
        reward: Reward logits (N,), each from a fit that did not see the row.
        proof: `two_step.proof` of shape (N, K).
        folds: Fold numbers from 0, of shape (N,).
        earlier: A fit to the same rows with another reward, whose parts are kept. None to choose the parts.

    Returns:
        The context; or None if there is none, if fewer than 30 rows show propensities, or if no part predicts held-out
        actions better.
    """
    if observed.users is None and observed.sessions is None and observed.times is None:
        return None
    before = None if earlier is None else earlier.context.layer
    data = _data(observed, base, order, reward, proof, folds, before)
    if int(data.telling.sum()) < ENOUGH:
        return None
    when, (who, names) = When(len(observed), observed.users, observed.sessions, observed.times), _who(observed)
    if earlier is None:
        found = _choose(data, when)
        if found is None:
            return None
        data, bins, by_fold, presence = found
    else:
        bins = earlier.context.bins
        data = data.with_columns(_columns(bins, when))
        presence = data.presence() if earlier.context.layer.sd > 0 else None
        by_fold = data.by_fold(presence, earlier.by_fold)
    everywhere = torch.ones(len(observed), dtype=torch.bool)
    layer = fit_layer(data.apart, presence, data.sampled(everywhere), by_fold[0])
    context = Context(layer, bins, who, *_users(layer, data.rows, presence, names))
    training, held_out = context_logits(layer, data.rows, presence), data.held_out_logits(by_fold, presence)
    return FoundContext(context, training, held_out, by_fold)


def _choose(data: _Data, when: When) -> tuple[_Data, Mapping[str, Bins], list[ContextLayer], Tensor | None] | None:
    """Choose the parts of the context.

    Returns:
        The rows with the columns of the parts, the bins of these, the layers by fold, and the presence of actions if
        users are a part; or None if no part is kept.
    """
    bins: dict[str, Bins] = {}
    presence: Tensor | None = None
    layers = data.by_fold(None)
    score = data.scores(layers, None)
    counted = torch.bincount(data.rows.user[data.telling], minlength=len(score)) > 0

    def better(new: Tensor) -> bool:
        gain = (new - score)[counted]
        return float(gain.sum()) > float(gain.std() * len(gain) ** 0.5)

    def try_columns() -> None:
        nonlocal data, layers, score
        for name in ("time", "place"):
            found = None if name in bins else Bins.of(when.values(name))
            if found is None:
                continue
            tried = data.with_columns(_columns({**bins, name: found}, when))
            tried_layers = tried.by_fold(presence)
            tried_score = tried.scores(tried_layers, presence)
            if better(tried_score):
                bins[name], data, layers, score = found, tried, tried_layers, tried_score

    # Columns; users; and columns again, which users who differ much may have hidden
    try_columns()
    several = counted & (torch.bincount(data.rows.user, minlength=len(score)) > 1)
    if several.any():
        tried_presence = data.presence()
        tried_layers = data.by_fold(tried_presence)
        tried_score = data.scores(tried_layers, tried_presence)
        if better(tried_score):
            presence, layers, score = tried_presence, tried_layers, tried_score
            try_columns()
    return (data, bins, layers, presence) if bins or presence is not None else None


def _data(
    observed: Observed,
    base: PropensityLogits,
    order: PropensityLogits,
    reward: Tensor,
    proof: Tensor,
    folds: np.ndarray,
    before: ContextLayer | None,
) -> _Data:
    feedback, side = torch.from_numpy(observed.feedback), torch.tensor(observed.polarity)
    proves = proof.cpu() > SURE
    plus, minus = (((feedback == 1) & (side == sign) & proves).any(1).long() for sign in (1, -1))
    label = torch.full((len(observed),), -1) if observed.preference is None else torch.from_numpy(observed.preference)
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
    return _Data(rows, apart, reward.double().cpu(), torch.from_numpy(folds), telling, before)


def _who(observed: Observed) -> tuple[str, Sequence[Hashable | None]]:
    """Return what has offsets, users or else sessions, and its name for each row."""
    for name, names in (("user", observed.users), ("session", observed.sessions)):
        if names is not None and any(entry is not None for entry in names):
            return name, names
    return "user", [None] * len(observed)


def _users(
    layer: ContextLayer, rows: ContextRows, presence: Tensor | None, users: Sequence[Hashable | None] | None
) -> tuple[Tensor, Tensor]:
    """Return the fingerprints (U,) of the users in increasing order, and mean and deviation (U, 2) of their offsets."""
    if presence is None or users is None:
        return torch.empty(0, dtype=torch.int64), torch.empty(0, 2)
    chance = torch.softmax(layer.log_prior() + by_group(signs(layer, rows, presence), rows.user), 1)
    mean = chance @ GRID
    sd = (chance @ GRID**2 - mean**2).clamp(min=0).sqrt()
    numbers = {user: int(number) for user, number in zip(users, rows.user, strict=True) if user is not None}
    prints = torch.tensor([fingerprint(user) for user in numbers], dtype=torch.int64)
    order = prints.argsort()
    place = torch.tensor(list(numbers.values()), dtype=torch.int64)[order]
    return prints[order], torch.stack([mean[place], sd[place]], 1).float()
