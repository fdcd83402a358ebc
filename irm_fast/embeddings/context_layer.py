"""Propensities that depend on the context of a row, fitted to rows of which the preference is proven.

On a row where an action or a label proves r* = 1, the pattern of the actions depends on the propensities m alone,
whatever the user's taste: given that some signal acted whose action proves it,

    P(f_1 .. f_K | some acted) = prod m_k^f_k (1 - m_k)^(1 - f_k) / (1 - prod (1 - m_k)),

where the last product is over the signals whose action would prove it. So activity, which moves m, is told from taste,
which moves g. The propensity logits are

    base logits, mixed and shifted + weights of columns (time, place, session) + u of the user, u ~ N(0, sd^2).

The offset u is integrated out on a grid, since the few rows of a user say little about it: a point estimate would leave
the level of the propensities too high. Proven rows of a response that is seldom acted on are those of active users, by
which base logits that know no users are bent along each other: hence each signal mixes the base logits of all.

That a row has an action at all says something about u, but it also depends on taste: its likelihood counts with a power
between 0 and 1, which the patterns choose. A row is predicted from the *other* rows of its user, so that the reward can
be fitted to it with these propensities.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from irm_fast.embeddings.optimize import fit_map

GRID = torch.linspace(-6, 6, 25, dtype=torch.float64)  # offsets of a user
NOBODY = torch.zeros(1, dtype=torch.float64)  # the offset where there are no users
EVERY = 2  # a layer is fitted on every second of them: enough, and twice as fast
PRIOR_SD = {"shift": 2.0, "mix": 1.0, "weight": 1.0, "log_sd": 1.0, "power": 3.0}


@dataclass(frozen=True)
class ContextLayer:
    """Propensity logits that depend on the context, for K signals.

    Attributes:
        shift: What is added to the logits, of shape (K,).
        mix: How each signal mixes the base logits of all, of shape (K, K).
        weight: Weights of the columns, of shape (K, C).
        sd: The standard deviation of the users' offsets, of shape (); 0 without users.
        power: The power in [0, 1] with which the presence of actions counts as a sign of activity, of shape ().
        free: Whether the propensity of a signal may move: its design is not "known"; of shape (K,).
    """

    shift: Tensor
    mix: Tensor
    weight: Tensor
    sd: Tensor
    power: Tensor
    free: Tensor

    def logits(self, base: Tensor, columns: Tensor) -> Tensor:
        """Return propensity logits (N, K) of a user with the offset 0.

        Args:
            base: Base logits of shape (N, K).
            columns: Columns of shape (N, C).
        """
        return torch.where(self.free, self.mixed(base) + columns @ self.weight.T, base)

    def mixed(self, base: Tensor) -> Tensor:
        """Return the logits (N, K) without the part of the context, given base logits (N, K)."""
        return base @ self.mix.T + self.shift

    def log_prior(self) -> Tensor:
        """Return the logarithms of the prior probabilities of the offsets on the grid, of shape (Q,)."""
        log_density = -(GRID**2) / (2 * self.sd.clamp(min=1e-3) ** 2)
        return log_density - torch.logsumexp(log_density, 0)


@dataclass(frozen=True)
class ContextRows:
    """What a layer reads of N rows: float64, on the CPU.

    Attributes:
        base: Base logits of shape (N, K).
        columns: Columns of shape (N, C).
        order: What is added to the logits where the signal before a follower acted, of shape (N, K).
        feedback: Feedback of shape (N, K): 1 acted, 0 silent, -1 not recorded.
        side: The polarity of each signal, of shape (K,).
        free: Whether the propensity of a signal may move (bool), of shape (K,).
        proves: Whether an action of the signal would prove its side (bool), of shape (N, K): it is no misclick.
        proven: The side that is proven, 1 or -1, or 0; of shape (N,).
        labelled: Whether a label proves it (bool), of shape (N,).
        weight: Row weights of shape (N,).
        user: The number of the user, from 0, of shape (N,).
    """

    base: Tensor
    columns: Tensor
    order: Tensor
    feedback: Tensor
    side: Tensor
    free: Tensor
    proves: Tensor
    proven: Tensor
    labelled: Tensor
    weight: Tensor
    user: Tensor

    def subset(self, rows: Tensor) -> ContextRows:
        """Return the rows that an index selects: row numbers, or a mask of shape (N,)."""
        names = ("base", "columns", "order", "feedback", "proves", "proven", "labelled", "weight", "user")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def patterns(self, logits: Tensor, offsets: Tensor) -> Tensor:
        """Return the log likelihood (N, Q) of the actions of proven rows; 0 elsewhere.

        Args:
            logits: Logits (N, K) of a user with the offset 0, where the signal before a follower is silent.
            offsets: Offsets of users of shape (Q,).
        """
        logits, moved = _bounded(logits), _bounded(logits + self.order)
        factor, rest = offsets.exp(), torch.ones(1, dtype=torch.float64)
        some = torch.zeros(len(logits), len(offsets), dtype=torch.float64)  # odds that an action proves the row
        acted, steps = torch.zeros(len(logits), dtype=torch.float64), torch.zeros(len(logits), dtype=torch.float64)
        for k in range(logits.shape[1]):  # faster than sums over K
            own, times = (self.side[k] == self.proven) & (self.feedback[:, k] >= 0), factor ** self.free[k]
            hit = own & (self.feedback[:, k] == 1)
            acted, steps = acted + moved[:, k] * hit, steps + (hit & self.free[k])
            odds = torch.outer(logits[:, k].exp() * (own & self.proves[:, k]), times)
            some = some + odds * (1 + some)
            if not self.proves[:, k].all() or self.order[:, k].any():  # silence has another chance than no proof
                rest = rest * (1 + torch.outer(moved[:, k].exp() * own, times)) / (1 + odds)
        some = some + (self.labelled | (self.proven == 0)).double()[:, None]  # such rows need no action
        return acted[:, None] + torch.outer(steps, offsets) - torch.log(some * rest)

    @torch.no_grad()
    def presence(self, logits: Tensor, reward: Tensor) -> Tensor:
        """Return the log likelihood (N, Q) that a row has an action that proves it, or none, by its user's offset.

        Args:
            logits: Propensity logits (N, K) of a user with the offset 0.
            reward: Reward logits of shape (N,).
        """
        found = torch.empty(len(logits), len(GRID), dtype=torch.float64)
        odds = _bounded(logits).exp() * ((self.feedback >= 0) & self.proves)
        preferred, not_preferred = torch.sigmoid(reward), torch.sigmoid(-reward)
        for q, offset in enumerate(GRID):
            some = torch.zeros(2, len(logits), dtype=torch.float64)  # odds that an action proves either side
            for k, side in enumerate(self.side.tolist()):
                some[int(side < 0)] += odds[:, k] * (offset.exp() if self.free[k] else 1.0) * (1 + some[int(side < 0)])
            none = preferred / (1 + some[0]) + not_preferred / (1 + some[1])
            acted = torch.where(
                self.proven > 0, preferred * some[0] / (1 + some[0]), not_preferred * some[1] / (1 + some[1])
            )
            found[:, q] = torch.where(self.proven == 0, none, acted)
        return found.clamp_(min=1e-300).log_().mul_(~self.labelled[:, None])


@dataclass(frozen=True)
class Presence:
    """`ContextRows.presence` of rows that are asked for: of all rows of a large log it would fill the memory.

    Attributes:
        rows: N rows.
        logits: Propensity logits (N, K) of a user with the offset 0.
        reward: Reward logits of shape (N,).
    """

    rows: ContextRows
    logits: Tensor
    reward: Tensor

    def __getitem__(self, some: Tensor) -> Tensor:
        """Return the presence (n, Q) in the rows that an index selects: row numbers, or a mask of shape (N,)."""
        return self.rows.subset(some).presence(self.logits[some], self.reward[some])


def _bounded(logits: Tensor) -> Tensor:
    """Return logits within -100 and 30, of which products of odds neither overflow nor vanish."""
    return logits.clamp(-100, 30)


def by_group(values: Tensor, group: Tensor) -> Tensor:
    """Return the sums (G, Q) of values (N, Q) over the rows of each group, of shape (N,)."""
    return values.new_zeros(int(group.max()) + 1, values.shape[1]).index_add_(0, group, values)


def fit_layer(
    rows: ContextRows, presence: Tensor | Presence | None, picked: Tensor, start: ContextLayer | None = None
) -> ContextLayer:
    """Fit a layer to the patterns of some proven rows.

    Args:
        rows: N rows.
        presence: `ContextRows.presence` of all rows (N, Q), or a `Presence`; None to fit no offsets of users.
        picked: The rows to fit to, a mask of shape (N,), with all rows of a user or none. Those that are not proven
            count by their presence alone.
        start: Where to start; its columns are the first of the rows' own. None means at the base logits.
    """
    picked_proven = picked & (rows.proven != 0)
    part = rows.subset(picked_proven)
    signals, columns = part.base.shape[1], part.columns.shape[1]
    shapes = {"shift": (signals,), "mix": (signals, signals), "weight": (signals, columns), "log_sd": (), "power": ()}
    parameters = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    mean = part.base.mean(0)
    if start is not None:
        mix = start.mix - torch.eye(signals)
        more = torch.zeros(signals, columns - start.weight.shape[1], dtype=torch.float64)
        parameters |= {"shift": start.shift + mix @ mean, "mix": mix, "weight": torch.cat([start.weight, more], 1)}
        if start.sd > 0:
            parameters |= {"log_sd": start.sd.log(), "power": torch.logit(start.power.clamp(0.02, 0.98))}
    if presence is None:
        parameters |= {"log_sd": torch.tensor(-torch.inf), "power": torch.tensor(-torch.inf)}
    else:
        number, user = torch.unique(part.user, return_inverse=True)
        own, whose = torch.unique(rows.user[picked], return_inverse=True)
        present = by_group(presence[picked][:, ::EVERY] * rows.weight[picked, None], whose)
        present = present[torch.searchsorted(own, number)]

    def layer() -> ContextLayer:
        mix = torch.eye(signals, dtype=torch.float64) + parameters["mix"]
        sd, power = parameters["log_sd"].exp(), torch.sigmoid(parameters["power"])
        shift = parameters["shift"] - parameters["mix"] @ mean
        return ContextLayer(shift, mix, parameters["weight"], sd, power, rows.free)

    def loss() -> Tensor:
        now = layer()
        logits = now.logits(part.base, part.columns)
        if presence is None:
            found = (part.patterns(logits, NOBODY)[:, 0] * part.weight).sum()
        else:
            each = part.patterns(logits, GRID[::EVERY]) * part.weight[:, None]
            prior = now.log_prior()[::EVERY] + now.power * present
            found = (torch.logsumexp(by_group(each, user) + prior, 1) - torch.logsumexp(prior, 1)).sum()
        penalty = sum((parameters[name] ** 2).sum() / (2 * PRIOR_SD[name] ** 2) for name in fitted)
        return (penalty - found) / part.weight.sum()

    fitted = [name for name, value in parameters.items() if value.numel() and torch.isfinite(value).all()]
    fit_map([parameters[name] for name in fitted], loss, iterations=60, tolerance=1e-6)  # of a loss a row
    with torch.no_grad():
        return layer()


@torch.no_grad()
def signs(layer: ContextLayer, rows: ContextRows, presence: Tensor) -> Tensor:
    """Return the log likelihood (N, Q) of all that each row says about the offset of its user."""
    found = layer.power * presence
    proven = rows.proven != 0
    part = rows.subset(proven)
    found[proven] += part.patterns(layer.logits(part.base, part.columns), GRID)
    return found * rows.weight[:, None]


class ContextLogits(NamedTuple):
    """Propensity logits of N rows, each given its context and the other rows of its user.

    Attributes:
        pattern: Logits (N, K) by the chain rule: each given the signals before it in the row. The product of their
            likelihoods is that of the whole pattern, with the offset integrated out; it is what a loss has to read.
        alone: Logits (N, K) of each signal by itself.
    """

    pattern: Tensor
    alone: Tensor


@torch.no_grad()
def context_logits(layer: ContextLayer, rows: ContextRows, said: Tensor | None) -> ContextLogits:
    """Return the propensity logits of rows under a layer, each given the other rows of its user.

    Args:
        layer: The layer.
        rows: N rows.
        said: Their `signs`, or None if the layer has no offsets.
    """
    logits = layer.logits(rows.base, rows.columns) + rows.order
    if said is None:
        return ContextLogits(logits, logits)
    before = torch.softmax(layer.log_prior() + by_group(said, rows.user)[rows.user] - said, 1)
    pattern, alone = logits.clone(), logits.clone()
    for side in (1, -1):
        now = before
        for k in torch.nonzero((rows.side == side) & rows.free)[:, 0].tolist():
            m = torch.sigmoid(logits[:, k, None] + GRID)
            pattern[:, k], alone[:, k] = logit((now * m).sum(1)), logit((before * m).sum(1))
            acted = rows.feedback[:, k, None]
            now = now * torch.where(acted == 1, m, torch.where(acted == 0, 1 - m, 1.0))
            now = now / now.sum(1, keepdim=True)
    return ContextLogits(pattern, alone)


@torch.no_grad()
def pattern_score(layer: ContextLayer, rows: ContextRows, presence: Tensor | None) -> Tensor:
    """Return the log likelihood (U,) of the patterns of each user's proven rows, given that they are proven."""
    logits = layer.logits(rows.base, rows.columns)
    if presence is None:
        return by_group(rows.patterns(logits, NOBODY) * rows.weight[:, None], rows.user)[:, 0]
    each = by_group(rows.patterns(logits, GRID) * rows.weight[:, None], rows.user)
    prior = layer.log_prior() + layer.power * by_group(presence * rows.weight[:, None], rows.user)
    return torch.logsumexp(each + prior, 1) - torch.logsumexp(prior, 1)


def logit(probability: Tensor) -> Tensor:
    """Return the logits of probabilities, of 0 and 1 as well."""
    return torch.logit(probability.clamp(1e-9, 1 - 1e-9))
