"""Where the answers that a log allows differ: the rows on which a label says most.

Of one signal, these answers are candidate splits into preference and propensity, which explain the log equally well. Of
more signals, they are draws from the sampling distribution of the reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from irm_fast.embeddings.joint import sketch
from irm_fast.embeddings.observed import Observed
from irm_fast.embeddings.one_signal import MIRROR
from irm_fast.embeddings.parts import Network, Reward
from irm_fast.embeddings.problem import Problem
from irm_fast.embeddings.standardised import Standardised
from irm_fast.embeddings.uncertainty import deviation


def candidate_rewards(problem: Problem, observed: Observed) -> dict[str, Reward]:
    """Return the linear rewards of candidate splits of one signal, by name, each from one fit without labels.

    They show where candidates disagree, at a fraction of the time of a fit; `one_signal.candidates` are those that
    labels choose from.

    Args:
        problem: The rows.
        observed: The observations of the same rows.

    Returns:
        "constant", "features" if there are any, "hidden", and "mirror", in which "hidden" has preference and propensity
        exchanged. None at all where there are several signals, or the only one never acts or has a known propensity.
    """
    if len(observed.signals) > 1 or observed.designs == ("known",) or not (observed.feedback == 1).any():
        return {}
    objective = problem.objective.without_labels()
    names = ["constant", "hidden"] if problem.features is None else ["constant", "features", "hidden"]
    found = {
        name: sketch(problem.embeddings, problem.features, objective, [name], sd=problem.propensity_sds[0])
        for name in names
    }
    rewards = {name: reward for name, (reward, _) in found.items()}
    propensities, sign = found["hidden"][1], observed.polarity[0]
    return rewards | {MIRROR: Reward(sign * propensities.weight[0], sign * propensities.bias[0], ())}


@torch.no_grad()
def disagreement(reward: Reward, candidates: Mapping[str, Reward], x: Standardised) -> Tensor:
    """Return the standard deviation of each row's reward between the answers that a log allows, of shape (n,).

    Args:
        reward: The reward of the model.
        candidates: The rewards of `candidate_rewards`, whose scales a log leaves open: each is standardised over the
            rows, and compared as a probability, since a label says little where all are sure. Without any, the
            sampling distribution of the logit is read, or between networks its deviation.
        x: The standardised embeddings, of shape (n, D).

    Raises:
        ValueError: There are no candidates, and the model was saved by a version that kept no sampling distribution.
    """
    if candidates:
        each = list(candidates.values())
        logits = x.map(lambda _, some: torch.stack([candidate.logits(some) for candidate in each], 1)).T.contiguous()
        spread = logits.std(1, correction=0, keepdim=True)
        standard = (logits - logits.mean(1, keepdim=True)) / spread.clamp(min=1e-6)
        return torch.sigmoid(standard).std(0, correction=0)
    if reward.networks:
        return x.map(lambda _, some: _spread(reward.networks, some))
    factor = reward.known_factor()
    return x.map(lambda _, some: deviation(some, factor))


def _spread(networks: Sequence[Network], x: Tensor) -> Tensor:
    """Return the standard deviation between the outputs of networks, of shape (n,)."""
    return torch.stack([network(x).squeeze(1) for network in networks]).std(0, correction=0)
