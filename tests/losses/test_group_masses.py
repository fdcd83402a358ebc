"""The shares of the four groups are means of posteriors, weighted by the rows that record the signal."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from irm_fast.losses.group_masses import group_sums, shares
from irm_fast.losses.implicit import stratify

OPTIONS = {"polarity": (1, 1), "misclick_rate": (0.0, 0.0)}


def test_shares_are_those_of_the_definition():
    """Silent rows at logits of 0 are a third each of what is left; an action is by an active, pleased user."""
    feedback = torch.tensor([[1, -1], [0, -1], [0, -1]])
    sums = group_sums(torch.zeros(3), torch.zeros(3, 2), feedback, torch.ones(3), OPTIONS)
    assert shares(("copy", "never"), sums) == {"copy": pytest.approx([1 / 3, 2 / 9, 2 / 9, 2 / 9])}


def test_weights_count_and_batches_add_up():
    torch.manual_seed(0)
    reward, propensity = torch.randn(40), torch.randn(40, 2)
    feedback, weight = torch.randint(-1, 2, (40, 2)), torch.randint(0, 4, (40,)).float()
    preference = torch.where(feedback[:, 0] == 1, 1, -1)
    groups = stratify(reward, propensity, feedback, preference=preference, **OPTIONS).numpy()
    rows = feedback[:, 1].numpy() >= 0
    expected = np.average(groups[rows, 1], axis=0, weights=weight.numpy()[rows])
    halves = [slice(0, 25), slice(25, None)]
    sums = sum(
        group_sums(reward[h], propensity[h], feedback[h], weight[h], OPTIONS, preference=preference[h]) for h in halves
    )
    found = shares(("copy", "share"), sums)["share"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.abs(found - groups[rows, 1].mean(0)).max() > 1e-3  # without weights it is something else


def test_rows_that_contradict_themselves_are_left_out():
    """An action on a signal of pleasure without misclicks, and a label that the row displeased."""
    feedback, preference = torch.tensor([[1], [0]]), torch.tensor([0, -1])
    options = {"polarity": (1,), "misclick_rate": (0.0,)}
    sums = group_sums(torch.zeros(2), torch.zeros(2, 1), feedback, torch.ones(2), options, preference=preference)
    assert shares(("copy",), sums) == {"copy": pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])}
