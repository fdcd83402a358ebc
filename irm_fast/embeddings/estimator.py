"""A reward model on frozen embeddings, with the manners of a scikit-learn estimator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import roc_auc_score
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from irm_fast.diagnostics import diagnose
from irm_fast.embeddings.activity import Activity, measure
from irm_fast.embeddings.evidence import Evidence
from irm_fast.embeddings.fit_propensities import fit_propensities
from irm_fast.embeddings.fit_reward import AUTO_LAYERS, calibrated, fit_reward, propensity_shift
from irm_fast.embeddings.fit_two_step import add_networks
from irm_fast.embeddings.fitting import Training, choose_device
from irm_fast.embeddings.observed import Observed, observe
from irm_fast.embeddings.parts import Propensities, Reward, Scaler


class EmbeddingRewardModel(ClassifierMixin, BaseEstimator):
    """Reward of a response from its embedding, learned from clicks, copies and shares.

    Propensities first, then the reward with these propensities (see `embedding.two_step`): of two or more signals each
    shows where users were pleased, so how often the others act there is their propensity. Everything that is chosen is
    chosen by held-out implicit likelihood; clean labels are never needed. One signal alone does not identify the
    reward: `diagnosis_` says what the result rests on.

    Args:
        hidden_layers: widths of the networks, () for linear heads, "auto": linear, or (128,) where that is better held
            out by more than one standard error.
        propensity_design: for all signals or a sequence for each: "constant"; "hidden", a function of the embedding
            and of `propensity_features` where given; "features", linear in these alone; "known"; "auto": hidden where
            at least 10 co-actions show it and it predicts held-out actions better than a constant, else constant.
        estimator: "two-step", "joint" (all propensities and a linear reward by one likelihood), or "auto": two-step
            for the signals with at least 10 co-actions, joint for the rest.
        polarity: +1 or -1 for each signal, or one for all; None: all +1.  misclick_rate: in [0, 1), likewise.
        n_folds: parts to hold out in turn; the model is the mean of the fits.
        batch_size, learning_rate, weight_decay, max_epochs, patience: of the networks (AdamW).
        propensity_sd: prior deviations of propensity logits between responses to choose from, or one.
        device: "auto": the accelerator, if there is one.  random_state: as in scikit-learn.

    Attributes:
        classes_ (0, 1), n_features_in_, n_propensity_features_, propensity_designs_ (K names), is_linear_, diagnosis_
        (`diagnostics.Diagnosis`), held_out_nll_ (per row, in natural logarithms), held_out_decision_ (reward logits of
        the rows of weight above 0, each by the part that did not see it; not saved), and, for a linear model, coef_
        (D,) and intercept_; activity_: an `activity.Activity` where `users` showed one that the signals share, or None.
    """

    def __init__(
        self,
        hidden_layers: str | Sequence[int] = "auto",
        propensity_design: str | Sequence[str] = "auto",
        *,
        estimator: str = "auto",
        polarity: int | Sequence[int] | None = None,
        misclick_rate: float | Sequence[float] | None = None,
        n_folds: int = 5,
        batch_size: int = 256,
        learning_rate: float = 3e-4,
        weight_decay: float = 0.1,
        max_epochs: int = 60,
        patience: int = 6,
        propensity_sd: float | Sequence[float] = (1.0, 2.0),
        device: str = "auto",
        random_state: Any = None,
    ) -> None:
        self.hidden_layers = hidden_layers
        self.propensity_design = propensity_design
        self.estimator = estimator
        self.polarity = polarity
        self.misclick_rate = misclick_rate
        self.n_folds = n_folds
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.max_epochs = max_epochs
        self.patience = patience
        self.propensity_sd = propensity_sd
        self.device = device
        self.random_state = random_state

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        *,
        propensity: ArrayLike | None = None,
        propensity_features: ArrayLike | None = None,
        preference: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        users: Sequence | None = None,
        groups: Sequence | None = None,
    ) -> EmbeddingRewardModel:
        """Fit to a log.

        Args:
            X: (N, D) embeddings of the responses; computed with in float32.
            y: (N,) or (N, K) feedback: 1 acted, 0 silent, -1 missing.
            propensity: (N, K) in (0, 1], for the known design.  propensity_features: (N, F), such as length.
            preference: (N,) explicit labels: 1, 0, -1 unknown.  sample_weight: (N,), at least 0.
            users: (N,) names, None if unknown: measures activity that signals share, and corrects the scale for it.
            groups: (N,) names; rows of one group are held out together. Default: the users.

        Raises:
            ValueError: an argument has the wrong shape or values, evidence contradicts itself, or there is no action.
        """
        self._check_settings()
        embeddings: np.ndarray = validate_data(self, X, dtype=np.float32)
        seen = observe(
            len(embeddings),
            y,
            design=self.propensity_design,
            polarity=self.polarity,
            misclick_rate=self.misclick_rate,
            propensity=propensity,
            features=propensity_features,
            preference=preference,
            weight=sample_weight,
            users=users,
            groups=groups,
        )
        if not seen.weight.all():  # such a row has no part in the scale of the features and in the folds either
            embeddings, seen = embeddings[seen.weight > 0], seen.counted()
        self.classes_ = np.array([0, 1])
        self._fit(embeddings, seen)
        return self

    def _fit(self, X: np.ndarray, seen: Observed) -> None:
        device = choose_device(self.device)
        random = check_random_state(self.random_state)
        generator = torch.Generator().manual_seed(int(random.randint(2**31)))
        folds = seen.folds(self.n_folds, random)
        self._scaler = Scaler.of(X, device)
        self._feature_scaler = None if seen.features is None else Scaler.of(seen.features, device)
        x, z = self._scaler(X), self._scaled_features(seen.features)
        evidence = Evidence.of(seen, device)
        known = torch.from_numpy(seen.known_logits()).to(device)
        training = Training(self.batch_size, self.learning_rate, self.weight_decay, self.max_epochs, self.patience)
        auto = isinstance(self.hidden_layers, str)
        layers: tuple[int, ...] = AUTO_LAYERS if auto else tuple(int(width) for width in self.hidden_layers)

        def reward_given(
            propensities: Propensities, widths: str | tuple[int, ...], activity: Activity | None = None
        ) -> Reward:
            logits = propensities.logits(x, z) + known
            logits = logits if activity is None else activity.silence(logits, evidence)
            reward = fit_reward(x, self._scaler.scale, logits, evidence, folds, widths, training, generator)
            return calibrated(reward, logits, evidence)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(random.randint(2**31)))  # of new networks
            propensities, each, free = fit_propensities(
                x,
                self._scaler.scale,
                z,
                evidence,
                seen.designs,
                known,
                folds,
                estimator=self.estimator,
                sds=self._propensity_sds(),
            )
            reward = reward_given(propensities, "auto" if auto else layers)
            layers = layers if reward.networks else ()
            if free.any():
                shift = propensity_shift(reward, propensities.logits(x, z) + known, evidence, free)
                propensities = replace(propensities, bias=propensities.bias + shift)
                reward = reward_given(propensities, layers)
            if layers and each:
                propensities = add_networks(propensities, each, x, z, evidence, folds, layers, training, generator)
                reward = reward_given(propensities, layers)
            activity = measure(seen, reward.held_out, propensities.logits(x, z) + known)
            if activity is not None:
                uncorrected = reward
                propensities = replace(propensities, factor=activity.factor(propensities.designs).to(device))
                reward = reward_given(propensities, layers, activity)
                means = [float(torch.sigmoid(fit.held_out).mean()) for fit in (uncorrected, reward)]
                activity = replace(activity, mean_preference=(means[0], means[1]))
        self.activity_ = activity
        self._reward, self._propensities = reward, propensities
        self._finish(seen, (propensities.logits(x, z) + known).cpu().numpy())

    def _finish(self, seen: Observed, propensity: np.ndarray) -> None:
        """Public attributes of the fit, and its diagnosis."""
        self.propensity_designs_ = self._propensities.designs
        self.n_propensity_features_ = 0 if seen.features is None else seen.features.shape[1]
        self.is_linear_ = not (self._reward.networks or self._propensities.networks)
        self.held_out_decision_ = self._reward.held_out.cpu().numpy()
        self.held_out_nll_ = float(self._reward.losses.sum() / seen.weight.sum())
        self.__dict__.pop("coef_", None), self.__dict__.pop("intercept_", None)  # of an earlier fit
        if self.is_linear_:
            self.set_linear_attributes()
        self.diagnosis_ = diagnose(
            seen.feedback,
            polarity=seen.polarity,
            misclick_rate=seen.misclick_rate,
            propensity_design=self.propensity_designs_,
            reward_logits=self._reward.held_out.cpu().numpy(),
            propensity_logits=propensity,
            preference=seen.preference,
            weight=seen.weight,
            users=seen.users,
            fold_rewards=self._reward.each.cpu().numpy(),
        )
        self._reward = Reward(self._reward.weight, self._reward.bias, self._reward.networks)  # without the rows

    def set_linear_attributes(self) -> None:
        """`coef_` and `intercept_`: the linear reward of embeddings as they are given."""
        weight = self._reward.weight / self._scaler.scale
        self.coef_ = weight.cpu().numpy()
        self.intercept_ = float(self._reward.bias - (weight * self._scaler.mean).sum())

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """(N,) reward logits of (N, D) embeddings: log odds that the response is preferred."""
        check_is_fitted(self)
        return self._reward.logits(self._inputs(X)).cpu().numpy()

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """(N, 2): probabilities that the response is not preferred, and that it is."""
        logit = self.decision_function(X).astype(np.float64)
        return np.exp(-np.logaddexp(0, np.column_stack([logit, -logit])))

    def predict(self, X: ArrayLike) -> np.ndarray:
        """(N,) 1 where the response is more likely preferred than not, else 0."""
        preferred = self.decision_function(X) > 0
        return self.classes_[preferred.astype(int)]

    def predict_propensity(self, X: ArrayLike, propensity_features: ArrayLike | None = None) -> np.ndarray:
        """(N, K) chances that an active reader of the response would act; NaN for signals of the known design."""
        check_is_fitted(self)
        if (propensity_features is None) != (self._feature_scaler is None):
            raise ValueError(
                "propensity_features: got them in one of fit and predict_propensity; expected both or none"
            )
        z = self._scaled_features(propensity_features)
        m = torch.sigmoid(self._propensities.logits(self._inputs(X), z)).cpu().numpy()
        return np.where([design == "known" for design in self.propensity_designs_], np.nan, m)

    def score(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """AUROC of the reward against clean preferences y (N,) of 0 and 1: what a reward is for is to rank."""
        return float(roc_auc_score(y, self.decision_function(X), sample_weight=sample_weight))

    def _inputs(self, X: ArrayLike) -> Tensor:
        return self._scaler(validate_data(self, X, dtype=np.float32, reset=False))

    def _scaled_features(self, features: ArrayLike | None) -> Tensor | None:
        if features is None or self._feature_scaler is None:
            return None
        return self._feature_scaler(np.asarray(features, np.float32))

    def _propensity_sds(self) -> tuple[float, ...]:
        return tuple(np.atleast_1d(np.asarray(self.propensity_sd, float)).tolist())

    def _check_settings(self) -> None:
        whole = {"n_folds": 2, "batch_size": 1, "max_epochs": 1, "patience": 1}
        for name, least in whole.items():
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < least:
                raise ValueError(f"{name}: got {value!r}; expected a whole number from {least}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: got {self.learning_rate!r}; expected a number above 0")
        if not self._propensity_sds() or not min(self._propensity_sds()) > 0:
            raise ValueError(f"propensity_sd: got {self.propensity_sd!r}; expected numbers above 0")
        if self.estimator not in ("auto", "two-step", "joint"):
            raise ValueError(f"estimator: got {self.estimator!r}; expected auto, two-step or joint")
        if isinstance(self.hidden_layers, str) and self.hidden_layers != "auto":
            raise ValueError(f"hidden_layers: got {self.hidden_layers!r}; expected 'auto' or widths such as (128,)")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def save(self, folder: str | Path) -> None:
        """Write `embedding_model.safetensors` and `embedding_model.json` to a folder. No pickle."""
        from irm_fast.embeddings.saved import save

        check_is_fitted(self)
        save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> EmbeddingRewardModel:
        """Read what `save` wrote.

        Raises:
            ValueError: the folder holds no saved model, one of a newer format, or a damaged one.
        """
        from irm_fast.embeddings.saved import load

        return load(cls, Path(folder))
