"""A reward model on the embeddings of a frozen language model, where it is no ordinary checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from irm_fast.embed import Embedder
from irm_fast.embeddings import Source
from irm_fast.functional import implicit_rm_loss
from irm_fast.model import FORMAT, RECORD, ImplicitRewardModel, read_record
from irm_fast.propensity import RewardSpec

if TYPE_CHECKING:
    from irm_fast.embedding import EmbeddingRewardModel
    from irm_fast.log import Log
    from irm_fast.rows import Messages

SOURCE = "embeddings"  # the entry of irm_fast.json that tells such a folder from an ordinary checkpoint


@dataclass
class EmbeddedRewardModel:
    """A fitted estimator, and the language model whose embeddings it reads: loaded when text is to be embedded.

    spec: names and polarity of the signals, and design.  source: how its embeddings are made.
    """

    estimator: EmbeddingRewardModel
    spec: RewardSpec
    source: Source

    reward_bias = torch.zeros(())  # the rewards have theirs within

    @property
    def evidence(self) -> dict[str, Any]:
        """As `ImplicitRewardModel.evidence`."""
        return ImplicitRewardModel.evidence.fget(self)  # type: ignore[attr-defined, no-any-return]

    def action_rates(self, reward: Tensor, propensity: Tensor) -> Tensor:
        """As `ImplicitRewardModel.action_rates`, which reads nothing but the spec."""
        return ImplicitRewardModel.action_rates(self, reward, propensity)  # type: ignore[arg-type]

    @cached_property
    def embedder(self) -> Embedder:
        """The language model. Raises ValueError if it does not load or its weights are others than in training."""
        return open_source(self.source)

    def rewards(self, conversations: Sequence[Messages], *, batch_size: int) -> np.ndarray:
        """Reward logits (N,) float32, with the bias."""
        vectors, _ = self.embedder.embed(conversations, batch_size=batch_size)
        return np.asarray(self.estimator.decision_function(vectors.numpy()), np.float32)

    def predict_log(self, log: Log, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """As `evaluation.predict_log`."""
        vectors, _ = self.embedder.embed(log.messages, batch_size=batch_size)
        return self.predict(vectors.numpy(), log)

    def predict(self, vectors: np.ndarray, log: Log) -> tuple[np.ndarray, np.ndarray]:
        """Weighted losses (N,) and logits (N, 1 + K), float32, of a log whose embeddings (N, D) are given."""
        reward = torch.as_tensor(self.estimator.decision_function(vectors), dtype=torch.float32)
        chance = log.propensity if self.spec.design == "known" else self._propensity(vectors, log)
        # A propensity of 1 would have an infinite logit; NaN stands where the feedback is missing.
        logits = torch.logit(torch.as_tensor(chance, dtype=torch.float64), eps=1e-12).float().nan_to_num(0.0)
        missing = torch.full((len(log), 1), -1)  # the loss takes no empty signal axis
        loss = implicit_rm_loss(
            reward,
            logits if log.signals else torch.zeros(len(log), 1),
            torch.from_numpy(log.feedback) if log.signals else missing,
            preference=torch.from_numpy(log.preference),
            weight=torch.ones(len(log)) if log.weight is None else torch.from_numpy(log.weight),
            reduction="none",
            **self.evidence,
        )
        return loss.numpy(), torch.cat([reward[:, None], logits], dim=1).numpy()

    def _propensity(self, vectors: np.ndarray, log: Log) -> np.ndarray:
        features = log.features if self.spec.feature_names else None
        return self.estimator.predict_propensity(vectors, features)

    def save(self, directory: str | Path, record: Mapping[str, Any] | None = None) -> None:
        """Write the estimator, and beside it `irm_fast.json`: spec, source and `record`."""
        self.estimator.save(directory)
        content = {"format": FORMAT, "version": version("irm-fast"), **asdict(self.spec), **(record or {})}
        content |= {SOURCE: asdict(self.source), "reward_bias": 0.0}
        (Path(directory) / RECORD).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path) -> EmbeddedRewardModel:
        """Read what `save` wrote. Raises ValueError as `ImplicitRewardModel.load`."""
        from irm_fast.embedding import EmbeddingRewardModel

        record = read_record(directory)
        spec = {f.name: record[f.name] for f in fields(RewardSpec)}
        spec = {name: tuple(value) if isinstance(value, list) else value for name, value in spec.items()}
        return cls(EmbeddingRewardModel.load(directory), RewardSpec(**spec), Source(**record[SOURCE]))


def open_source(source: Source) -> Embedder:
    """The language model that makes embeddings of this kind.

    Raises:
        ValueError: it does not load, or its weights or tokenizer are not those that made them.
    """
    embedder = Embedder(source.model, pooling=source.pooling, max_length=source.max_length, precision=source.precision)
    if embedder.source.fingerprint != source.fingerprint:
        raise ValueError(
            f"model {source.model!r}: its weights or tokenizer are not those that made the embeddings; expected those"
        )
    return embedder
