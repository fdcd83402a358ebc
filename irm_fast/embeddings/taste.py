"""Taste: users differ in how easily they are pleased, and each sees responses of his own.

Where easily pleased users see responses of one kind, this kind seems better than it is. So the reward is fitted with an
offset of the user beside it: what the user's *other* rows say, z = log((A + 1) / (E + 1)), where A of them acted and E
were expected to, with propensities that know how active he is. The offset is left out of every score: a reward ranks
responses for a user drawn at random.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from irm_fast.data.groups import group_rows
from irm_fast.diagnostics.metrics import paired_difference
from irm_fast.embeddings.objective import Objective
from irm_fast.embeddings.parts import Reward
from irm_fast.embeddings.problem import Problem, Split
from irm_fast.embeddings.reward_step import PropensityLogits, calibrated

TASTE_SD = 1.0  # prior deviation of the weight of z


def without_taste(problem: Problem, split: Split, users: Sequence[Hashable | None]) -> Reward | None:
    """Fit a linear reward with the taste of the users beside it, and leave the taste out.

    Args:
        problem: The rows.
        split: Propensities, and a linear reward given these.
        users: N user names, None where unknown.

    Returns:
        The reward, calibrated for a user drawn at random; None if no user has several rows, or if their taste does not
        predict held-out rows better by more than one standard error.
    """
    z, start = tastes(users, problem.objective, split.reward, split.logits), split.reward.start
    if z is None or start is None or not z.any():
        return None
    # A further column of the embeddings, in units that give its weight the prior deviation TASTE_SD
    unit = TASTE_SD * problem.embeddings.width**0.5 / start.sd
    usual = problem.spread[torch.isfinite(problem.spread)].square().mean().sqrt()[None]
    beside = replace(problem, embeddings=problem.embeddings.beside(z * unit), spread=torch.cat([problem.spread, usual]))
    fits = [(torch.cat([units, units.new_zeros(1)]), bias) for units, bias in start.fits]
    found = beside.fit_reward(split.logits, (), start._replace(fits=fits))
    parts = (split.reward.losses, found.losses, problem.objective.weight)
    gain, error = paired_difference(*(part.cpu().numpy() for part in parts))
    if not gain > error:
        return None
    taste = found.weight[-1] * z * unit
    assert found.start is not None
    alone = replace(
        found,
        weight=found.weight[:-1],
        held_out=found.held_out - taste,
        each=found.each - taste,
        precision=torch.cat([found.precision[:-2], found.precision[-1:]]),
        start=start._replace(fits=[(units[:-1], bias) for units, bias in found.start.fits]),
    )
    return calibrated(alone, split.logits, problem.objective)


def tastes(
    users: Sequence[Hashable | None], objective: Objective, reward: Reward, logits: PropensityLogits
) -> Tensor | None:
    """Return how much easier each user is to please than others, by his other rows.

    Args:
        users: N user names, None where unknown.
        objective: The feedback of the rows.
        reward: A reward with its held-out logits.
        logits: The propensity logits under which it was fitted.

    Returns:
        Logarithms (float32) of shape (N,), 0 for a user without another row; None if no user has several rows.
    """
    user = torch.from_numpy(group_rows(users)).to(reward.held_out.device)
    count = torch.bincount(user)
    if int(count.max()) < 2:
        return None
    side = logits.held_out.new_tensor(objective.polarity)
    recorded = objective.feedback >= 0
    silent = -torch.nn.functional.softplus(logits.held_out) * recorded
    acts = [1 - torch.exp((silent * (side == sign)).sum(1)) for sign in (1, -1)]
    acted = [((objective.feedback == 1) & (side == sign)).any(1).float() for sign in (1, -1)]
    # An action of displeasure is one that a pleased user would not have made
    g = torch.sigmoid(reward.held_out)
    seen, expected = acted[0] + (acts[1] - acted[1]), g * acts[0] + g * acts[1]
    total = [torch.zeros_like(count, dtype=g.dtype).index_add_(0, user, part)[user] - part for part in (seen, expected)]
    return torch.log((total[0].clamp(min=0) + 1) / (total[1] + 1))
