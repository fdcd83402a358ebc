"""A decoder with two heads: the reward of a response, and the propensity of every signal to show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from torch import Tensor, nn

from irm_fast.data.signals import RewardSpec
from irm_fast.data.writing.manifest import refuse_damage
from irm_fast.losses.signal_heads import start_logits
from irm_fast.models.adapters import ADAPTER, Adapter, Lora, add_adapters, is_of_adapter, merge_adapters
from irm_fast.models.backbone import load_backbone, load_classifier, load_tokenizer, token_limit
from irm_fast.models.checkpoint import save_checkpoint
from irm_fast.models.finite import check_finite
from irm_fast.models.heads import Heads, Logits, PropensityDesign
from irm_fast.models.record import (
    PROPENSITY_FILE,
    Beside,
    read_record,
    read_tensor,
    save_tensors,
    spec_of_record,
    write_record,
)
from irm_fast.models.template import warn_of_dates
from irm_fast.models.tokens import check_padding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ImplicitRewardModel(nn.Module):
    """A decoder language model with a reward head and a propensity design.

    Args:
        classifier: A `*ForSequenceClassification` of one output; its `score` is the reward head without the bias.
        tokenizer: Its tokenizer, which pads with another token than the one that ends a text.
        spec: The signals of the model, its propensity design and its limit of tokens.

    Attributes:
        classifier: As given; what `save` writes.
        backbone: The classifier without its head.
        heads: The reward head and the propensity design.
        packed: Whether it takes packed rows, and no padded ones: see `packed.packed_attention`.
        pools_early: Whether the backbone gives, of packed rows, the states of the last tokens alone: likewise.
        adapter: The adapter that was merged into the backbone, if it is to be kept beside it, or None.
        witness: Is shown the hidden states (N, H) of every `loss`, if it is not None.

    Raises:
        ValueError: The tokenizer has no padding token, or pads with the token that ends a text.
    """

    classifier: Any
    accepts_loss_kwargs = True  # to transformers.Trainer: the loss is divided for the whole step already

    def __init__(self, classifier: Any, tokenizer: PreTrainedTokenizerBase, spec: RewardSpec) -> None:
        super().__init__()
        # Past nn.Module, which would register it as a submodule: its parts are, below, and each weight would have
        # two names in the state and be sharded twice.
        object.__setattr__(self, "classifier", classifier)
        self.tokenizer, self.spec = tokenizer, spec
        self.backbone = classifier.base_model
        self.heads = Heads(classifier.score, spec)
        # The layers, for FSDP: of those that the family may have, which this model has.
        kinds = {type(module).__name__ for module in self.modules()}
        self._no_split_modules = sorted(kinds & set(classifier._no_split_modules or ()))
        self.packed = self.pools_early = False
        self.adapter: Adapter | None = None
        self.witness: Callable[[Tensor], None] | None = None
        self._tuner: Any = None  # of peft, while there are adapters in the backbone
        self._states_whole = False
        self.register_state_dict_post_hook(_leave_frozen_out)
        self.register_load_state_dict_post_hook(_miss_no_frozen)
        check_padding(tokenizer)

    @classmethod
    def from_backbone(
        cls,
        name: str,
        spec: RewardSpec,
        dtype: torch.dtype = torch.float32,
        *,
        four_bits: bool = False,
        weights: bool = True,
        date: str | None = None,
    ) -> ImplicitRewardModel:
        """New heads on a pretrained model.

        Args:
            name: A folder or hub id. The model's own limit of positions may shorten `spec.max_length`.
            spec: As of the class.
            dtype: The precision of the backbone's weights; the heads are float32.
            four_bits: As of `load_backbone`.
            weights: Whether to read the weights of the backbone; see `load_classifier`.
            date: As of `load_backbone`.

        Raises:
            ValueError: As `load_backbone`.
        """
        classifier, tokenizer = load_backbone(name, dtype, four_bits=four_bits, weights=weights, date=date)
        limit = token_limit(classifier.config, spec.max_length)
        tokenizer.model_max_length = limit  # for those who load the tokenizer later
        model = cls(classifier, tokenizer, replace(spec, max_length=limit))
        model.heads.to(model.heads.reward.weight.device)  # weights of 4 bits are loaded to where they compute
        return model

    @overload
    def forward(self, output: Literal["loss", "states"] = "loss", **batch: Any) -> Tensor: ...

    @overload
    def forward(self, output: Literal["logits"], **batch: Any) -> Logits: ...

    def forward(self, output: Literal["loss", "logits", "states"] = "loss", **batch: Any) -> Tensor | Logits:
        """Call `loss`, `logits` or `pool` by name.

        Distributed wrappers (DDP, FSDP), averages of weights and mixed precision act on `forward` alone: a model that
        may be wrapped is called through it.

        Args:
            output: "loss" calls `loss`, "logits" calls `logits`, "states" calls `pool`.
            batch: The arguments of that method.
        """
        methods: dict[str, Callable[..., Any]] = {"loss": self.loss, "logits": self.logits, "states": self.pool}
        result: Tensor | Logits = methods[output](**batch)
        return result

    def loss(
        self,
        *,
        feedback: Tensor,
        preference: Tensor | None = None,
        weight: Tensor | None = None,
        propensity: Tensor | None = None,
        features: Tensor | None = None,
        stratification: tuple[Tensor, Tensor] | Literal["current"] | None = None,
        normalizer: float | Tensor | None = None,
        margin: Tensor | None = None,
        pair_weight: float | Tensor = 1.0,
        **tokens: Any,
    ) -> Tensor:
        """The implicit loss of N rows, float32 (); the Bradley-Terry loss of pairs among them is added.

        Args:
            feedback: Feedback (1, 0, -1), (N, K) int8.
            preference: Explicit preferences (1, 0, -1), (N,) int8.
            weight: The weight of each row, (N,) float32.
            propensity: Known propensities (probabilities), (N, K) float32, for the `known` design.
            features: Features, (N, F) float32, for the `features` design.
            stratification: Reward and propensity logits whose posterior the stratified form takes; "current": those of
                this model as it is; None: the marginal form. See `linear_implicit_rm_loss`.
            normalizer: The sum over rows is divided by this number instead of N.
            margin: The margins of P pairs, (P,) float32, whose sides are the last 2P rows; see `Heads.pair_loss`.
            pair_weight: The sum over pairs is multiplied by this number.
            tokens: The rows, as `pool` takes them.

        Raises:
            ValueError: The propensity design reads something that is not given.
        """
        hidden = self.pool(**tokens)
        if self.witness is not None:
            self.witness(hidden.detach())
        loss = self.heads.loss(
            hidden,
            feedback,
            propensity=propensity,
            features=features,
            stratification=stratification,
            preference=preference,
            weight=weight,
            normalizer=normalizer,
            **self.spec.loss_options,
        )
        if margin is None:
            return loss
        return loss + pair_weight * self.heads.pair_loss(hidden[len(hidden) - 2 * len(margin) :], margin)

    def logits(self, *, propensity: Tensor | None = None, features: Tensor | None = None, **tokens: Any) -> Logits:
        """Reward logits (N,), with the bias, and propensity logits (N, K), float32.

        Args:
            propensity: Known propensities (probabilities), (N, K) float32, for the `known` design.
            features: Features, (N, F) float32, for the `features` design.
            tokens: The rows, as `pool` takes them.

        Raises:
            ValueError: The propensity design reads something that is not given.
        """
        return self.heads.logits(self.pool(**tokens), propensity, features)

    def pool(self, input_ids: Tensor, attention_mask: Tensor | None = None, **packed: Any) -> Tensor:
        """The hidden state of each row's last token, (N, H) float32.

        Args:
            input_ids: Token ids: (N, T) of N rows, padded on either side, or (1, T) of N packed rows.
            attention_mask: (N, T), 1 for tokens and 0 for padding. None for packed rows: a mask would override their
                ends.
            packed: For packed rows: `position_ids` (1, T); the ends of the rows as flash attention takes them,
                `cu_seq_lens_q` and `cu_seq_lens_k`, each (N + 1,) int32; `max_length_q` and `max_length_k`, numbers.

        Raises:
            ValueError: Neither a mask nor the ends of packed rows.
        """
        if attention_mask is None and "cu_seq_lens_q" not in packed:
            raise ValueError("got neither attention_mask, of padded rows, nor cu_seq_lens_q, of packed ones")
        states = self.backbone(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **packed
        ).last_hidden_state
        if attention_mask is None:
            return (states[0] if self.pools_early else states[0, packed["cu_seq_lens_q"][1:] - 1]).float()
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        row = torch.arange(len(states), device=states.device)
        return states[row, (attention_mask * position).argmax(1)].float()

    def score(self, hidden: Tensor) -> Tensor:
        """Rewards (N,) of pooled hidden states (N, H), without the bias: those of the saved classifier."""
        return self.heads.reward(hidden).squeeze(-1)

    def layers(self) -> list[nn.Module]:
        """The layers of the backbone, in their order: what is sharded, cast and computed again as one."""
        found: list[nn.Module] = []
        within: set[int] = set()
        for module in self.backbone.modules():
            kinds = {kind.__name__ for kind in type(module).__mro__}  # once sharded, a layer is of a class derived
            if kinds & set(self._no_split_modules) and id(module) not in within:
                found.append(module)
                within |= {id(part) for part in module.modules()}
        return found

    def add_adapters(self, lora: Lora, base: str) -> None:
        """Freeze the backbone and put low-rank adapters into it, which are trained in its place.

        The state of the model then holds what is trained alone, as do the checkpoints of its training.

        Args:
            lora: How the adapters are made.
            base: The folder or hub id of the backbone.

        Raises:
            ValueError: As `adapters.add_adapters`.
        """
        object.__setattr__(self, "_tuner", add_adapters(self.classifier, lora, base))  # it holds the backbone

    def merge_adapters(self, *, keep: bool = False) -> None:
        """Merge the adapters into the weights of the backbone, which becomes float32; without adapters do nothing.

        Args:
            keep: Whether `save` shall write the adapter too.
        """
        if self._tuner is not None:
            adapter = merge_adapters(self.classifier, self._tuner)
            self.adapter = adapter if keep else None
            object.__setattr__(self, "_tuner", None)

    @contextmanager
    def whole_states(self) -> Iterator[None]:
        """A context in which the state of the model holds the frozen backbone too."""
        self._states_whole = True
        try:
            yield
        finally:
            self._states_whole = False

    @property
    def adapted(self) -> bool:
        """Whether there are adapters in the backbone."""
        return self._tuner is not None

    def get_input_embeddings(self) -> nn.Module:
        """The embeddings of the backbone; by this name accelerate finds what FSDP should shard by itself."""
        embeddings: nn.Module = self.classifier.get_input_embeddings()
        return embeddings

    @property
    def reward_bias(self) -> Tensor:
        """The bias (), which the probability of preference adds to the rewards of the saved classifier."""
        return self.heads.reward_bias.squeeze(0)

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        return self.heads.reward_bias.device

    @property
    def propensity_design(self) -> PropensityDesign:
        """The propensity design of the heads."""
        return self.heads.propensity_design

    def scalar_parameters(self) -> set[str]:
        """Names of the heads' parameters that are not maps of the hidden state."""
        names = dict(self.propensity_design.named_parameters()).keys() - self.propensity_design.state_maps
        return {"heads.reward_bias"} | {f"heads.propensity_design.{name}" for name in names}

    @torch.no_grad()
    def start_at(self, rates: np.ndarray) -> None:
        """Set the biases of the propensities so that training starts at the rates of the log.

        Args:
            rates: The rate at which each signal acts in the log, (K,). Where the probability of preference is 1/2, so
                is the rate that the model predicts.
        """
        bias = getattr(self.propensity_design, "bias", None)
        if bias is not None:
            bias.copy_(start_logits(torch.as_tensor(rates)))

    def save(
        self, directory: str | Path, record: Mapping[str, Any] | None = None, beside: Beside | None = None
    ) -> None:
        """Write an ordinary sequence classifier, with what it cannot hold beside it.

        `propensity.safetensors` gets the weights of the propensity design; the folder `adapter` the adapter that was
        merged, if it is kept; `irm_fast_files.json` sizes and hashes of all files; `irm_fast.json`, written last, the
        reward bias and the spec.

        Args:
            directory: The folder, which is made where there is none.
            record: Further entries of `irm_fast.json`.
            beside: Further files, as of `record.write_record`.

        Raises:
            RuntimeError: A weight is not finite; nothing is written.
        """
        directory = Path(directory)
        check_finite([*self.backbone.named_parameters(), *self.heads.named_parameters()], "weights")
        files = [*save_checkpoint(self.classifier, self.tokenizer, directory), PROPENSITY_FILE]
        weights = {name: weight.detach().cpu() for name, weight in self.propensity_design.state_dict().items()}
        save_tensors(weights, directory / PROPENSITY_FILE)
        if self.adapter is not None:
            files += self.adapter.save(directory)
        write_record(directory, files, self.spec, float(self.reward_bias.detach()), record or {}, beside)

    @classmethod
    def load(cls, directory: str | Path, dtype: torch.dtype = torch.float32) -> ImplicitRewardModel:
        """Read what `save` wrote, in evaluation mode.

        Args:
            directory: The folder.
            dtype: The precision of the backbone's weights, in which they are read; the heads are float32.

        Raises:
            ValueError: The folder is no saved model, is of a newer format, or is damaged: which file, and how.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        record = read_record(directory)
        refuse_damage(Path(directory), "irm-fast train")
        classifier: Any = load_classifier(str(directory), dtype)
        if dtype != torch.float32:
            classifier.score.weight = nn.Parameter(read_tensor(directory, "score.weight").float())
        tokenizer = load_tokenizer(str(directory))
        warn_of_dates(tokenizer, directory)
        model = cls(classifier, tokenizer, spec_of_record(record))
        path = Path(directory) / PROPENSITY_FILE
        try:
            model.propensity_design.load_state_dict(load_file(path))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{path}: {error}; expected the propensity weights that irm-fast train wrote") from error
        nn.init.constant_(model.heads.reward_bias, record["reward_bias"])
        model.adapter = Adapter.load(Path(directory) / ADAPTER)
        return model.eval()


def _left_out(model: ImplicitRewardModel, key: str) -> bool:
    """Whether an entry of a model's state is of its frozen backbone, and left out."""
    return model.adapted and not model._states_whole and "backbone." in key and not is_of_adapter(key)


def _leave_frozen_out(model: ImplicitRewardModel, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Take the frozen backbone out of a state: it is where it was loaded from, and as large as all checkpoints."""
    for key in [key for key in state if key.startswith(f"{prefix}backbone.") and _left_out(model, key)]:
        del state[key]


def _miss_no_frozen(model: ImplicitRewardModel, incompatible: Any) -> None:
    """Take the frozen backbone out of what a loaded state lacks."""
    lacking = incompatible.missing_keys
    lacking[:] = [key for key in lacking if not _left_out(model, key)]
