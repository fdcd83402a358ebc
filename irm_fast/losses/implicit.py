"""`implicit_rm_loss` and `stratify`: argument checks, then one operation (operator.py) on one batch (kernels/batch.py).

Method: ImplicitRM, arXiv:2603.23184, section 3, extended to several signals, labels and misclicks. A user prefers the
response with probability g = sigmoid(reward logit) and, independently, is active on signal k with probability m_k =
sigmoid(propensity logit). The user acts on a signal if active and the response is on the signal's side, which is
"preferred" for polarity 1 and "not preferred" for polarity -1: m_k = P(acts on k | the response is on its side).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import torch
from torch import Tensor, nn

from irm_fast.kernels.batch import Batch
from irm_fast.kernels.reference.values import check_values as check_values_of
from irm_fast.losses import batch_checks, checks
from irm_fast.losses.dispatch import Backend, choose_backend
from irm_fast.losses.operator import Operation, Reduction, divided, mean_over, scaled_gradients

if TYPE_CHECKING:
    from typing_extensions import Unpack

PerSignal = float | Sequence[float] | Tensor  # one number for all signals, or K of them


class LossOptions(TypedDict, total=False):
    """The keywords of the losses other than `return_groups`, for type checkers."""

    preference: Tensor | None
    polarity: PerSignal | None
    misclick_rate: PerSignal | None
    stratification: tuple[Tensor, Tensor] | None
    weight: Tensor | None
    reduction: Reduction
    normalizer: float | Tensor | None
    check_values: bool
    backend: str | None


@overload
def implicit_rm_loss(
    reward_logits: Tensor,
    propensity_logits: Tensor,
    feedback: Tensor,
    *,
    return_groups: Literal[False] = False,
    **options: Unpack[LossOptions],
) -> Tensor: ...
@overload
def implicit_rm_loss(
    reward_logits: Tensor,
    propensity_logits: Tensor,
    feedback: Tensor,
    *,
    return_groups: Literal[True],
    **options: Unpack[LossOptions],
) -> tuple[Tensor, Tensor]: ...
def implicit_rm_loss(
    reward_logits: Tensor,
    propensity_logits: Tensor,
    feedback: Tensor,
    *,
    preference: Tensor | None = None,
    polarity: PerSignal | None = None,
    misclick_rate: PerSignal | None = None,
    stratification: tuple[Tensor, Tensor] | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | None = None,
    return_groups: bool = False,
    check_values: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Unbiased reward-model loss on implicit feedback; posterior, loss and gradients are computed in one launch.

    Without `stratification` it is the negative log-likelihood of the feedback: for one signal `-log(g m)` where the
    user acted and `-log(1 - g m)` where not, with preference probability g and propensity m, the sigmoids of the
    logits. With it, the two cross-entropies of the paper (arXiv:2603.23184, section 3) against the posterior that the
    given logits imply, which is held constant. With equal logits both have the same gradients.

    Evidence that contradicts itself (a click and a thumbs-down where no misclick is allowed) has likelihood zero: its
    loss is +inf and its gradients are NaN. A logit that is not finite gives NaN. Inputs are never written to. Double
    backward and `torch.func.vmap` are not supported and raise; `torch.func.grad` is supported.

    Args:
        reward_logits: (N,) float32, bfloat16 or float16; float64 selects the reference backend.
        propensity_logits: (N,), or (N, K) for K signals, at most 16; same dtypes. Or constants, the same for every row:
            (K,), of one signal (1,), or () for all signals; their gradient is the sum over the rows. Logits of
            P(acts on the signal | the response is on the signal's side).
        feedback: (N,), or (N, K) for K signals: 1 acted, 0 silent, -1 not recorded (has no effect). Bool, integer, or
            floating point of exactly 1, 0, -1 and NaN, which means -1.
        preference: Explicit labels, (N,), of the same dtypes: 1 preferred, 0 not preferred, -1 or NaN unknown; None:
            all unknown.
        polarity: A number or (K,): 1 if users act because they like the response (click, copy), -1 if because they
            dislike it (thumbs-down); numbers, sequence, NumPy array or CPU tensor. None: all 1.
        misclick_rate: A number or (K,) in [0, 1), in the same forms:
            P(acts | active, the response is not on the signal's side). None: all 0.
        stratification: (reward_logits', propensity_logits') of a separate stratification model, shapes and dtypes as
            above; constants. None: the likelihood.
        weight: Row weights >= 0, (N,) floating point, integer or bool, read as float32 (float64 for float64 reward
            logits); constant. A row of weight 0 contributes nothing, whatever it holds. None: all 1.
        reduction: "mean" is sum(weight * loss) / N, as in PyTorch; "sum"; "none" gives weight * loss, (N,).
        normalizer: Finite number above 0, or 0-dim tensor on the device or the CPU, that replaces N under "mean":
            usually the number of rows of the whole optimiser step. Not `num_items_in_batch` of transformers.Trainer,
            which counts all N K entries of the feedback: `irm_fast.hf.compute_loss_func` divides by its rows. None: N.
        return_groups: Whether to return the posterior too, see `stratify`: of the logits in `stratification` if given.
            It comes from the same launch and carries no gradient.
        check_values: Whether to check values too, which waits for the device. The CPU and reference backends always
            check them; on a GPU an impossible value otherwise gives NaN.
        backend: "triton", "cpu" or "reference"; None chooses by device and dtype.

    Returns:
        The loss in float32 (float64 for float64 logits), of shape () or, for "none", (N,). With `return_groups`
        the pair (loss, groups). Gradients have the dtype of their logits, rounded once.

    Raises:
        TypeError: A tensor is no dense `torch.Tensor` or has no values (meta and fake tensors); logits are not floating
            point; feedback or preference is complex; weight is not real; polarity or misclick_rate is not a number, a
            sequence of numbers or a CPU tensor; normalizer is neither a number nor a tensor.
        ValueError: Shapes or devices do not fit; polarity, misclick_rate, reduction, normalizer or backend is invalid;
            stratification is not a pair; weight or normalizer requires a gradient; a value of feedback, preference or
            weight is impossible and values are checked; or "mean" is taken over no rows without a normalizer.
        RuntimeError: The backend is not available, or a second derivative or `vmap` was asked for.

    Examples:
        >>> import torch, irm_fast
        >>> reward_logits = torch.zeros(4, requires_grad=True)
        >>> propensity_logits = torch.zeros(4, 2, requires_grad=True)
        >>> feedback = torch.tensor([[1, 0], [0, 0], [0, -1], [1, 1]])
        >>> loss = irm_fast.implicit_rm_loss(reward_logits, propensity_logits, feedback)
        >>> loss.backward()
        >>> print(f"{loss.item():.4f}")
        1.2291
    """
    # Arguments
    propensity_logits, feedback, preference, dtype = batch_checks.check_batch(
        reward_logits, propensity_logits, feedback, preference
    )
    n_signals = propensity_logits.shape[1] if propensity_logits.dim() == 2 else 1
    sides, rates = checks.signal_constants(polarity, misclick_rate, n_signals)
    reward_strat = propensity_strat = None
    if stratification is not None:
        reward_strat, propensity_strat = batch_checks.check_stratification(
            stratification, reward_logits, propensity_logits
        )
    weight = checks.check_options(reward_logits, weight, reduction, normalizer)
    if check_values:
        check_values_of(feedback, preference, weight)

    # One batch, one launch
    scale, divide_by = mean_over(reduction, normalizer)
    batch = Batch(
        feedback=feedback,
        preference=preference,
        weight=weight,
        reward_strat=reward_strat,
        propensity_strat=propensity_strat,
        polarity=sides,
        misclick_rate=rates,
        scale=scale,
        per_row=reduction == "none",
        need_groups=return_groups,
        backend=backend,
    )
    loss, groups = implicit_rm(reward_logits, propensity_logits, options=batch)
    loss = divided(loss, divide_by)
    return loss if groups is None or not return_groups else (loss, groups.to(dtype))


def stratify(
    reward_logits: Tensor,
    propensity_logits: Tensor,
    feedback: Tensor,
    *,
    preference: Tensor | None = None,
    polarity: PerSignal | None = None,
    misclick_rate: PerSignal | None = None,
) -> Tensor:
    """Posterior over the four latent groups of every row and signal.

    PA: preferred and active, NA: not preferred and active, PP: preferred and passive, NP: not preferred and passive. No
    gradient flows through it. Rows whose evidence contradicts itself, or whose logits are not finite, are NaN. Source:
    arXiv:2603.23184, Table 1 (the labels of NA and PP are interchanged in its equation 6).

    Args:
        reward_logits: (N,) float32, bfloat16, float16 or float64.
        propensity_logits: (N,) or (N, K), or constants (K,) or (), same dtypes, as in `implicit_rm_loss`.
        feedback: (N,) or (N, K): 1 acted, 0 silent, -1 not recorded, as in `implicit_rm_loss`.
        preference: Explicit labels (N,), as in `implicit_rm_loss`; None: all unknown.
        polarity: A number or (K,) of 1 and -1, as in `implicit_rm_loss`; None: all 1.
        misclick_rate: A number or (K,) in [0, 1), as in `implicit_rm_loss`; None: all 0.

    Returns:
        (N, 4), or (N, K, 4) for two-dimensional feedback, in the dtype of `propensity_logits`, in the order PA, NA,
        PP, NP; every four sum to one.

    Raises:
        TypeError: As `implicit_rm_loss`.
        ValueError: As `implicit_rm_loss`.
        RuntimeError: As `implicit_rm_loss`.

    Examples:
        >>> import torch, irm_fast
        >>> irm_fast.stratify(torch.zeros(1), torch.zeros(1), torch.tensor([0]))
        tensor([[0.0000, 0.3333, 0.3333, 0.3333]])
    """
    propensity_logits, feedback, preference, dtype = batch_checks.check_batch(
        reward_logits, propensity_logits, feedback, preference
    )
    checks.check_values_exist(reward_logits.device)
    n_signals = propensity_logits.shape[1] if propensity_logits.dim() == 2 else 1
    sides, rates = checks.signal_constants(polarity, misclick_rate, n_signals)
    batch = Batch(
        feedback=feedback,
        preference=preference,
        weight=None,
        reward_strat=None,
        propensity_strat=None,
        polarity=sides,
        misclick_rate=rates,
        scale=1.0,
        per_row=False,
        need_groups=True,
        backend=None,
    )
    with torch.no_grad():
        _, groups = implicit_rm(reward_logits, propensity_logits, options=batch)
    assert groups is not None
    return groups.to(dtype)


class ImplicitRMLoss(nn.Module):
    """`irm_fast.implicit_rm_loss` as a module that keeps the settings of a log. It has no parameters.

    Call it as `loss_fn(reward_logits, propensity_logits, feedback)`, see `forward`; the settings are checked then.

    Args:
        polarity: As in `implicit_rm_loss`.
        misclick_rate: As in `implicit_rm_loss`.
        reduction: As in `implicit_rm_loss`.
        backend: As in `implicit_rm_loss`.

    Examples:
        >>> import torch, irm_fast
        >>> loss_fn = irm_fast.ImplicitRMLoss(polarity=[1, -1], misclick_rate=0.01)
        >>> feedback = torch.tensor([[1, 0], [0, 1], [0, 0]])  # a copy, a thumbs-down, silence
        >>> loss = loss_fn(torch.zeros(3), torch.zeros(3, 2), feedback)
        >>> print(f"{loss.item():.3f}")
        1.157
    """

    def __init__(
        self,
        *,
        polarity: PerSignal | None = None,
        misclick_rate: PerSignal | None = None,
        reduction: Reduction = "mean",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.polarity = polarity
        self.misclick_rate = misclick_rate
        self.reduction: Reduction = reduction
        self.backend = backend

    def forward(self, reward_logits: Tensor, propensity_logits: Tensor, feedback: Tensor, **batch: Any) -> Any:
        """Return `implicit_rm_loss` of a batch, under the settings of the module; shapes, dtypes and errors as there.

        Args:
            reward_logits: Reward logits, (N,).
            propensity_logits: Propensity logits, (N,) or (N, K), or constants (K,) or ().
            feedback: Feedback, (N,) or (N, K): 1 acted, 0 silent, -1 not recorded.
            **batch: `preference`, `weight`, `stratification`, `normalizer`, `return_groups` and `check_values`, as in
                `implicit_rm_loss`.

        Returns:
            The loss, or with `return_groups` the pair (loss, groups).
        """
        return implicit_rm_loss(
            reward_logits,
            propensity_logits,
            feedback,
            polarity=self.polarity,
            misclick_rate=self.misclick_rate,
            reduction=self.reduction,
            backend=self.backend,
            **batch,
        )

    def extra_repr(self) -> str:
        """Describe the settings, for `print`."""
        return f"polarity={self.polarity}, misclick_rate={self.misclick_rate}, reduction={self.reduction!r}"


def _backend(reward: Tensor, propensity: Tensor, name: str | None) -> Backend:
    """Return the backend for logits of these dtypes, on their device."""
    return choose_backend(name, reward.device.type, torch.float64 in (reward.dtype, propensity.dtype))


def _run(reward: Tensor, propensity: Tensor, batch: Batch, need: tuple[bool, bool]) -> tuple[Tensor | None, ...]:
    """Return the loss, the groups, and the float32 (float64 for float64 logits) gradients of both logits.

    A backend that has a kernel for the backward pass computes the gradients there, and none here: it moves fewer bytes.
    """
    backend = _backend(reward, propensity, batch.backend)
    if backend.implicit_rm_gradients is not None:
        need = (False, False)
    loss, grad_reward, grad_propensity, groups = backend.implicit_rm_forward(reward, propensity, batch, need)
    return loss, None if groups is None else groups.to(propensity.dtype), grad_reward, grad_propensity


def _fake(reward: Tensor, propensity: Tensor, batch: Batch, need: tuple[bool, bool]) -> tuple[Tensor, ...]:
    """Return tensors of the shapes and dtypes of `_run`, empty where it returns None."""
    empty = reward.new_empty
    dtype = torch.float64 if torch.float64 in (reward.dtype, propensity.dtype) else torch.float32
    if _backend(reward, propensity, batch.backend).implicit_rm_gradients is not None:
        need = (False, False)
    return (
        empty(reward.shape if batch.per_row else (), dtype=dtype),
        empty((*propensity.shape, 4), dtype=propensity.dtype) if batch.need_groups else empty(0, dtype=dtype),
        empty(reward.shape if need[0] else 0, dtype=dtype),
        empty(propensity.shape if need[1] else 0, dtype=dtype),
    )


def _keep(
    ctx: Any, inputs: tuple[Tensor, Tensor], batch: Batch, need: tuple[bool, bool], saved: Sequence[Tensor | None]
) -> Sequence[Tensor | None]:
    """Return the gradients of both logits, or all tensors where the backward pass computes these."""
    if _backend(*inputs, batch.backend).implicit_rm_gradients is None:
        return saved
    ctx.constants = (batch.polarity, batch.misclick_rate, batch.scale)
    return (*inputs, batch.feedback, batch.preference, batch.weight, batch.reward_strat, batch.propensity_strat)


def _gradients(ctx: Any, upstream: Tensor) -> Sequence[Tensor | None]:
    """Gradients of the reward logits and the propensity logits, where needed."""
    if len(ctx.saved_tensors) == 2:
        return scaled_gradients(ctx, upstream)
    need = ctx.needs_input_grad[:2]
    arguments = (upstream, *ctx.saved_tensors, *ctx.constants, ctx.backend, *need)
    grads = ctx.call(_compute_gradients, _gradients_operator, *arguments)
    return [grad if needed else None for grad, needed in zip(grads, need, strict=True)]


def _compute_gradients(
    upstream: Tensor,
    reward: Tensor,
    propensity: Tensor,
    feedback: Tensor,
    preference: Tensor | None,
    weight: Tensor | None,
    reward_strat: Tensor | None,
    propensity_strat: Tensor | None,
    polarity: Sequence[float],
    misclick_rate: Sequence[float],
    scale: float | None,
    backend: str | None,
    need_reward: bool,
    need_propensity: bool,
) -> tuple[Tensor, Tensor]:
    """Call `implicit_rm_gradients` of the backend; a gradient that is not needed is empty."""
    batch = Batch(
        feedback=feedback,
        preference=preference,
        weight=weight,
        reward_strat=reward_strat,
        propensity_strat=propensity_strat,
        polarity=tuple(polarity),
        misclick_rate=tuple(misclick_rate),
        scale=scale,
        per_row=False,
        need_groups=False,
        backend=backend,
    )
    compute = _backend(reward, propensity, backend).implicit_rm_gradients
    assert compute is not None
    grad_reward, grad_propensity = compute(reward, propensity, batch, upstream, (need_reward, need_propensity))
    nothing = reward.new_empty(0)
    return nothing if grad_reward is None else grad_reward, nothing if grad_propensity is None else grad_propensity


implicit_rm = Operation(
    "implicit_rm",
    loss="implicit_rm_loss",
    inputs=("reward", "propensity"),
    options=Batch,
    run=_run,
    fake=_fake,
    results=4,
    gradients=_gradients,
    keep=_keep,
)
# The backward pass of a backend that computes the gradients there, for graphs of torch.compile.
_gradients_operator = torch.library.custom_op("irm_fast::implicit_rm_gradients", _compute_gradients, mutates_args=())


@_gradients_operator.register_fake
def _(upstream: Tensor, reward: Tensor, propensity: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    need_reward, need_propensity = rest[-2:]
    return reward.new_empty(reward.shape if need_reward else 0), propensity.new_empty(
        propensity.shape if need_propensity else 0
    )
