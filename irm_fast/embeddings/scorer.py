"""`implicit_scorer`: how scikit-learn chooses between models by a log of feedback alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator

from irm_fast.embeddings import given


class ImplicitScorer(BaseEstimator):
    """The mean log-likelihood of held-out feedback, as a scorer of scikit-learn: the higher, the better.

    `GridSearchCV(model, grid, scoring=irm_fast.implicit_scorer)` takes feedback of shape (N,), which is one signal, or
    (N, K). Without it, a search with feedback of shape (N,) ranks models by their AUROC for that feedback, which is the
    naive objective: it rewards what makes users act, not what pleases them. With feedback of shape (N, K) a search uses
    this likelihood by default.

    A likelihood can choose between settings of the reward and of training (`hidden_layers`, `learning_rate`,
    `weight_decay`, `propensity_sd`), and with two or more signals between propensity designs. It must not choose

    - between propensity designs of a single signal: every split of the action rate into preference and propensity
      explains such a log equally well, and held-out likelihood has preferred the wrong one; labels choose there
      (`score` with clean preferences). Known propensities are no such split, and can be judged;
    - a `misclick_rate` or `polarity`, which a log of two signals does not identify;
    - between models of other signals, or of other rows: their likelihoods are of other data.

    What beside `X` and `y` a search hands on:

    - `GridSearchCV(model, grid, scoring=irm_fast.implicit_scorer, cv=GroupKFold(5)).fit(X, y, groups=users)` keeps the
      rows of a user together between the folds of the search. The `groups` reach the splitter alone: with `users=users`
      in addition the fits know the users, and hold whole users out within their own part.
    - Without metadata routing, arguments of `fit` reach the fits alone, and `sample_weight` in some versions of
      scikit-learn the scorer too. The propensity design "known" and `propensity_features` need routing, since the
      held-out rows have theirs: `sklearn.set_config(enable_metadata_routing=True)`, and
      `model.set_fit_request(propensity_features=True, users=True, groups=True)` with what the search is given.
      (`groups=False` keeps them from the fits.) This scorer asks by itself for all that it reads.
    - Unknown feedback is written as -1 in a search, since scikit-learn refuses NaN there, unless `cv` is a splitter
      that does not read `y`, such as `KFold(5)`.

    Examples:
        >>> import numpy as np, irm_fast
        >>> from sklearn.model_selection import cross_val_score
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(300, 4))
        >>> copied = (X[:, 0] + rng.normal(size=300) > 0) & (rng.random(300) < 0.6)
        >>> model = irm_fast.EmbeddingRewardModel(hidden_layers=(), propensity_design="constant", random_state=0)
        >>> scores = cross_val_score(model, X, copied, scoring=irm_fast.implicit_scorer, cv=2)
        >>> bool((scores < 0).all())
        True
    """

    __metadata_request__score = dict.fromkeys(
        (
            *("sample_weight", "propensity", "propensity_features", "preference"),
            *("users", "sessions", "times"),
        ),
        True,
    )

    def __call__(self, estimator: Any, X: ArrayLike, y: ArrayLike, **more: Any) -> float:
        """Return `score`, by which the routing of scikit-learn knows what a scorer reads."""
        return self.score(estimator, X, y, **more)

    @staticmethod
    def score(estimator: Any, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, **more: Any) -> float:
        """Return the mean log-likelihood of feedback, in nats a row.

        Args:
            estimator: A fitted `EmbeddingRewardModel`, or a pipeline that ends in one.
            X: Embeddings of shape (N, D).
            y: Feedback of shape (N,) or (N, K).
            sample_weight: Row weights of shape (N,). None means 1.
            more: Other keywords of `EmbeddingRewardModel.score`.
        """
        known = {name: value for name, value in {"sample_weight": sample_weight, **more}.items() if value is not None}
        return float(estimator.score(X, _columns(y), **known))

    def _accept_sample_weight(self) -> bool:
        """Tell searches over several scores that weights are read; scikit-learn asks each scorer."""
        return True


def _columns(y: Any) -> Any:
    """Return feedback as a frame or array of shape (N, K), from shape (N,) or (N, K)."""
    if hasattr(y, "to_frame"):  # a series, whose name is that of the signal
        return y.to_frame()
    y = given.plain(y)
    return np.asarray(y)[:, None] if np.ndim(y) == 1 else y


implicit_scorer = ImplicitScorer()
