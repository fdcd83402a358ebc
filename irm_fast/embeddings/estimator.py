"""`EmbeddingRewardModel`: a reward model on frozen embeddings, with the interface of a scikit-learn estimator."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import roc_auc_score
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from irm_fast.data.signals import action_rate
from irm_fast.diagnostics.subject import Check
from irm_fast.embeddings import given, saved
from irm_fast.embeddings.candidates import disagreement
from irm_fast.embeddings.declared import check_columns, warn_of_feedback
from irm_fast.embeddings.fit import fit_model
from irm_fast.embeddings.fitted import Fitted
from irm_fast.embeddings.inputs import Inputs
from irm_fast.embeddings.objective import log_likelihood
from irm_fast.embeddings.observed import Observed, check_actions, observe, warn_of_unread
from irm_fast.embeddings.optimize import Training, choose_device
from irm_fast.embeddings.progress import Progress
from irm_fast.embeddings.scripts import without_scripts
from irm_fast.embeddings.settings import check_settings, deviations
from irm_fast.embeddings.standardised import Standardised
from irm_fast.embeddings.uncertainty import deviation
from irm_fast.models.processes import is_first, warned_once


class EmbeddingRewardModel(ClassifierMixin, BaseEstimator):
    """A reward model on embeddings of responses, learned from implicit feedback such as clicks, copies and shares.

    The propensities are fitted first, then the reward given these propensities (see `embeddings.two_step`). With two or
    more signals, each shows some responses that users preferred; how often the other signals act on those is their
    propensity. All choices are made by held-out implicit likelihood; clean labels are never needed. A single signal
    does not identify the reward: `diagnosis_` says what the result rests on.

    The likelihood is that of ImplicitRM (arXiv:2603.23184, section 3), extended to several signals; the stratification
    comes from ReCRec (Lin et al., TOIS 2024, doi 10.1145/3672275).

    A search of scikit-learn scores feedback of shape (N, K) by held-out likelihood. It takes feedback of shape (N,) for
    clean preferences, though, by which the naive model wins: pass `scoring=irm_fast.implicit_scorer`. Its documentation
    says what a likelihood must not choose, and how groups and users travel in a search.

    Args:
        hidden_layers: Widths of the hidden layers; () for linear heads; "auto" for linear heads, or (128,) where the
            held-out loss is lower by more than one standard error.
        propensity_design: The design of all signals, one for each, or `{name: design}` with "auto" for the rest, by
            the columns of `y`: "constant"; "hidden", a function of the embedding
            and of any `propensity_features`; "features", linear in these alone; "known", given to `fit`; "auto",
            "hidden" where at least 10 co-actions show it and it predicts held-out actions better than a constant, else
            "constant".
        estimator: "two-step"; "joint", all propensities and a linear reward by one likelihood; or "auto", two-step for
            signals with at least 10 co-actions and joint for the rest.
        polarity: +1 for signals of preferred responses and -1 for signals of others: one for all, K, or
            `{name: polarity}` by the columns of `y`. Undeclared is +1, but -1 for columns named exactly thumbs_down or
            regenerate; columns with such names are warned of until they are declared.
        misclick_rate: The share in [0, 1) of active users who act although the response is not on the signal's side:
            one for all, K, or `{name: rate}` by the columns of `y`. Undeclared is 0.
        after: Signals that can follow another only, as `{"share": "copy"}` (a share is possible after a copy), by their
            names or column numbers. None means that there is no such order.
        labels_ignorable: Whether the choice of the rows with an explicit preference depends on what is known about
            them alone, not on the preference: as for rows that were drawn at random.
        contradictions: "error" to refuse rows with evidence for both sides, such as an action and a preference of 0;
            "drop" to leave them out, with a warning of their number and of the misclick rates that they imply.
        n_folds: The number of folds, at least 2; the model is the mean of the fits that leave one out.
        batch_size: Rows per gradient step of the networks. Linear heads do not use this and the next four settings.
        learning_rate: The constant step size of AdamW, from 1e-12 to 100.
        weight_decay: The decoupled weight decay of AdamW, from 0 to 1000.
        max_epochs: The largest number of passes over the training rows.
        patience: Training stops after this many passes in a row without a new lowest held-out loss.
        propensity_sd: Prior standard deviation of propensity logits between responses, from 1e-6 to 1e6: one, or
            several to choose from. The joint likelihood takes the first.
        device: The name of a torch device; "auto" is the accelerator if there is one, else the CPU.
        random_state: A seed, a `numpy.random.RandomState`, or None for the global one.
        verbose: 0 says nothing; 1 says on the standard error what was fitted, and how long each step took.

    Attributes:
        classes_: The classes 0 and 1, shape (2,).
        n_features_in_: The embedding width D.
        feature_names_in_: The column names of `X`, only if it had them; not saved.
        signals_: The names of the K signals: the columns of `y`, or "signal 1" and so on.
        n_propensity_features_: The number F of propensity features.
        propensity_designs_: The designs of the K signals, none of them "auto".
        is_linear_: Whether the model contains no network.
        coef_: Weights (float32) of shape (D,), only if the model is linear.
        intercept_: The bias, only if the model is linear.
        held_out_nll_: The held-out loss per row (a weighted mean), in nats.
        held_out_decision_: Reward logits (float32) of the rows of weight above 0 whose users are not left out, each
            from the fold model that did not see the row; not saved.
        training_propensity_: Propensities (float32) of the rows of `fit`, of shape (N, K), under which the reward was
            fitted: what its training on the same rows should hold constant. NaN where the weight is 0 or the user is
            left out; neither saved nor pickled.
        context_: What the propensities depend on beside the response: some of "time", "place" (in the session) and
            "user".
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
        after: Mapping[Any, Any] | None = None,
        labels_ignorable: bool = False,
        contradictions: str = "error",
        n_folds: int = 5,
        batch_size: int = 256,
        learning_rate: float = 3e-4,
        weight_decay: float = 0.1,
        max_epochs: int = 60,
        patience: int = 6,
        propensity_sd: float | Sequence[float] = (1.0, 2.0),
        device: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.hidden_layers = hidden_layers
        self.propensity_design = propensity_design
        self.estimator = estimator
        self.polarity = polarity
        self.misclick_rate = misclick_rate
        self.after = after
        self.labels_ignorable = labels_ignorable
        self.contradictions = contradictions
        self.n_folds = n_folds
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.max_epochs = max_epochs
        self.patience = patience
        self.propensity_sd = propensity_sd
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(
        self,
        X: Any,
        y: ArrayLike,
        *,
        propensity: ArrayLike | None = None,
        propensity_features: ArrayLike | None = None,
        preference: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        users: Sequence | None = None,
        sessions: Sequence | None = None,
        times: ArrayLike | None = None,
        groups: Sequence | None = None,
        label_probability: ArrayLike | None = None,
    ) -> EmbeddingRewardModel:
        """Fit to a log of N rows and K signals. If the fit is interrupted, the model keeps its earlier state.

        Args:
            X: Embeddings of the responses, of shape (N, D); converted to float32. Here and below, arrays may be of
                numpy or torch, lists, or frames and series of pandas or polars. Embeddings larger than memory: a
                memory-mapped array; or a list of arrays and of paths of .npy or .safetensors files (a tensor named
                "embeddings"), a folder of such files or a pattern, one after the other in the order of the numbers in
                their names. Linear heads pass over them, in a torchrun each process over its own rows; see
                docs/training.md.
            y: Feedback (bool or numbers) of shape (N,) or (N, K): 1 acted, 0 silent, -1 not recorded. None, NaN and
                `pandas.NA` are read as -1. Columns that have names name the signals.
            propensity: Known probabilities in (0, 1] of shape (N, K), which the design "known" requires.
            propensity_features: Numbers of shape (N, F) that propensities may depend on, such as the length of the
                response.
            preference: Explicit preferences of shape (N,): 1, 0, or -1 unknown, in the forms of `y`.
            sample_weight: Row weights of at least 0, of shape (N,); a weight counts as that many rows. None means 1.
            users: N user names; None, NaN or `pandas.NA` where unknown. Users who act more than others are told from
                users who are easier to please, and propensities depend on how active a user is. Users with 10 rows or
                more who act on everything, as scripts do, are left out with a warning.
            sessions: N names of sessions, as the users. Propensities may depend on the place in the session and on how
                active its user was in the rest of it.
            times: N times, as seconds since 1970 or as datetimes, NaN or NaT where unknown. Propensities may depend on
                them.
            groups: N names; the rows of a group are in one fold. None means the users.
            label_probability: The probabilities in (0, 1] with which rows were drawn for labelling, of shape (N,),
                unknown in the forms of `y`, as `irm-fast label` writes them. With one signal, labels choose how to
                split it, and each then stands for as many rows. None means that rows were drawn at random.

        Returns:
            The model itself.

        Raises:
            ValueError: A setting or argument has a wrong shape or value, embeddings are too large for float32 or in a
                file that is missing or damaged, a row has evidence for both sides, no signal acts and no preference is
                given, all rows are in one group, or "two-step" lacks co-actions.
            RuntimeError: The processes of a torchrun fit to different rows, or compute differently.
        """
        # Arguments; a copy takes what scikit-learn notes while it validates
        check_settings(self.get_params(deep=False))
        checked = copy.copy(self)
        inputs = Inputs.to_fit(X, checked)
        with warned_once() if inputs.distributed else nullcontext():
            observed = observe(
                len(inputs.rows),
                y,
                design=self.propensity_design,
                polarity=self.polarity,
                after=self.after,
                misclick_rate=self.misclick_rate,
                propensity=propensity,
                features=propensity_features,
                preference=preference,
                weight=sample_weight,
                users=users,
                sessions=sessions,
                times=times,
                groups=groups,
                label_probability=label_probability,
                contradictions=self.contradictions,
            )
            warn_of_unread(observed)
            observed, scripts = without_scripts(observed)
            counted = observed.weight > 0
            if not counted.all():  # such a row has no part in the scale of the features and in the folds either
                inputs, observed = inputs._replace(rows=inputs.rows[counted]), observed.counted()
            check_actions(observed)

            # Fit
            fitted = self._fitted_to(inputs, observed, scripts)

        # Publish, all at once
        propensity = np.full((len(counted), len(observed.signals)), np.nan, np.float32)
        propensity[counted] = fitted.training_propensity
        self._publish(fitted, feature_names=getattr(checked, "feature_names_in_", None), training_propensity=propensity)
        return self

    def _fitted_to(self, inputs: Inputs, observed: Observed, scripts: Check | None) -> Fitted:
        """Return a fit to checked arguments, by the parameters; `scripts` is what `without_scripts` returned."""
        random = check_random_state(self.random_state)
        inputs.agree(observed, random)
        scaler = inputs.scaler(choose_device(self.device))
        inputs.warn_of_networks(self.hidden_layers)
        return fit_model(
            inputs.standardised(scaler),
            scaler,
            observed,
            layers=None if isinstance(self.hidden_layers, str) else tuple(int(width) for width in self.hidden_layers),
            estimator=self.estimator,
            propensity_sds=deviations(self.propensity_sd),
            n_folds=self.n_folds,
            training=Training(self.batch_size, self.learning_rate, self.weight_decay, self.max_epochs, self.patience),
            random=random,
            progress=Progress(self.verbose if is_first() or not inputs.distributed else 0),
            labels_ignorable=self.labels_ignorable,
            left_out=scripts,
        )

    def _publish(
        self,
        fitted: Fitted,
        feature_names: np.ndarray | None = None,
        training_propensity: np.ndarray | None = None,
    ) -> None:
        """Replace all attributes of an earlier fit by those of this one, in one assignment."""
        public = fitted.attributes()
        if feature_names is not None:
            public["feature_names_in_"] = feature_names
        if training_propensity is not None:
            public["training_propensity_"] = training_propensity
        kept = {name: value for name, value in self.__dict__.items() if not name.endswith("_")}
        self.__dict__ = {**kept, **public, "_fitted": replace(fitted, training_propensity=None)}

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: no propensities of the rows of `fit`."""
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name != "training_propensity_"}

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

    def save(self, folder: str | Path) -> None:
        """Write `embedding_model.safetensors` and `embedding_model.json`, without pickle.

        Args:
            folder: The folder, which is made if it does not exist.

        Raises:
            NotFittedError: The model is not fitted.
        """
        check_is_fitted(self)
        saved.write(Path(folder), self.get_params(), self._fitted)

    @classmethod
    def load(cls, folder: str | Path) -> EmbeddingRewardModel:
        """Read a model that `save` wrote, onto the device of its settings.

        Args:
            folder: The folder.

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

    def _inputs(self, X: ArrayLike) -> Standardised:
        """Validate embeddings (N, D) and standardise them, on the device of the model."""
        return Inputs.to_predict(X, self, self._fitted.n_features).standardised(self._fitted.scaler)

    def __sklearn_tags__(self) -> Any:
        """Return the tags of scikit-learn: a binary classifier."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags
