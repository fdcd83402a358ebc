"""A decoder with two heads: the reward of a response, and the propensity of every signal to show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from irm_fast.data.signals import RewardSpec
from irm_fast.models.backbone import load_backbone, load_classifier, load_tokenizer, quiet_transformers, token_limit
from irm_fast.models.heads import Heads
from irm_fast.models.record import (
    PROPENSITY_FILE,
    give_usual_mode,
    read_record,
    save_tensors,
    spec_of_record,
    write_record,
)
from irm_fast.models.tokens import check_padding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ImplicitRewardModel(nn.Module):
    """Backbone and heads.

    classifier: a `*ForSequenceClassification` of one output; its `score` is the reward head without the bias. It is
    what gets saved; as a module it is only its two parts, the backbone and the head.
    """

    classifier: Any
    accepts_loss_kwargs = True  # to transformers.Trainer: the loss is divided for the whole step already

    def __init__(self, classifier: Any, tokenizer: PreTrainedTokenizerBase, spec: RewardSpec) -> None:
        super().__init__()
        object.__setattr__(self, "classifier", classifier)  # not registered: its parts are, below
        self.tokenizer, self.spec = tokenizer, spec
        self.backbone = classifier.base_model
        self.heads = Heads(classifier.score, spec)
        # The layers, for FSDP: of those that the family may have, which this model has.
        kinds = {type(module).__name__ for module in self.modules()}
        self._no_split_modules = sorted(kinds & set(classifier._no_split_modules or ()))
        self.packed = False  # whether it takes packed rows, and no padded ones: see `packed.packed_attention`
        check_padding(tokenizer)

    @classmethod
    def from_backbone(cls, name: str, spec: RewardSpec) -> ImplicitRewardModel:
        """New heads on the model at a folder or hub id, whose own limit may shorten `spec.max_length`.

        Raises ValueError as `load_backbone`.
        """
        classifier, tokenizer = load_backbone(name)
        limit = token_limit(classifier.config, spec.max_length)
        tokenizer.model_max_length = limit  # for those who load the tokenizer later
        return cls(classifier, tokenizer, replace(spec, max_length=limit))

    def forward(
        self,
        *,
        feedback: Tensor | None = None,
        preference: Tensor | None = None,
        weight: Tensor | None = None,
        propensity: Tensor | None = None,
        features: Tensor | None = None,
        stratification: tuple[Tensor, Tensor] | Literal["current"] | None = None,
        normalizer: float | Tensor | None = None,
        pooled: bool = False,
        **tokens: Any,
    ) -> Any:
        """The loss, or without `feedback` the logits: reward (N,) with the bias, and propensity (N, K), float32.

        tokens: as of `pool`, of N rows. feedback: (N, K), with preference (N,) and weight (N,): the loss, float32 (),
        is `linear_implicit_rm_loss` divided by `normalizer` instead of N. stratification: "current" takes the posterior
        of this very model; see `linear_implicit_rm_loss`. propensity: (N, K), the probabilities for the `known` design.
        features: (N, F) for the `features` design. pooled: return the states (N, H) of `pool` instead.
        """
        hidden = self.pool(**tokens)
        if pooled:
            return hidden
        if feedback is None:
            return self.heads(hidden, propensity, features)
        return self.heads(
            hidden,
            propensity,
            features,
            feedback,
            stratification,
            preference=preference,
            weight=weight,
            normalizer=normalizer,
            **self.spec.loss_options,
        )

    def recompute_activations(self) -> None:
        """Keep the activations of a layer's start alone, and compute the others again in the backward pass."""
        enable = getattr(self.classifier, "activation_checkpointing_enable", None)  # since transformers 5.2x
        (enable or self.classifier.gradient_checkpointing_enable)()

    def get_input_embeddings(self) -> nn.Module:
        """Of the backbone; by this accelerate finds what FSDP should shard by itself."""
        embeddings: nn.Module = self.classifier.get_input_embeddings()
        return embeddings

    def score(self, hidden: Tensor) -> Tensor:
        """Rewards (N,) of pooled hidden states (N, H), without the bias: the saved classifier's own."""
        return self.heads.reward(hidden).squeeze(-1)

    def pool(self, input_ids: Tensor, attention_mask: Tensor | None = None, **packed: Any) -> Tensor:
        """Hidden state (N, H), float32, of each row's last token, from padded or packed token ids.

        Padded on either side: `input_ids` and `attention_mask` (N, T). Packed: `input_ids` and `position_ids` (1, T)
        of N rows one after the other, whose ends are in `cu_seq_lens_q` (N + 1,), with `cu_seq_lens_k`,
        `max_length_q` and `max_length_k` as flash attention takes them; then no mask, which would override them.
        """
        if attention_mask is None and "cu_seq_lens_q" not in packed:
            raise ValueError("got neither attention_mask, of padded rows, nor cu_seq_lens_q, of packed ones")
        states = self.backbone(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **packed
        ).last_hidden_state
        if attention_mask is None:
            return states[0, packed["cu_seq_lens_q"][1:] - 1].float()
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        row = torch.arange(len(states), device=states.device)
        return states[row, (attention_mask * position).argmax(1)].float()

    @property
    def reward_bias(self) -> Tensor:
        """(): what the probability of preference adds to the saved classifier's reward."""
        return self.heads.reward_bias.squeeze(0)

    @property
    def device(self) -> torch.device:
        return self.heads.reward_bias.device

    @property
    def propensity(self) -> nn.Module:
        """The propensity design of the heads."""
        return self.heads.propensity

    def scalar_parameters(self) -> set[str]:
        """Names of the heads' parameters that are not maps of the hidden state."""
        maps = {"weight"} if self.spec.design == "hidden" else set()
        names = dict(self.propensity.named_parameters()).keys() - maps
        return {"heads.reward_bias"} | {f"heads.propensity.{name}" for name in names}

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
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        with quiet_transformers():
            self.classifier.save_pretrained(directory)
            self.tokenizer.save_pretrained(directory)
        weights = {name: weight.detach().cpu() for name, weight in self.propensity.state_dict().items()}
        save_tensors(weights, directory / PROPENSITY_FILE)
        give_usual_mode(*directory.glob("*.safetensors"))
        write_record(directory, self.spec, float(self.reward_bias.detach()), record or {})

    @classmethod
    def load(cls, directory: str | Path) -> ImplicitRewardModel:
        """Read what `save` wrote, in evaluation mode.

        Raises:
            ValueError: the folder is no saved model, is of a newer format, or is damaged: which file, and how.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        record = read_record(directory)
        model = cls(load_classifier(str(directory)), load_tokenizer(str(directory)), spec_of_record(record))
        path = Path(directory) / PROPENSITY_FILE
        try:
            model.propensity.load_state_dict(load_file(path))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{path}: {error}; expected the propensity weights that irm-fast train wrote") from error
        nn.init.constant_(model.heads.reward_bias, record["reward_bias"])
        return model.eval()
