"""Signals that follow another: a share that is possible after a copy."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from irm_fast.embeddings.declared import order_of
from irm_fast.embeddings.estimator import EmbeddingRewardModel
from tests.embeddings.embedding_cases import model, sigmoid

ROWS, TEST = 8000, 4000


def funnel(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X, feedback of copy, share (only after copy) and click, and the preference; half of the responses please."""
    random = np.random.default_rng(seed)
    directions = np.random.default_rng(100).normal(size=(8, 4)) / 3
    directions[:, 1:] -= 0.6 * directions[:, :1]
    x = random.normal(size=(ROWS + TEST, 8)).astype(np.float32)
    preferred = random.random(len(x)) < sigmoid(2 * x @ directions[:, 0])
    copy, share, click = (random.random((3, len(x))) < sigmoid(1.2 * (x @ directions[:, 1:]).T - 0.5)) & preferred
    return x, np.column_stack([copy, share & copy, click]).astype(np.int8), preferred.astype(int)


def fitted(after: dict | None, columns: list[int]) -> tuple[EmbeddingRewardModel, float, float]:
    """The model, its AUROC, and the mean preference of the test rows."""
    x, feedback, preferred = funnel()
    found = model(after=after).fit(x[:ROWS], feedback[:ROWS][:, columns])
    return (
        found,
        roc_auc_score(preferred[ROWS:], found.decision_function(x[ROWS:])),
        found.predict_proba(x[ROWS:])[:, 1].mean(),
    )


def test_a_third_signal_shows_how_a_follower_depends() -> None:
    """Believed, the funnel makes preference rarer than it is; declared, it costs nothing."""
    believed, worse, low = fitted(None, [0, 1, 2])
    declared, auroc, mean = fitted({1: 0}, [0, 1, 2])
    assert low < 0.42 and abs(mean - 0.5) < 0.05 and auroc > worse + 0.005
    assert believed.diagnosis_.kind == "contradicted" and declared.diagnosis_.kind == "conditional"


def test_the_propensity_of_a_follower_is_that_whatever_came_before() -> None:
    x, feedback, preferred = funnel()
    declared = model(after={1: 0}).fit(x[:ROWS], feedback[:ROWS])
    acts = feedback[preferred == 1].mean(axis=0)
    np.testing.assert_allclose(declared.predict_propensity(x[preferred == 1]).mean(axis=0), acts, atol=0.03)


def test_without_a_third_signal_two_are_one() -> None:
    with pytest.warns(UserWarning, match="signal 2 follows signal 1, and no third signal .* taken as one signal"):
        declared, _, _ = fitted({1: 0}, [0, 1])
    assert declared.diagnosis_.kind == "not identified"


def test_saved_and_read(tmp_path) -> None:
    x, feedback, _ = funnel()
    declared = model(after={1: 0}).fit(x[:2000], feedback[:2000])
    declared.save(tmp_path)
    read = EmbeddingRewardModel.load(tmp_path)
    np.testing.assert_allclose(read.predict_propensity(x[:9]), declared.predict_propensity(x[:9]), rtol=1e-6)
    assert read.after == {1: 0}


def test_names_and_numbers() -> None:
    names = ("copy", "share", "click")
    assert order_of({"share": "copy"}, names, (1, 1, 1)) == order_of({1: 0}, names, (1, 1, 1)) == (-1, 0, -1)
    assert order_of(None, names, (1, 1, 1)) == (-1, -1, -1)


@pytest.mark.parametrize(
    ("after", "polarity", "message"),
    [
        ({"shar": "copy"}, (1, 1, 1), "no signal 'shar'; expected one of copy, share, click"),
        ({"share": "share"}, (1, 1, 1), "expected another signal of the same polarity"),
        ({"share": "copy"}, (1, -1, 1), "expected another signal of the same polarity"),
        ({"share": "copy", "copy": "click"}, (1, 1, 1), "expected that it follows none"),
        ({3: 0}, (1, 1, 1), "no signal 3"),
    ],
)
def test_refused(after: dict, polarity: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        order_of(after, ("copy", "share", "click"), polarity)
