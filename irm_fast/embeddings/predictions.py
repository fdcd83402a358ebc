"""What a fitted estimator on embeddings says of rows: rewards, intervals, propensities, actions, and their quality."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import roc_auc_score
from sklearn.utils.validation import check_is_fitted

from irm_fast.data.signals import action_rate
from irm_fast.embeddings import given
from irm_fast.embeddings.candidates import disagreement
from irm_fast.embeddings.declared import check_columns, warn_of_feedback
from irm_fast.embeddings.inputs import Inputs
from irm_fast.embeddings.objective import log_likelihood
from irm_fast.embeddings.observed import observe
from irm_fast.embeddings.standardised import Standardised
from irm_fast.embeddings.uncertainty import deviation


class Predictions(ClassifierMixin, BaseEstimator):
    """The methods of `EmbeddingRewardModel` that read a fit, in the interface of a classifier of scikit-learn."""

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """Return reward logits (float32) of shape (N,): the log odds that each response is preferred.

        Args:
            X: Embeddings of shape (N, D), in any form that `fit` takes.

        Raises:
            NotFittedError: The model is not fitted.
            ValueError: `X` does not have D columns, or a value is not finite or so large that its logit is not.
        """
        check_is_fitted(self)
        return self._fitted.reward_logits(self._inputs(X)).cpu().numpy()

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Return probabilities (float64) of shape (N, 2): that each response is not preferred, and that it is.

        Args:
            X: Embeddings of shape (N, D).

        Raises:
            NotFittedError: The model is not fitted.
            ValueError: As in `decision_function`.
        """
        logit = self.decision_function(X).astype(np.float64)
        return np.exp(-np.logaddexp(0, np.column_stack([logit, -logit])))

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Return integers of shape (N,): 1 where the response is more likely preferred than not, else 0.

        Args:
            X: Embeddings of shape (N, D).

        Raises:
            NotFittedError: The model is not fitted.
            ValueError: As in `decision_function`.
        """
        preferred = self.decision_function(X) > 0
        return self.classes_[preferred.astype(int)]

    def predict_interval(self, X: ArrayLike, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Return intervals of the reward logits that contain the logit of the true reward with a given probability.

        They show the sampling uncertainty alone: how far another log of this size would move the reward, where the
        reward is linear and the assumptions hold. Rows of one user, or of one of the `groups`, may depend on each
        other. Whether the reward is identified is another question, which `diagnosis_` answers: a broken assumption can
        move rewards by more than these intervals. `embeddings.uncertainty` has the method.

        Args:
            X: Embeddings of shape (N, D).
            level: The probability, in (0, 1).

        Returns:
            The lower and the upper ends (float32), each of shape (N,), `decision_function` in the middle.

        Raises:
            NotFittedError: The model is not fitted.
            ValueError: As in `decision_function`; `level` is out of range; the reward is a network; or the model was
                saved by a version without intervals.
        """
        check_is_fitted(self)
        if not 0 < level < 1:
            raise ValueError(f"level: got {level!r}; expected a probability above 0 and below 1")
        inputs, factor = self._inputs(X), self._fitted.reward.known_factor()
        middle = inputs.map(lambda _, some: self._fitted.reward.logits(some))
        half = NormalDist().inv_cdf((1 + level) / 2) * inputs.map(lambda _, some: deviation(some, factor))
        return (middle - half).cpu().numpy(), (middle + half).cpu().numpy()

    def predict_disagreement(self, X: ArrayLike) -> np.ndarray:
        """Return how far the answers that the log allows differ on each response: where a label says most.

        With one signal, they are candidate splits into preference and propensity, whose scales are open: it is the
        standard deviation between their probabilities of preference, of logits standardised over the rows of `X`. With
        more, it is that of the reward logit in redraws of the log; of networks, between those of the folds.

        Args:
            X: Embeddings of shape (N, D).

        Returns:
            Standard deviations (float32) of shape (N,).

        Raises:
            NotFittedError: The model is not fitted.
            ValueError: As in `decision_function`, or the model was saved by a version without candidates and intervals.
        """
        check_is_fitted(self)
        return disagreement(self._fitted.reward, self._fitted.candidates, self._inputs(X)).cpu().numpy()

    def check_has_intervals(self) -> None:
        """Raise ValueError as `predict_interval` does if the reward is a network or of a version without intervals."""
        check_is_fitted(self)
        self._fitted.reward.known_factor()

    def predict_propensity(
        self,
        X: ArrayLike,
        propensity_features: ArrayLike | None = None,
        users: Sequence | None = None,
        sessions: Sequence | None = None,
        times: ArrayLike | None = None,
    ) -> np.ndarray:
        """Return the propensities: the probability that a user acts if the response is on the signal's side.

        The rows are taken to be later than those of `fit`: a user is as active as all his rows of `fit` say.

        Args:
            X: Embeddings of shape (N, D).
            propensity_features: Numbers of shape (N, F) if `fit` was given them, else None.
            users: N user names, None where unknown. An unknown user is as active as a user drawn at random.
            sessions: N names of sessions, None where unknown.
            times: N times, as in `fit`. Times after those of `fit` count as the last of them.

        Returns:
            Probabilities of shape (N, K), NaN for signals of the design "known".

        Raises:
            NotFittedError: The model is not fitted.
            ValueError: As in `decision_function`, features were given to only one of `fit` and this method, or an
                argument has a wrong shape.
        """
        check_is_fitted(self)
        logits = self._fitted.propensity_logits(self._inputs(X), propensity_features, users, sessions, times)
        return np.where(self._fitted.known, np.nan, torch.sigmoid(logits).cpu().numpy())

    def predict_action_proba(
        self,
        X: ArrayLike,
        propensity_features: ArrayLike | None = None,
        propensity: ArrayLike | None = None,
        users: Sequence | None = None,
        sessions: Sequence | None = None,
        times: ArrayLike | None = None,
    ) -> np.ndarray:
        """Return the probability that each signal acts.

        A log shows directly what this predicts, so it is identified where P(preferred) is not: any right split of it
        into preference and propensity gives the same probabilities. Held-out rows check it; see
        `diagnostics.metrics.operating_points` for what hiding the responses that please least would cost.

        Args:
            X: Embeddings of shape (N, D).
            propensity_features: Numbers of shape (N, F) if `fit` was given them, else None.
            propensity: Known propensities of shape (N, K), which signals of the design "known" read.
            users: N user names, None where unknown. None means that all are.
            sessions: N names of sessions, as the users.
            times: N times, as in `fit`. None means that all are unknown.

        Returns:
            Probabilities (float64) of shape (N, K), NaN where the design is "known" and the propensity not given.

        Raises:
            NotFittedError: The model is not fitted.
            ValueError: As in `predict_propensity`, or a known propensity is not in (0, 1].
        """
        m = self.predict_propensity(X, propensity_features, users, sessions, times)
        if propensity is not None:
            m = np.where(self._fitted.known, given.probabilities("propensity", propensity, m.shape), m)
        signals = self._fitted.signals
        sides = self.predict_proba(X)
        own = sides[:, [int(sign > 0) for sign in signals.polarity]]
        return action_rate(own, m, np.array(signals.misclick_rate))

    def score(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        propensity: ArrayLike | None = None,
        propensity_features: ArrayLike | None = None,
        preference: ArrayLike | None = None,
        users: Sequence | None = None,
        sessions: Sequence | None = None,
        times: ArrayLike | None = None,
    ) -> float:
        """Return how well the model ranks clean preferences, or explains feedback, by the shape of `y`.

        For `y` of shape (N,) it is the AUROC of the reward against `y` as clean preferences. Feedback of one signal has
        this shape too, and its AUROC is the naive objective, which prefers a reward of what makes users act: give
        feedback the shape (N, 1), or use `irm_fast.implicit_scorer`.

        For `y` of shape (N, K), also (N, 1), it is the mean log-likelihood of the feedback, in nats a row: minus the
        `implicit_rm_loss` of the reward and the propensities. It is a fair judge on rows that the fit has not seen.
        `implicit_scorer` says what it must not choose.

        Args:
            X: Embeddings of shape (N, D).
            y: Preferences of shape (N,), 1 or 0, rows of -1 or unknown are left out; or feedback of shape (N, K), as in
                `fit`.
            sample_weight: Row weights of shape (N,). None means 1.
            propensity: Known propensities of shape (N, K), which the design "known" requires. This and what follows are
                read for feedback alone.
            propensity_features: Numbers of shape (N, F) if `fit` was given them, else None.
            preference: Explicit preferences of shape (N,), whose likelihood counts too: 1, 0, or -1 unknown.
            users: N user names, None where unknown. None means that all are.
            sessions: N names of sessions, as the users.
            times: N times, as in `fit`. None means that all are unknown.

        Raises:
            NotFittedError: The model is not fitted.
            ValueError: As in `predict_propensity`, `y` has other columns than in `fit` or no known preference, or a
                row has evidence for both sides.
        """
        check_is_fitted(self)
        if np.ndim(y) < 2:  # type: ignore[arg-type]
            return self._auroc(X, y, sample_weight)
        signals, x = self._fitted.signals, self._inputs(X)
        check_columns(y, signals.names)
        observed = observe(
            len(x),
            y,
            design=self.propensity_designs_,
            polarity=signals.polarity,
            misclick_rate=signals.misclick_rate,
            propensity=propensity,
            features=propensity_features,
            preference=preference,
            weight=sample_weight,
            contradictions=self.contradictions,
        )
        logits = self._fitted.propensity_logits(x, propensity_features, users, sessions, times)
        return log_likelihood(self._fitted.reward_logits(x), logits, observed)

    def _auroc(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None) -> float:
        """Return the AUROC of the reward against preferences (N,), without the rows whose preference is unknown."""
        logit = self.decision_function(X)
        warn_of_feedback(y, self.signals_)
        preference, weight = given.ternary("y", y, logit.shape), given.weights(sample_weight, len(logit))
        known = preference >= 0
        if not known.any():
            raise ValueError("y: every preference is unknown; expected 1 and 0, or feedback of shape (N, K)")
        return float(roc_auc_score(preference[known], logit[known], sample_weight=weight[known]))

    def _inputs(self, X: ArrayLike) -> Standardised:
        """Validate embeddings (N, D) and standardise them, on the device of the model."""
        return Inputs.to_predict(X, self, self._fitted.n_features).standardised(self._fitted.scaler)

    def __sklearn_tags__(self) -> Any:
        """Return the tags of scikit-learn: a binary classifier."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags
