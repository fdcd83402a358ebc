"""`linear_implicit_rm_loss`: reward head, propensity heads and loss in one read of the hidden states.

The forward pass reads the hidden states once, for the loss, the gradients of the logits and those of the heads. The
gradient of the hidden states is a product of logit gradients and heads: it is computed in backward, where the upstream
gradient is known, so that nothing of the size of the hidden states is stored in between or scaled afterwards.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from irm_fast.kernels.batch import Batch
from irm_fast.kernels.reference.scale import scaled
from irm_fast.kernels.reference.values import check_values as check_values_of
from irm_fast.losses import batch_checks, checks
from irm_fast.losses.dispatch import choose_backend
from irm_fast.losses.implicit import LossOptions, PerSignal
from irm_fast.losses.operator import Operation, Reduction, divided, mean_over

if TYPE_CHECKING:
    from typing_extensions import Unpack

Need = tuple[bool, bool, bool]  # of hidden, parameters and propensity


@overload
def linear_implicit_rm_loss(
    hidden: Tensor,
    reward_weight: Tensor,
    feedback: Tensor,
    *,
    reward_bias: Tensor | None = None,
    propensity_weight: Tensor | None = None,
    propensity_bias: Tensor | None = None,
    propensity_logits: Tensor | None = None,
    return_groups: Literal[False] = False,
    **options: Unpack[LossOptions],
) -> Tensor: ...
@overload
def linear_implicit_rm_loss(
    hidden: Tensor,
    reward_weight: Tensor,
    feedback: Tensor,
    *,
    reward_bias: Tensor | None = None,
    propensity_weight: Tensor | None = None,
    propensity_bias: Tensor | None = None,
    propensity_logits: Tensor | None = None,
    return_groups: Literal[True],
    **options: Unpack[LossOptions],
) -> tuple[Tensor, Tensor]: ...
def linear_implicit_rm_loss(
    hidden: Tensor,
    reward_weight: Tensor,
    feedback: Tensor,
    *,
    reward_bias: Tensor | None = None,
    propensity_weight: Tensor | None = None,
    propensity_bias: Tensor | None = None,
    propensity_logits: Tensor | None = None,
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
    """Linear heads on hidden states, and `implicit_rm_loss` of their logits, in one read of the hidden states.

    The same value as `implicit_rm_loss(hidden @ reward_weight + reward_bias, hidden @ propensity_weight.T +
    propensity_bias, feedback)`, with logits, loss and sums in float32 whatever the dtype of `hidden` (float64 for
    float64). The forward pass reads `hidden` once and keeps the gradients of the logits, N (K+1) float32 numbers, and
    of the weights; backward computes the gradient of `hidden` without a second read. Nothing else kept grows with N.

    A second read is needed for the weights with `reduction="none"`, whose upstream gradients are not known in the
    forward pass, and on GPUs for wide heads: above 16,384 for next_pow2(M) times next_pow2(H), H taken as 2,048 at
    least, with M = K+1 heads, or 1 when `propensity_logits` are given. With bfloat16 hidden states on an H100 or
    later, up to 5 heads take one read up to H = 4,096.

    Args:
        hidden: (N, H) float32, bfloat16 or float16 with any stride between rows, such as a view into packed states;
            copied if the entries of a row are not adjacent. float64 selects the reference backend, in float64.
        reward_weight: (H,) weight of the reward head. All heads may be float32, bfloat16, float16 or float64, and are
            read as float32 (float64 for float64 `hidden`).
        feedback: (N,), or (N, K) for K signals, at most 16: 1 acted, 0 silent, -1 not recorded; dtypes as in
            `implicit_rm_loss`.
        reward_bias: () bias of the reward head; None: 0.
        propensity_weight: (K, H) weights of propensity heads on the same hidden states, or None.
        propensity_bias: (K,) biases of the propensity heads; None: 0.
        propensity_logits: Instead of propensity heads: constants, (K,) or () for all signals, or logits shaped like
            `feedback`; float32, bfloat16 or float16, or float64 with float64 `hidden`.
        preference: As in `implicit_rm_loss`.
        polarity: As in `implicit_rm_loss`.
        misclick_rate: As in `implicit_rm_loss`.
        stratification: As in `implicit_rm_loss`: logits of the shapes (N,) and of `feedback`, or constants.
        weight: As in `implicit_rm_loss`. A row of weight 0 contributes nothing, whatever its hidden state holds.
        reduction: As in `implicit_rm_loss`.
        normalizer: As in `implicit_rm_loss`.
        return_groups: As in `implicit_rm_loss`.
        check_values: As in `implicit_rm_loss`.
        backend: As in `implicit_rm_loss`.

    Returns:
        The loss in float32 (float64 for float64 hidden states), of shape () or, for "none", (N,). With
        `return_groups` the pair (loss, groups), groups of the same dtype, with the shape of `feedback` and 4 at its
        end. Gradients have the dtypes of their tensors, rounded once.

    Raises:
        TypeError: As `implicit_rm_loss`, or hidden states or heads are not floating point.
        ValueError: As `implicit_rm_loss`; not exactly one of `propensity_weight` and `propensity_logits` is given;
            `propensity_bias` is given without `propensity_weight`; or `propensity_logits` alone are float64.
        RuntimeError: As `implicit_rm_loss`.

    Examples:
        >>> import torch, irm_fast
        >>> hidden = torch.ones(4, 8, requires_grad=True)
        >>> feedback = torch.tensor([[1, 0], [0, 0], [0, -1], [1, 1]])
        >>> heads = torch.zeros(8, requires_grad=True), torch.zeros(2, 8, requires_grad=True)
        >>> loss = irm_fast.linear_implicit_rm_loss(hidden, heads[0], feedback, propensity_weight=heads[1])
        >>> loss.backward()
        >>> print(f"{loss.item():.4f}")
        1.2291
    """
    # Arguments
    feedback = batch_checks.check_hidden(hidden, feedback)
    n, n_signals = hidden.shape[0], feedback.shape[1] if feedback.dim() == 2 else 1
    batch_checks.check_heads(hidden, n_signals, reward_weight, reward_bias, propensity_weight, propensity_bias)
    if (propensity_weight is None) == (propensity_logits is None):
        raise ValueError("give either propensity_weight (heads) or propensity_logits (constants or logits)")
    if propensity_logits is not None:
        propensity_logits = batch_checks.check_given_propensity(propensity_logits, hidden, feedback)
    if preference is not None:
        preference = checks.check_codes("preference", preference, hidden.shape[:1], hidden.device)
    sides, rates = checks.signal_constants(polarity, misclick_rate, n_signals)
    reward_strat = propensity_strat = None
    if stratification is not None:
        reward_strat, propensity_strat = batch_checks.check_stratification(stratification, hidden[:, 0], feedback)
        propensity_strat = propensity_strat.reshape(n, n_signals)
    weight = checks.check_options(hidden, weight, reduction, normalizer)
    if check_values:
        check_values_of(feedback, preference, weight)

    # One batch, one launch
    scale, divide_by = mean_over(reduction, normalizer)
    batch = Batch(
        feedback=feedback.reshape(n, n_signals),
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
    biases = [reward_bias, propensity_bias]
    if propensity_logits is not None and propensity_logits.dim() == 1:
        biases, propensity_logits = [reward_bias, propensity_logits], None
    parameters = _stack(hidden, n_signals, reward_weight, propensity_weight, biases, propensity_logits is None)
    if hidden.stride(1) != 1:
        hidden = hidden.contiguous()
    loss, groups = linear_implicit_rm(hidden, parameters, propensity_logits, options=batch)
    loss = divided(loss, divide_by)
    return loss if groups is None or not return_groups else (loss, groups.reshape(*feedback.shape, 4))


def _stack(
    hidden: Tensor,
    n_signals: int,
    reward_weight: Tensor,
    propensity_weight: Tensor | None,
    biases: list[Tensor | None],
    of_all: bool,
) -> Tensor:
    """Return all parameters in one vector, in one launch: weights (M, H), then biases, the reward's first.

    There is a bias for each logit, K+1, or one where propensity logits are given. A constant propensity is a bias. The
    gradient is that of all parameters or none: whoever trains a bias alone pays for the weights.
    """
    pieces = [reward_weight] if propensity_weight is None else [reward_weight, propensity_weight.flatten()]
    for bias, count in zip(biases, (1, n_signals if of_all else 0), strict=True):
        if count:
            pieces.append(hidden.new_zeros(count, dtype=reward_weight.dtype) if bias is None else bias.reshape(count))
    dtypes = {piece.dtype for piece in pieces}
    if hidden.dtype == torch.float64:
        pieces = [piece.double() for piece in pieces]
    elif torch.float64 in dtypes:
        pieces = [piece.float() for piece in pieces]
    return torch.cat(pieces)


class _Parts(NamedTuple):
    """The vector of parameters, taken apart."""

    heads: Tensor  # (M, H)
    bias: Tensor  # (M,)
    constants: Tensor | None  # (K,): propensities without weights


def _parts(parameters: Tensor, width: int, n_signals: int, given: bool) -> _Parts:
    """Take the vector apart; `given` tells whether propensity logits of rows are given."""
    n_bias = 1 if given else n_signals + 1
    n_heads = (len(parameters) - n_bias) // width
    heads, biases = parameters[: n_heads * width].view(n_heads, width), parameters[n_heads * width :]
    return _Parts(heads, biases[:n_heads], biases[n_heads:] if n_heads < n_bias else None)


def _wanted(batch: Batch, need: Need) -> tuple[bool, bool]:
    """Return whether the forward pass computes the gradients of the logits, and that of the parameters.

    One upstream gradient for the whole batch scales the gradient of the parameters; one for each row needs a second
    read.
    """
    hidden, parameters, propensity = need
    return hidden or propensity or (parameters and batch.per_row), parameters and not batch.per_row


def _run(
    hidden: Tensor, parameters: Tensor, propensity: Tensor | None, batch: Batch, need: Need
) -> tuple[Tensor | None, ...]:
    """Return the loss, the groups, and the gradients of the logits (N, K+1) and of the parameters.

    Shapes: hidden (N, H), parameters as of `_stack`, propensity (N, K) or None, feedback (N, K). The last gradient has
    K+1 biases in every case.
    """
    (n, width), n_signals = hidden.shape, batch.feedback.shape[1]
    backend = choose_backend(batch.backend, hidden.device.type, parameters.dtype == torch.float64)
    heads, bias, constants = _parts(parameters, width, n_signals, propensity is not None)
    if constants is not None:
        propensity = constants.expand(n, n_signals)
    loss, grad_logits, grad_parameters, groups = backend.linear_implicit_rm_forward(
        hidden, heads, bias, propensity, batch, _wanted(batch, need)
    )
    return loss, groups, grad_logits, grad_parameters


def _fake(
    hidden: Tensor, parameters: Tensor, propensity: Tensor | None, batch: Batch, need: Need
) -> tuple[Tensor, ...]:
    """Return tensors of the shapes and dtypes of `_run`, empty where it returns None."""
    n, n_signals = batch.feedback.shape
    logits_wanted, parameters_wanted = _wanted(batch, need)
    dtype = torch.promote_types(parameters.dtype, torch.float32)
    length = len(parameters) + (0 if propensity is None else n_signals)
    return (
        hidden.new_empty(n if batch.per_row else (), dtype=dtype),
        hidden.new_empty((n, n_signals, 4) if batch.need_groups else 0, dtype=dtype),
        hidden.new_empty((n, n_signals + 1) if logits_wanted else 0, dtype=dtype),
        hidden.new_empty(length if parameters_wanted else 0, dtype=dtype),
    )


def _keep(
    ctx: Any, inputs: tuple[Tensor, ...], batch: Batch, need: Need, saved: tuple[Tensor | None, Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Return both gradients, the parameters, and for a second read the hidden states and the weight."""
    hidden, parameters, propensity = inputs
    grad_logits, grad_parameters = saved
    ctx.shape = (hidden.shape[1], batch.feedback.shape[1], propensity is not None)
    if need[1] and batch.per_row:
        return grad_logits, None, parameters, hidden, batch.weight
    return grad_logits, grad_parameters if need[1] else None, parameters, None, None


def _gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of hidden, parameters and propensity, where needed."""
    grad_logits, grad_parameters, parameters, hidden, weight = ctx.saved_tensors
    need_hidden, need_parameters, need_propensity = ctx.needs_input_grad[:3]
    hidden_dtype, _, propensity_dtype = ctx.dtypes
    heads = _parts(parameters, *ctx.shape).heads
    grad_hidden = grad_propensity = None
    device = upstream.device.type
    # Products of matrices stay in float32.
    with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
        if need_hidden:
            arguments = (grad_logits, upstream, heads, hidden_dtype, ctx.backend)
            grad_hidden = ctx.call(_hidden_grad, _hidden_grad_operator, *arguments)
        if need_parameters and grad_parameters is not None:
            grad_parameters = scaled(grad_parameters[: len(parameters)], upstream, parameters.dtype)
        elif need_parameters:
            rows = scaled(grad_logits, upstream, grad_logits.dtype)
            grads = ctx.call(_weight_grad, _weight_grad_operator, hidden, rows, weight, len(heads), ctx.backend)
            grad_parameters = torch.cat([grads.flatten(), rows.sum(0)])[: len(parameters)].to(parameters.dtype)
        if need_propensity:
            grad_propensity = scaled(grad_logits[:, 1:], upstream, propensity_dtype)
    return grad_hidden, grad_parameters if need_parameters else None, grad_propensity


def _hidden_grad(
    grad_logits: Tensor, upstream: Tensor, heads: Tensor, dtype: torch.dtype, backend: str | None
) -> Tensor:
    """Call `linear_hidden_grad` of the backend."""
    chosen = choose_backend(backend, grad_logits.device.type, heads.dtype == torch.float64)
    return chosen.linear_hidden_grad(grad_logits, upstream, heads, dtype)


def _weight_grad(
    hidden: Tensor, grad_logits: Tensor, weight: Tensor | None, n_heads: int, backend: str | None
) -> Tensor:
    """Call `linear_weight_grad` of the backend."""
    chosen = choose_backend(backend, hidden.device.type, grad_logits.dtype == torch.float64)
    return chosen.linear_weight_grad(hidden, grad_logits, weight, n_heads)


linear_implicit_rm = Operation(
    "linear_implicit_rm",
    loss="linear_implicit_rm_loss",
    inputs=("hidden", "parameters", "propensity?"),
    options=Batch,
    run=_run,
    fake=_fake,
    results=4,
    gradients=_gradients,
    keep=_keep,
)
# The two halves of the backward pass, for graphs of torch.compile.
_hidden_grad_operator = torch.library.custom_op("irm_fast::linear_hidden_grad", _hidden_grad, mutates_args=())
_weight_grad_operator = torch.library.custom_op("irm_fast::linear_weight_grad", _weight_grad, mutates_args=())


@_hidden_grad_operator.register_fake
def _(grad_logits: Tensor, upstream: Tensor, heads: Tensor, dtype: torch.dtype, backend: str | None) -> Tensor:
    return heads.new_empty((grad_logits.shape[0], heads.shape[1]), dtype=dtype)


@_weight_grad_operator.register_fake
def _(hidden: Tensor, grad_logits: Tensor, weight: Tensor | None, n_heads: int, backend: str | None) -> Tensor:
    return grad_logits.new_empty((n_heads, hidden.shape[1]))
