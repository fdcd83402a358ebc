"""A decoder with two heads: the reward of a response, and the propensity of every signal to show it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from irm_fast.backbone import load_backbone, load_classifier, load_tokenizer, quiet_transformers
from irm_fast.propensity import PROPENSITIES, RewardSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1  # of irm_fast.json
RECORD, PROPENSITY_FILE = "irm_fast.json", "propensity.safetensors"


class ImplicitRewardModel(nn.Module):
    """Backbone, reward head and propensity design; the heads compute in float32 under any autocast.

    classifier: a `*ForSequenceClassification` of one output; its `score` is the reward head without the bias.
    """

    accepts_loss_kwargs = True  # to transformers.Trainer: the loss is divided for the whole step already

    def __init__(self, classifier: Any, tokenizer: PreTrainedTokenizerBase, spec: RewardSpec) -> None:
        super().__init__()
        self.classifier, self.tokenizer, self.spec = classifier, tokenizer, spec
        self.reward_bias = nn.Parameter(torch.zeros(()))
        self.propensity = PROPENSITIES[spec.design](spec, classifier.score.in_features)

    @classmethod
    def from_backbone(cls, name: str, spec: RewardSpec) -> ImplicitRewardModel:
        """New heads on the model at a folder or hub id, whose own limit may shorten `spec.max_length`.

        Raises ValueError as `load_backbone`.
        """
        classifier, tokenizer = load_backbone(name)
        limit = getattr(classifier.config.get_text_config(), "max_position_embeddings", spec.max_length)
        tokenizer.model_max_length = min(spec.max_length, limit)  # for those who load the tokenizer later
        return cls(classifier, tokenizer, replace(spec, max_length=tokenizer.model_max_length))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        propensity: Tensor | None = None,
        features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Reward logits (N,) with the bias, and propensity logits (N, K), both float32.

        Shapes: `input_ids` and `attention_mask` (N, T), padded on either side; `propensity` (N, K), the
        probabilities for the `known` design; `features` (N, F) for the `features` design.
        """
        hidden = self.pool(input_ids, attention_mask)
        with torch.autocast(hidden.device.type, enabled=False):
            reward = self.score(hidden) + self.reward_bias
            return reward, self.propensity(hidden, propensity, features)

    def score(self, hidden: Tensor) -> Tensor:
        """Rewards (N,) of pooled hidden states (N, H), without the bias: the saved classifier's own."""
        return self.classifier.score(hidden).squeeze(-1)

    def pool(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Hidden state (N, H), float32, of each row's last token that is not padding."""
        states = self.classifier.base_model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        row = torch.arange(len(states), device=states.device)
        return states[row, (attention_mask * position).argmax(1)].float()

    @property
    def evidence(self) -> dict[str, Any]:
        """The keywords of `implicit_rm_loss` that belong to the signals rather than to a batch."""
        if not self.spec.signals:
            return {}
        return {"polarity": self.spec.polarity, "misclick_rate": self.spec.misclick_rate}

    def action_rates(self, reward: Tensor, propensity: Tensor) -> Tensor:
        """P(signal k acts) (N, K), from reward logits (N,) and propensity logits (N, K)."""
        sides = torch.tensor(self.spec.polarity or (1,), device=reward.device)
        misclick = torch.tensor(self.spec.misclick_rate or (0.0,), device=reward.device)
        own = torch.sigmoid(reward[:, None] * sides)
        return torch.sigmoid(propensity) * (own + misclick * (1 - own))

    def scalar_parameters(self) -> set[str]:
        """Names of the heads' parameters that are not maps of the hidden state."""
        maps = {"weight"} if self.spec.design == "hidden" else set()
        names = dict(self.propensity.named_parameters()).keys() - maps
        return {"reward_bias"} | {f"propensity.{name}" for name in names}

    @torch.no_grad()
    def start_at(self, rates: np.ndarray) -> None:
        """Start where g = 1/2 and g * m_k is the rate (K,) at which signal k acts in the log."""
        bias = getattr(self.propensity, "bias", None)
        if bias is not None:
            bias.copy_(torch.logit(torch.as_tensor(2 * rates).clamp(0.01, 0.95)))

    def save(self, directory: str | Path, record: Mapping[str, Any] | None = None) -> None:
        """Write an ordinary sequence classifier, with what it cannot hold beside it.

        `propensity.safetensors` gets the propensity's weights; `irm_fast.json`, written last, the reward
        bias, the spec, and `record`: whatever else a reader should know.
        """
        from safetensors.torch import save_file

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        with quiet_transformers():
            self.classifier.save_pretrained(directory)
            self.tokenizer.save_pretrained(directory)
        weights = {name: weight.detach().cpu() for name, weight in self.propensity.state_dict().items()}
        save_file(weights, directory / PROPENSITY_FILE)
        content = {"format": FORMAT, "version": version("irm-fast"), **asdict(self.spec), **(record or {})}
        content["reward_bias"] = float(self.reward_bias.detach())
        (directory / RECORD).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path) -> ImplicitRewardModel:
        """Read what `save` wrote, in evaluation mode.

        Raises:
            ValueError: the folder is no saved model, is of a newer format, or is damaged: which file, and how.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        record = read_record(directory)
        spec = RewardSpec(**{f.name: _frozen(record[f.name]) for f in fields(RewardSpec)})
        model = cls(load_classifier(str(directory)), load_tokenizer(str(directory)), spec)
        path = Path(directory) / PROPENSITY_FILE
        try:
            model.propensity.load_state_dict(load_file(path))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{path}: {error}; expected the propensity weights that irm-fast train wrote") from error
        nn.init.constant_(model.reward_bias, record["reward_bias"])
        return model.eval()


def read_record(directory: str | Path) -> dict[str, Any]:
    """The content of a saved model's `irm_fast.json`.

    Raises:
        ValueError: there is none, it is of a newer format, or it is damaged.
    """
    path = Path(directory) / RECORD
    if not path.is_file():
        raise ValueError(f"{path}: not found; expected a folder that irm-fast train wrote to its end")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # cut short, or no text at all
        raise ValueError(f"{path}: damaged, not readable as JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}: damaged: got a {type(record).__name__}; expected an object")
    if record.get("format") != FORMAT:
        raise ValueError(f"{path}: format: got {record.get('format')}; expected {FORMAT}; upgrade irm-fast")
    lacking = [name for name in (*(f.name for f in fields(RewardSpec)), "reward_bias") if name not in record]
    if lacking:
        raise ValueError(f"{path}: damaged: no {', '.join(lacking)}; expected what irm-fast train wrote")
    if record["design"] not in PROPENSITIES:
        raise ValueError(f"{path}: design: got {record['design']!r}; expected one of {', '.join(PROPENSITIES)}")
    return record


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
