"""`SignalHeads`: a reward head and propensity heads for a training loop of one's own. It needs torch alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn.functional import linear

from irm_fast.kernels.reference.values import check_values
from irm_fast.losses import MAX_SIGNALS, SCALAR_LEARNING_RATE
from irm_fast.losses.batch_checks import check_feedback, check_rewards, check_states
from irm_fast.losses.checks import check_values_exist
from irm_fast.losses.conversions import for_every_row
from irm_fast.losses.linear import linear_implicit_rm_loss

HeadDesign = Literal["constant", "hidden"]


class SignalLogits(NamedTuple):
    """What the heads give for N rows and K signals: the arguments of `implicit_rm_loss`, under their names."""

    reward_logits: Tensor  # (N,), with the bias
    propensity_logits: Tensor  # (N, K)


class SignalHeads(nn.Module):
    """A reward head and a propensity head for each signal, on pooled hidden states.

    Call it as `heads(hidden)` for the logits, see `forward`, or take `loss`, which reads the hidden states once. A few
    of its parameters are scalars, which a backbone's learning rate would hardly move: train with `parameter_groups`.

    Args:
        hidden_size: The width H of the hidden states. None: there is no reward head, and the heads take the reward
            logits of a model that has one, such as a sequence classifier, in the place of hidden states.
        signals: The number K of signals, 1 to 16, or their names.
        propensity_design: "constant", one propensity for each signal, the same for every response; or "hidden",
            propensity logits that are linear in the hidden state, and start constant.
        rates: The rate at which each signal acts in the log, among the rows that record it: K numbers from 0 to 1, or
            one number if K is 1. The propensities start there; see also `start_at`. None: they start at 1/2.

    Attributes:
        signals: The names of the signals; None if a number was given.
        reward_weight: (H,), starts at 0; None without a reward head. A checkpoint of a sequence classifier has it as
            `score.weight`, (1, H).
        reward_bias: (1,), a scalar; rewards of a checkpoint do not have it, probabilities of preference do.
        propensity_weight: (K, H), starts at 0; None in the design "constant".
        propensity_bias: (K,), scalars: in the design "constant" the logits of the propensities.

    Raises:
        TypeError: `signals` is neither a number nor a sequence of names.
        ValueError: A number is out of range, the design is unknown, or it is "hidden" and there are no hidden states.

    Examples:
        >>> import torch, irm_fast
        >>> feedback = torch.tensor([[1, 0], [0, 0], [0, -1], [1, 1]])
        >>> heads = irm_fast.SignalHeads(8, ["copy", "share"]).start_at(feedback)
        >>> optimizer = torch.optim.AdamW(heads.parameter_groups(lr=2e-5))
        >>> loss = irm_fast.implicit_rm_loss(*heads(torch.randn(4, 8)), feedback)
        >>> print(f"{loss.item():.4f}")
        1.0785
    """

    reward_weight: Tensor | None
    propensity_weight: Tensor | None

    def __init__(
        self,
        hidden_size: int | None,
        signals: int | Sequence[str],
        propensity_design: HeadDesign = "constant",
        rates: ArrayLike | Tensor | None = None,
    ) -> None:
        super().__init__()
        if isinstance(signals, (str, bool)) or not isinstance(signals, (int, Sequence)):
            raise TypeError(f"signals: got {signals!r}; expected their number, or a sequence of their names")
        self.signals = None if isinstance(signals, int) else tuple(signals)
        count = signals if isinstance(signals, int) else len(signals)
        if not 1 <= count <= MAX_SIGNALS:
            raise ValueError(f"signals: got {count}; expected 1 to {MAX_SIGNALS}")
        designs = get_args(HeadDesign)
        if propensity_design not in designs:
            raise ValueError(
                f"propensity_design: got {propensity_design!r}; expected one of {designs}: propensities of other kinds "
                "go into the loss as propensity_logits"
            )
        if hidden_size is None and propensity_design == "hidden":
            raise ValueError('hidden_size: got None; expected the width of hidden states for propensities of "hidden"')
        width = hidden_size or 0
        self.register_parameter("reward_weight", nn.Parameter(torch.zeros(width)) if width else None)
        self.reward_bias = nn.Parameter(torch.zeros(1))  # not (): FSDP shards no scalars
        weight = nn.Parameter(torch.zeros(count, width)) if propensity_design == "hidden" else None
        self.register_parameter("propensity_weight", weight)
        self.propensity_bias = nn.Parameter(torch.zeros(count))
        if rates is not None:
            self._start(rates)

    def start_at(self, feedback: ArrayLike | Tensor) -> SignalHeads:
        """Start the propensities at the rates of a log: those at which each signal acts among the rows that record it.

        Where the probability of preference is 1/2, as it is at the start, the heads then predict these rates. All
        values are read, which waits for the device.

        Args:
            feedback: The feedback of the whole log, (N,) or (N, K): 1 acted, 0 silent, -1 or NaN not recorded; a tensor
                or an array.

        Returns:
            The heads themselves.

        Raises:
            TypeError: The feedback is a meta or fake tensor, or complex.
            ValueError: The shape is another, a value is impossible, or no row records a signal.
        """
        if not isinstance(feedback, Tensor):
            feedback = torch.from_numpy(np.asarray(feedback, np.float64))
        check_values_exist(feedback.device)
        codes = check_feedback(feedback, feedback.shape[0] if feedback.dim() else 0, feedback.device)
        check_values(codes, None, None)
        codes = codes.reshape(codes.shape[0], -1).long()
        count = len(self.propensity_bias)
        if codes.shape[1] != count:
            raise ValueError(f"feedback: got {codes.shape[1]} signal(s); expected those of the heads, {count}")
        recorded, acted = (codes >= 0).sum(0), (codes == 1).sum(0)
        if not recorded.all():
            missing = int(recorded.argmin())
            name = self.signals[missing] if self.signals else missing
            raise ValueError(f"feedback: no row records signal {name!r}; expected rows with 1 or 0: leave it out")
        return self._start(acted / recorded)

    @torch.no_grad()
    def _start(self, rates: ArrayLike | Tensor) -> SignalHeads:
        """Set the biases of the propensities; see the argument `rates` of the class."""
        numbers = torch.as_tensor(rates if isinstance(rates, Tensor) else np.asarray(rates, np.float64)).reshape(-1)
        count = len(self.propensity_bias)
        if len(numbers) != count:
            raise ValueError(f"rates: got {len(numbers)} of them; expected one for each of {count} signal(s)")
        if not ((numbers >= 0) & (numbers <= 1)).all():
            raise ValueError(f"rates: got {numbers.tolist()}; expected numbers from 0 to 1")
        self.propensity_bias.copy_(start_logits(numbers))
        return self

    def forward(self, hidden: Tensor) -> SignalLogits:
        """Compute the logits, in float32 under any autocast.

        Args:
            hidden: Pooled hidden states, (N, H): one a row, such as that of the last token. Without a reward head the
                reward logits of another one, (N,) or (N, 1).

        Returns:
            Reward logits (N,), with the bias, and propensity logits (N, K), float32 (float64 for float64 `hidden`).

        Raises:
            ValueError: The shape is another.
        """
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        with torch.autocast(hidden.device.type, enabled=False):
            states, bias = hidden.to(dtype), self.propensity_bias.to(dtype)
            if self.reward_weight is None:
                check_rewards(states.squeeze(-1) if states.dim() == 2 else states)
                reward = states.reshape(-1)
            else:
                check_states(hidden, self.reward_weight.shape[0])
                reward = linear(states, self.reward_weight[None].to(dtype)).squeeze(-1)
            reward = reward + self.reward_bias.to(dtype)
            if self.propensity_weight is None:
                return SignalLogits(reward, for_every_row(bias, torch.Size((len(reward), len(bias)))))
            return SignalLogits(reward, linear(states, self.propensity_weight.to(dtype), bias))

    def loss(self, hidden: Tensor, feedback: Tensor, **options: Any) -> Any:
        """Compute the loss by `linear_implicit_rm_loss`, which reads the hidden states once.

        Wrappers of several processes (DDP, FSDP) act on `forward` alone: call this within the `forward` of a model.

        Args:
            hidden: Pooled hidden states, (N, H).
            feedback: Feedback, (N,) if K is 1, or (N, K): 1 acted, 0 silent, -1 not recorded.
            **options: `preference`, `polarity`, `misclick_rate`, `weight`, `reduction`, `normalizer` and the other
                keywords of `implicit_rm_loss`.

        Returns:
            The loss, or with `return_groups` the pair (loss, groups).

        Raises:
            ValueError: The heads have no reward head.
        """
        if self.reward_weight is None:
            raise ValueError(
                "these heads have no reward head (hidden_size=None): use implicit_rm_loss(*heads(logits), ...)"
            )
        if self.propensity_weight is None:
            options["propensity_logits"] = self.propensity_bias
        else:
            options |= {"propensity_weight": self.propensity_weight, "propensity_bias": self.propensity_bias}
        with torch.autocast(hidden.device.type, enabled=False):
            return linear_implicit_rm_loss(
                hidden, self.reward_weight, feedback, reward_bias=self.reward_bias.squeeze(0), **options
            )

    def parameter_groups(
        self, lr: float, model: nn.Module | None = None, *, scalar_lr: float = SCALAR_LEARNING_RATE
    ) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser of torch, in which the scalars have a learning rate of their own.

        An optimiser such as Adam changes each parameter by about its learning rate in a step. Thousands of weights
        together move a logit far; a scalar alone would stay where it starts at the learning rate of a backbone.

        Args:
            lr: The learning rate of the weights: the backbone's.
            model: The model whose parameters are trained too, such as the one that holds these heads. None: the heads
                alone.
            scalar_lr: The learning rate of the biases of reward and propensities, which have no weight decay.

        Returns:
            The groups: `torch.optim.AdamW(heads.parameter_groups(2e-5, model))`. Parameters that need no gradient are
            left out.
        """
        scalars = [self.reward_bias, self.propensity_bias]
        known = {id(parameter) for parameter in scalars}
        everything = dict.fromkeys([*(() if model is None else model.parameters()), *self.parameters()])
        weights = [parameter for parameter in everything if id(parameter) not in known]
        groups: list[dict[str, Any]] = [
            {"params": weights, "lr": lr},
            {"params": scalars, "lr": scalar_lr, "weight_decay": 0.0},
        ]
        for group in groups:
            group["params"] = [parameter for parameter in group["params"] if parameter.requires_grad]
        return [group for group in groups if group["params"]]

    def extra_repr(self) -> str:
        """Describe the heads, for `print`."""
        design = "constant" if self.propensity_weight is None else "hidden"
        signals = self.signals or len(self.propensity_bias)
        width = None if self.reward_weight is None else len(self.reward_weight)
        return f"hidden_size={width}, signals={signals}, propensity_design={design!r}"


def start_logits(rates: Tensor) -> Tensor:
    """Propensity logits with which signals act at these rates where the probability of preference is 1/2.

    Args:
        rates: Rates from 0 to 1, of any shape. Those beyond what such propensities can give are clamped.
    """
    return torch.logit((2 * rates).clamp(0.01, 0.95))
