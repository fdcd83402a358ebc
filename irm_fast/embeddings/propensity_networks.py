"""Networks of the embeddings beside the linear propensities, where the reward is a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from irm_fast.embeddings.declared import followers
from irm_fast.embeddings.objective import Objective
from irm_fast.embeddings.optimize import Training, rows_where, train_network
from irm_fast.embeddings.parts import Network, Propensities
from irm_fast.embeddings.propensity_step import training_logits
from irm_fast.embeddings.standardised import Standardised, as_standardised
from irm_fast.embeddings.two_step import proven


def add_networks(
    propensities: Propensities,
    by_fold: Sequence[Tensor],
    embeddings: Tensor | Standardised,
    features: Tensor | None,
    objective: Objective,
    folds: np.ndarray,
    hidden_layers: Sequence[int],
    training: Training,
    generator: torch.Generator,
) -> Propensities:
    """Add networks of the embeddings to the linear propensities of each fold, trained on the same proven rows.

    Args:
        propensities: The linear propensities of all signals.
        by_fold: `ProvenFit.by_fold`.
        embeddings: Standardised embeddings of shape (N, D).
        features: Standardised propensity features of shape (N, F), or None.
        objective: The implicit loss of the rows.
        folds: Fold numbers from 0, of shape (N,).
        hidden_layers: Widths of the hidden layers.
        training: How networks are trained.
        generator: Decides the order of the rows.

    Returns:
        The propensities with one network for each fold.
    """
    x = as_standardised(embeddings)
    mask = proven(objective).float() * propensities.hidden * objective.weight[:, None]
    for follower, _ in followers(objective.after):
        mask[:, follower] = 0
    target = (objective.feedback == 1).float()
    rows = mask.any(1).cpu().numpy()
    networks = []
    for fold, (weight, feature_weight, bias) in enumerate(zip(*by_fold, strict=True)):
        linear = training_logits(Propensities(propensities.designs, weight, feature_weight, bias), x, features)

        def loss(network: Network, batch: Tensor, linear: Tensor = linear) -> Tensor:
            logits = linear.index_select(0, batch) + network(x.at(batch))
            some = mask.index_select(0, batch)
            entries = binary_cross_entropy_with_logits(logits, target.index_select(0, batch), some, reduction="sum")
            return entries / some.sum().clamp(min=1e-12)

        fitted, held_out = (rows_where(rows & part, x.device) for part in (folds != fold, folds == fold))
        network = Network(x.width, hidden_layers, len(propensities.designs)).to(x.device).zero_output()
        train_network(network, loss, fitted, held_out, training, generator)
        networks.append(network)
    return replace(propensities, networks=tuple(networks))
