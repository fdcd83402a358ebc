"""`EmbeddingRewardModel`: a reward model on frozen embeddings, with the manners of a scikit-learn estimator."""

from __future__ import annotations

import copy
from collections.abc import Sequence
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

from irm_fast.embeddings import saved
from irm_fast.embeddings.fit import Fitted, fit_model
from irm_fast.embeddings.observed import observe
from irm_fast.embeddings.optimize import Training, choose_device

_WHOLE = {"n_folds": 2, "batch_size": 1, "max_epochs": 1, "patience": 1}  # whole numbers, and the least of each


class EmbeddingRewardModel(ClassifierMixin, BaseEstimator):
    """Reward of a response from its embedding, learned from clicks, copies and shares.

    Propensities first, then the reward with these propensities (see `embeddings.two_step`): of two or more signals each
    shows where users were pleased, so how often the others act there is their propensity. Everything that is chosen is
    chosen by held-out implicit likelihood; clean labels are never needed. One signal alone does not identify the
    reward: `diagnosis_` says what the result rests on.

    The likelihood is that of ImplicitRM (arXiv:2603.23184, section 3), extended to several signals; the stratification
    comes from ReCRec (Lin et al., TOIS 2024, doi 10.1145/3672275).

    Args:
        hidden_layers: Widths of the networks, () for linear heads; "auto" is linear, or (128,) where that is better
            held out by more than one standard error.
        propensity_design: One design for all signals or a sequence of one for each. "constant"; "hidden", a function
            of the embedding and of `propensity_features` where given; "features", linear in these alone; "known";
            "auto" is hidden where at least 10 co-actions show it and it predicts held-out actions better than a
            constant, else constant.
        estimator: "two-step", "joint" (all propensities and a linear reward by one likelihood), or "auto": two-step
            for the signals with at least 10 co-actions, joint for the rest.
        polarity: +1 or -1 for each signal, or one for all; None is all +1.
        misclick_rate: A rate in [0, 1) for each signal, or one for all; None is 0.
        n_folds: The number of parts to hold out in turn; the model is the mean of the fits.
        batch_size: Rows per step of the networks' training (AdamW).
        learning_rate: Learning rate of the networks.
        weight_decay: Weight decay of the networks.
        max_epochs: The greatest number of passes over the rows.
        patience: Passes without a better held-out loss after which training stops.
        propensity_sd: Prior deviations of propensity logits between responses to choose from, or one.
        device: A torch device; "auto" is the accelerator, if there is one.
        random_state: As in scikit-learn.

    Attributes:
        classes_: (0, 1).
        n_features_in_: Width D of the embeddings.
        n_propensity_features_: Width F of the propensity features.
        propensity_designs_: The designs of the K signals.
        is_linear_: Whether there is no network in the model.
        coef_: (D,) weights of a linear model.
        intercept_: Bias of a linear model.
        held_out_nll_: Held-out loss per row, in natural logarithms.
        held_out_decision_: Reward logits of the rows of weight above 0, each by the part that did not see it; not
            saved.
        activity_: An `activity.Activity` where `users` showed one that the signals share, or None.
        diagnosis_: The `diagnostics.Diagnosis`.

    Examples:
        >>> import numpy as np, irm_fast
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(300, 4))
        >>> preferred = rng.random(300) < 1 / (1 + np.exp(-2 * X[:, 0]))
        >>> feedback = preferred[:, None] & (rng.random((300, 2)) < 0.6)
        >>> model = irm_fast.EmbeddingRewardModel(hidden_layers=(), random_state=0).fit(X, feedback)
        >>> model.score(X, preferred) > 0.8
        True
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
        """Fit to a log. An interrupted fit leaves the model as it was: not fitted, or with its earlier fit.

        Args:
            X: (N, D) embeddings of the responses; computed with in float32.
            y: (N,) or (N, K) feedback: 1 acted, 0 silent, -1 missing.
            propensity: (N, K) known probabilities in (0, 1], for the known design.
            propensity_features: (N, F) what propensities read beside the embedding, such as length.
            preference: (N,) explicit labels: 1, 0, -1 unknown.
            sample_weight: (N,), at least 0.
            users: (N,) names, None if unknown: measures activity that signals share, and corrects the scale for it.
            groups: (N,) names; rows of one group are held out together. Default: the users.

        Raises:
            ValueError: An argument has the wrong shape or values, a row contradicts itself, or there is no action.
        """
        # Arguments; a copy takes what scikit-learn notes while it validates
        self._check_settings()
        checked = copy.copy(self)
        embeddings: np.ndarray = validate_data(checked, X, dtype=np.float32)
        observed = observe(
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
        if not observed.weight.all():  # such a row has no part in the scale of the features and in the folds either
            embeddings, observed = embeddings[observed.weight > 0], observed.counted()

        # Fit
        fitted = fit_model(
            embeddings,
            observed,
            layers=None if isinstance(self.hidden_layers, str) else tuple(int(width) for width in self.hidden_layers),
            estimator=self.estimator,
            propensity_sds=self._propensity_sds(),
            n_folds=self.n_folds,
            training=Training(self.batch_size, self.learning_rate, self.weight_decay, self.max_epochs, self.patience),
            device=choose_device(self.device),
            random=check_random_state(self.random_state),
        )

        # Publish, all at once
        self._publish(fitted, feature_names=getattr(checked, "feature_names_in_", None))
        return self

    def _publish(self, fitted: Fitted, feature_names: np.ndarray | None = None) -> None:
        """Replace all attributes of an earlier fit by those of this one, in one assignment."""
        public: dict[str, Any] = {
            "classes_": np.array([0, 1]),
            "n_features_in_": fitted.n_features,
            "n_propensity_features_": fitted.n_propensity_features,
            "propensity_designs_": fitted.propensities.designs,
            "is_linear_": fitted.is_linear,
            "held_out_nll_": fitted.held_out_nll,
            "activity_": fitted.activity,
            "diagnosis_": fitted.diagnosis,
        }
        if fitted.held_out_decision is not None:
            public["held_out_decision_"] = fitted.held_out_decision
        if feature_names is not None:
            public["feature_names_in_"] = feature_names
        if fitted.is_linear:  # the linear reward of embeddings as they are given
            weight = fitted.reward.weight / fitted.scaler.scale
            public["coef_"] = weight.cpu().numpy()
            public["intercept_"] = float(fitted.reward.bias - (weight * fitted.scaler.mean).sum())
        kept = {name: value for name, value in self.__dict__.items() if not name.endswith("_")}
        self.__dict__ = {**kept, **public, "_fitted": fitted}

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """(N,) reward logits of (N, D) embeddings: log odds that the response is preferred."""
        check_is_fitted(self)
        return self._fitted.reward.logits(self._inputs(X)).cpu().numpy()

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """(N, 2): probabilities that the response is not preferred, and that it is."""
        logit = self.decision_function(X).astype(np.float64)
        return np.exp(-np.logaddexp(0, np.column_stack([logit, -logit])))

    def predict(self, X: ArrayLike) -> np.ndarray:
        """(N,) 1 where the response is more likely preferred than not, else 0."""
        preferred = self.decision_function(X) > 0
        return self.classes_[preferred.astype(int)]

    def predict_propensity(self, X: ArrayLike, propensity_features: ArrayLike | None = None) -> np.ndarray:
        """(N, K) chances that an active reader of the response would act; NaN for signals of the known design.

        Args:
            X: (N, D) embeddings.
            propensity_features: (N, F), if `fit` had them.

        Raises:
            ValueError: Features were given in one of `fit` and here.
        """
        check_is_fitted(self)
        scaler = self._fitted.feature_scaler
        if (propensity_features is None) != (scaler is None):
            raise ValueError(
                "propensity_features: got them in one of fit and predict_propensity; expected both or none"
            )
        features = None if scaler is None else scaler(np.asarray(propensity_features, np.float32))
        m = torch.sigmoid(self._fitted.propensities.logits(self._inputs(X), features)).cpu().numpy()
        return np.where([design == "known" for design in self.propensity_designs_], np.nan, m)

    def score(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """AUROC of the reward against clean preferences y (N,) of 0 and 1: what a reward is for is to rank."""
        return float(roc_auc_score(y, self.decision_function(X), sample_weight=sample_weight))

    def save(self, folder: str | Path) -> None:
        """Write `embedding_model.safetensors` and `embedding_model.json` to a folder. No pickle.

        Raises:
            NotFittedError: The model is not fitted.
        """
        check_is_fitted(self)
        saved.write(Path(folder), self.get_params(), self._fitted)

    @classmethod
    def load(cls, folder: str | Path) -> EmbeddingRewardModel:
        """The model that `save` wrote, on its device.

        Raises:
            ValueError: The folder holds no saved model, one of a newer format, or a damaged one.
        """
        settings, fitted = saved.read(Path(folder))
        unknown = settings.keys() - cls().get_params().keys()
        if unknown:
            raise ValueError(f"{folder}: damaged: a setting {min(unknown)!r}; expected what {saved.WRITER} wrote")
        model = cls(**settings)
        model._publish(fitted)
        return model

    def _inputs(self, X: ArrayLike) -> Tensor:
        return self._fitted.scaler(validate_data(self, X, dtype=np.float32, reset=False))

    def _propensity_sds(self) -> tuple[float, ...]:
        return tuple(np.atleast_1d(np.asarray(self.propensity_sd, float)).tolist())

    def _check_settings(self) -> None:
        for name, least in _WHOLE.items():
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
