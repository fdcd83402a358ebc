"""`EmbeddingRewardModel`: a reward model on frozen embeddings, with the interface of a scikit-learn estimator."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from irm_fast.diagnostics.subject import Check
from irm_fast.embeddings import saved
from irm_fast.embeddings.fit import fit_model
from irm_fast.embeddings.fitted import Fitted
from irm_fast.embeddings.inputs import Inputs
from irm_fast.embeddings.observed import Observed, check_actions, observe, warn_of_unread
from irm_fast.embeddings.optimize import Training, choose_device
from irm_fast.embeddings.predictions import Predictions
from irm_fast.embeddings.progress import Progress
from irm_fast.embeddings.scripts import without_scripts
from irm_fast.embeddings.settings import check_settings, deviations
from irm_fast.models.processes import is_first, warned_once


class EmbeddingRewardModel(Predictions):
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
            "constant"; with fewer, "features" if there are `propensity_features`, which is then assumed.
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
        groups: Sequence | np.ndarray | None = None,
        label_probability: ArrayLike | None = None,
    ) -> EmbeddingRewardModel:
        """Fit to a log of N rows and K signals. If the fit is interrupted, the model keeps its earlier state.

        Args:
            X: Embeddings of the responses, of shape (N, D); converted to float32. Here and below, arrays may be of
                numpy or torch, lists, or frames and series of pandas or polars. Embeddings larger than memory: a
                memory-mapped array; or a list of arrays and of paths of .npy or .safetensors files (a tensor named
                "embeddings"), a folder of such files or a pattern, one after the other in the order of the numbers in
                their names. Linear heads pass over them, in a torchrun each process over its own rows; see
                docs/how/training.md.
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
