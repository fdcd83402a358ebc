"""Users who are easier to please, and who see responses of one kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from examples.identification.real_logs import draw
from irm_fast.embeddings.objective import Objective
from irm_fast.embeddings.parts import Reward
from irm_fast.embeddings.reward_step import PropensityLogits
from irm_fast.embeddings.taste import tastes
from tests.embeddings.embedding_cases import model


def test_taste_is_not_learned_as_quality() -> None:
    """Users with a taste see more of one kind: without user offsets that kind seems better (AUROC .76 for .775)."""
    log = draw(0, taste=1.5, niche=1.0, rows_a_user=40)
    users = log.arguments["users"]
    apart = model().fit(log.X, log.feedback, users=users)
    together = model().fit(log.X, log.feedback, groups=users)
    gain = [roc_auc_score(log.test_preference, found.decision_function(log.test_X)) for found in (together, apart)]
    assert gain[1] > gain[0] + 0.01
    assert apart.predict_proba(log.test_X)[:, 1].mean() == pytest.approx(0.5, abs=0.05)
    assert "user" not in apart.context_


def test_the_taste_of_a_row_is_read_off_the_other_rows() -> None:
    feedback = torch.tensor([[1, 0], [0, 0], [1, 1], [0, 0]], dtype=torch.int8)
    objective = Objective(feedback, None, torch.ones(4), (1, 1), (0.0, 0.0))
    logits = torch.zeros(4, 2)
    reward = Reward(torch.zeros(1), torch.zeros(()), (), held_out=torch.zeros(4))
    found = tastes(["a", "a", "a", None], objective, reward, PropensityLogits(logits, logits))
    expected = 0.5 * 0.75  # of each other row: preferred, and not silent by both signals
    acted = np.array([1, 2, 1])  # of the two other rows of user a
    want = np.log((acted + 1) / (2 * expected + 1))
    np.testing.assert_allclose(found, [*want, 0.0], rtol=1e-6)
    assert tastes(["a", "b", "c", None], objective, reward, PropensityLogits(logits, logits)) is None
