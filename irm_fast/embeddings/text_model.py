"""A reward model of text: a reward of embeddings, and the frozen language model that makes the embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from irm_fast.common.warning import warn_caller
from irm_fast.data.features import text_features
from irm_fast.data.signals import RewardSpec, known_logits
from irm_fast.data.writing.manifest import refuse_damage
from irm_fast.embeddings.embedder import Embedder
from irm_fast.embeddings.saved import RECORD as ESTIMATOR_RECORD
from irm_fast.embeddings.saved import TENSORS
from irm_fast.embeddings.sentence_files import SentenceFiles
from irm_fast.embeddings.shards import Shards
from irm_fast.embeddings.store import Source
from irm_fast.losses.implicit import implicit_rm_loss
from irm_fast.models.checkpoint import save_checkpoint
from irm_fast.models.heldout import HeldOut
from irm_fast.models.passes import Passes
from irm_fast.models.record import Beside, read_record, spec_of_record, write_record
from irm_fast.models.reward_model import ImplicitRewardModel

if TYPE_CHECKING:
    from irm_fast.data.log import Log
    from irm_fast.data.messages import Messages
    from irm_fast.embeddings.estimator import EmbeddingRewardModel

SOURCE = "embeddings"  # the entry of irm_fast.json that tells such a folder from an ordinary checkpoint


@dataclass
class EmbeddedRewardModel:
    """A fitted estimator and the language model whose embeddings it reads, which is loaded when text must be embedded.

    Attributes:
        estimator: The fitted reward model on embeddings.
        spec: The names and polarities of the signals, and the propensity design.
        source: How the embeddings are made.
        position: The position that propensities take for one that is not known, see `typical_position`; None if they
            read no positions.
        precision: The precision of the language model. None: the one in which the embeddings were made.
    """

    estimator: EmbeddingRewardModel
    spec: RewardSpec
    source: Source
    position: float | None = None
    precision: str | None = None

    @property
    def is_checkpoint(self) -> bool:
        """Whether a sequence classifier can hold the reward: it is linear in the state of a decoder's last token."""
        last = (self.source.kind, self.source.pooling, self.source.normalize) == ("decoder", "last", False)
        return self.estimator.is_linear_ and last

    @property
    def context(self) -> tuple[str, ...]:
        """The parts of the context that the propensities depend on: some of "time", "place" and "user"."""
        context: tuple[str, ...] = self.estimator.context_
        return context

    @property
    def reward_bias(self) -> Tensor:
        """What to add to `rewards` before the sigmoid, of shape (); 0 unless the reward is a checkpoint."""
        return torch.tensor(self.estimator.intercept_ if self.is_checkpoint else 0.0)

    @cached_property
    def embedder(self) -> Embedder:
        """The language model, loaded at first use.

        Raises:
            ValueError: It cannot be loaded, or its weights or tokenizer are not those that made the embeddings.
        """
        return open_source(replace(self.source, precision=self.precision or self.source.precision))

    def rewards(
        self, conversations: Sequence[Messages], passes: Passes, lower: float | None = None
    ) -> dict[str, np.ndarray]:
        """Return `reward` (float32) of shape (N,), without `reward_bias`.

        Args:
            conversations: N lists of messages.
            passes: How they go through the language model.
            lower: A probability in (0, 0.5), with which the true reward lies below `reward_lower` (N,), which is
                returned, too; None returns rewards alone.

        Raises:
            ValueError: As `embedder` and `check_lower`.
        """
        self.check_lower(lower)
        vectors, _ = self.embedder.embed(conversations, passes)
        bias = self.reward_bias.numpy()
        found = {"reward": self.estimator.decision_function(vectors.numpy()) - bias}
        if lower is not None:
            found["reward_lower"] = self.estimator.predict_interval(vectors.numpy(), level=1 - 2 * lower)[0] - bias
        return found

    def check_lower(self, lower: float | None) -> None:
        """Check that there are lower rewards of a probability, before the work.

        Raises:
            ValueError: `lower` is out of range; or as `predict_interval`.
        """
        if lower is None:
            return
        if not 0 < lower < 0.5:
            raise ValueError(f"lower: got {lower!r}; expected a probability above 0 and below 0.5")
        self.estimator.check_has_intervals()

    def disagreement(self, conversations: Sequence[Messages], passes: Passes) -> np.ndarray:
        """Return `EmbeddingRewardModel.predict_disagreement` (float32) of conversations, of shape (N,).

        Args:
            conversations: N lists of messages.
            passes: How they go through the language model.

        Raises:
            ValueError: As `embedder` and `predict_disagreement`.
        """
        vectors, _ = self.embedder.embed(conversations, passes)
        return self.estimator.predict_disagreement(vectors.numpy())

    def predict_log(self, log: Log, passes: Passes) -> HeldOut:
        """Embed the conversations of a log and predict its rows, for `evaluation.scoring.predict_log`.

        Args:
            log: N rows with the signals of `spec`, in their order.
            passes: How they go through the language model.

        Raises:
            ValueError: As `embedder`.
        """
        vectors, _ = self.embedder.embed(log.messages, passes)
        return self.predict(vectors.numpy(), log)

    def predict(self, vectors: np.ndarray | Shards, log: Log) -> HeldOut:
        """Predict the rows of a log from their embeddings.

        Args:
            vectors: Embeddings of shape (N, D).
            log: The same N rows, with the signals of `spec`, in their order.

        Returns:
            The losses, weights, reward logits and propensity logits of the rows (float32).
        """
        reward = torch.as_tensor(self.estimator.decision_function(vectors), dtype=torch.float32)
        chance = log.propensity if self.spec.design == "known" else self.propensities(vectors, log)
        logits = known_logits(torch.as_tensor(chance))
        missing = torch.full((len(log), 1), -1)  # the loss takes no empty signal axis
        weight = torch.ones(len(log)) if log.weight is None else torch.from_numpy(log.weight)
        loss = implicit_rm_loss(
            reward,
            logits if log.signals else torch.zeros(len(log), 1),
            torch.from_numpy(log.feedback) if log.signals else missing,
            preference=torch.from_numpy(log.preference),
            weight=weight,
            reduction="none",
            **self.spec.loss_options,
        )
        return HeldOut(loss.numpy(), weight.numpy(), reward.numpy(), logits.numpy())

    def propensities(self, vectors: np.ndarray | Shards, log: Log) -> np.ndarray:
        """Return the propensities of the rows of a log, as of rows later than those of the fit.

        A warning says so if the propensity design reads positions and the log has none.

        Args:
            vectors: Embeddings of shape (N, D).
            log: The same N rows, with the features that the propensity design reads.

        Returns:
            Probabilities of shape (N, K).
        """
        features = None
        if self.estimator.n_propensity_features_:
            design = "features" if self.spec.feature_names else "hidden"
            features = propensity_features(log, design, self.position)
        if self.position is not None and self.spec.design == "hidden" and not len(_known_positions(log)):
            text = f"the log has none; the propensities are those at {self.position:.3g}, the mean of the training rows"
            warn_caller(f"position: {text}")
        return self.estimator.predict_propensity(
            vectors, features, users=log.user_ids, sessions=log.session_ids, times=log.times
        )

    def save(
        self,
        directory: str | Path,
        record: Mapping[str, Any] | None = None,
        beside: Beside | None = None,
        *,
        classifier: bool = True,
    ) -> None:
        """Write the estimator, the classifier if the reward is a checkpoint, and last `irm_fast.json`.

        Args:
            directory: The folder to write to, which is made if it does not exist.
            record: Further entries of `irm_fast.json`, beside the spec and the source. None means none.
            beside: Further files, as of `record.write_record`.
            classifier: False leaves the classifier out; the language model then stays where it is.

        Raises:
            ValueError: As `embedder`, if the reward is a checkpoint.
        """
        self.estimator.save(directory)
        files = [TENSORS, ESTIMATOR_RECORD]
        if classifier and self.checkpoint is not None:
            files += save_checkpoint(self.checkpoint.classifier, self.checkpoint.tokenizer, Path(directory))
        more = {**(record or {}), SOURCE: asdict(self.source), "position": self.position}
        write_record(Path(directory), files, self.spec, float(self.reward_bias), more, beside)

    @cached_property
    def checkpoint(self) -> ImplicitRewardModel | None:
        """The sequence classifier with this reward, or None if no classifier can hold it.

        Raises:
            ValueError: As `embedder`.
        """
        if not self.is_checkpoint:
            return None
        # In float32 whatever made the embeddings: the head belongs to the whole weights.
        embedder = open_source(replace(self.source, precision="float32"))
        whole = embedder.reward_model
        assert whole is not None  # of a decoder
        # The saved tokenizer adds no tokens: the fingerprint is the one that does not count them.
        self.source = replace(self.source, fingerprint=embedder.source.fingerprint)
        with torch.no_grad():
            whole.classifier.score.weight.copy_(torch.as_tensor(self.estimator.coef_)[None])
        return whole.cpu()

    def load_checkpoint(self) -> None:
        """Load the language model if the reward is a checkpoint of it, so that a failure shows before `save` writes.

        Raises:
            ValueError: As `embedder`.
        """
        _ = self.checkpoint

    @classmethod
    def load(cls, directory: str | Path) -> EmbeddedRewardModel:
        """Read a model that `save` wrote.

        Args:
            directory: The folder.

        Raises:
            ValueError: The folder is not a saved model, is of a newer format, or is damaged.
        """
        from irm_fast.embeddings.estimator import EmbeddingRewardModel

        record = read_record(directory)
        refuse_damage(Path(directory), "irm-fast train")
        known = {field.name for field in fields(Source)}
        source = Source(**{name: value for name, value in record[SOURCE].items() if name in known})
        estimator = EmbeddingRewardModel.load(directory)
        model = cls(estimator, spec_of_record(record), source, record.get("position"))
        if model.is_checkpoint and (Path(directory) / "config.json").is_file():  # it brings its language model along
            model.source = replace(model.source, model=str(directory))
        return model


def typical_position(log: Log, design: str) -> float | None:
    """Return the mean of the known positions of a log, if the propensities of a design are to read them.

    Args:
        log: The training rows.
        design: One of `DESIGN_CHOICES`.

    Returns:
        The mean. None if the design is neither "hidden" nor "auto", or the known positions are all alike.
    """
    known = _known_positions(log)
    if design not in ("auto", "hidden") or len(np.unique(known)) < 2:
        return None
    return float(known.mean())


def _known_positions(log: Log) -> np.ndarray:
    """Return the positions (float64) of the rows that have one."""
    return np.array([]) if log.positions is None else log.positions[~np.isnan(log.positions)]


def propensity_features(log: Log, design: str, position: float | None = None) -> np.ndarray | None:
    """Return what the propensities of a design read beside the embedding.

    Args:
        log: N rows.
        design: One of `DESIGN_CHOICES`.
        position: The position of rows where it is not known, see `typical_position`. None if positions are not read.

    Returns:
        The features of the log (N, F) for "features"; for "hidden" and "auto" `text_features` (N, 5), and if `position`
        is given a sixth column of positions; else None.
    """
    if design == "features":
        return log.features
    if design not in ("auto", "hidden"):
        return None
    seen = text_features(log.messages)
    if position is None:
        return seen
    positions = np.full(len(log), position) if log.positions is None else np.nan_to_num(log.positions, nan=position)
    return np.column_stack([seen, positions])


def open_source(source: Source) -> Embedder:
    """Load the language model that makes embeddings of a given kind.

    Args:
        source: How the embeddings were made.

    Raises:
        ValueError: The model cannot be loaded, or its weights or tokenizer are not those that made the embeddings.
    """
    embedder = Embedder(
        source.model,
        pooling=source.pooling,
        max_length=source.max_length,
        precision=source.precision,
        files=SentenceFiles(source.pooling, source.normalize, source.prompt, source.lower_case),
        date=source.date,
        keeps_bos=source.keeps_bos,
    )
    if source.fingerprint not in (embedder.source.fingerprint, *embedder.earlier_fingerprints):
        if embedder.source.date and not source.date:
            why = (
                "the embeddings are of an earlier version, which did not keep the date that the chat template printed; "
                "make them anew by irm-fast embed, and the model by irm-fast train --embeddings"
            )
        else:
            why = "its weights or tokenizer are not those that made the embeddings; expected those"
        raise ValueError(f"model {source.model!r}: {why}")
    return embedder
