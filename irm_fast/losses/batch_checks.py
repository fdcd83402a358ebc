"""Checks of the tensors of a batch against each other: their kinds, shapes, dtypes and devices.

No value is read: nothing waits for a device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from irm_fast.losses import MAX_SIGNALS
from irm_fast.losses.checks import check_codes, check_logits, check_tensor
from irm_fast.losses.conversions import for_every_row, is_of_signals


def check_rewards(reward_logits: Tensor) -> None:
    """Check reward logits.

    Args:
        reward_logits: Must be (N,) float32, bfloat16, float16 or float64.

    Raises:
        TypeError: They are no dense tensor, or of another dtype.
        ValueError: The shape is another.
    """
    check_tensor("reward_logits", reward_logits)
    shape = reward_logits.shape
    if len(shape) != 1:
        hint = "; use reward_logits.squeeze(-1)" if len(shape) == 2 and shape[1] == 1 else ""
        raise ValueError(f"reward_logits must have shape (N,), got {tuple(shape)}{hint}")
    check_logits("reward_logits", reward_logits, None, reward_logits.device)


def check_batch(
    reward_logits: Tensor, propensity_logits: Tensor, feedback: Tensor, preference: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, torch.dtype]:
    """Check the tensors of a batch against each other; all must be on one device.

    Args:
        reward_logits: Must be (N,) float32, bfloat16, float16 or float64.
        propensity_logits: Must be (N,) or (N, K) with K from 1 to 16, or constants, () or (K,); the same dtypes.
        feedback: Must be (N,) or (N, K), and shaped like `propensity_logits` if these are no constants; bool, integer
            or floating point.
        preference: Must be (N,), of the same dtypes as `feedback`; None: no labels.

    Returns:
        Propensity logits of rows, (N,) or (N, K); the feedback and the preference as integers; and the dtype of groups,
        which is that of the propensity logits as they were given.

    Raises:
        TypeError: One is no dense tensor, or of another dtype.
        ValueError: A shape or device does not fit.
    """
    check_rewards(reward_logits)
    shape, device = reward_logits.shape, reward_logits.device
    check_logits("propensity_logits", propensity_logits, None, device)
    dtype = propensity_logits.dtype
    n, wanted = shape[0], propensity_logits.shape
    if len(wanted) < 2 and (wanted != shape or (isinstance(feedback, Tensor) and feedback.dim() == 2)):
        feedback = check_feedback(feedback, n, device)
        propensity_logits = logits_of_rows("propensity_logits", propensity_logits, feedback.shape)
    else:
        if len(wanted) not in (1, 2) or wanted[0] != n:
            raise ValueError(f"propensity_logits must have shape ({n},) or ({n}, K), got {tuple(wanted)}")
        if len(wanted) == 2 and not 1 <= wanted[1] <= MAX_SIGNALS:
            raise ValueError(f"propensity_logits must hold 1 to {MAX_SIGNALS} signals, got shape {tuple(wanted)}")
        feedback = check_codes("feedback", feedback, wanted, device)
    if preference is not None:
        preference = check_codes("preference", preference, shape, device)
    return propensity_logits, feedback, preference, dtype


def logits_of_rows(name: str, logits: Tensor, rows: torch.Size) -> Tensor:
    """Return logits of rows as they are, and constants for every row.

    Args:
        name: The name of the argument, for the error.
        logits: Must have the shape of rows, or be constants of signals, () or (K,).
        rows: The shape of the feedback, (N,) of one signal or (N, K).

    Raises:
        ValueError: The shape is another.
    """
    if logits.shape == rows:
        return logits
    if is_of_signals(logits, rows):
        return for_every_row(logits, rows)
    raise ValueError(
        f"{name} must have shape {tuple(rows)} as the feedback has, or {tuple(rows[1:]) or (1,)} or () for constants, "
        f"got {tuple(logits.shape)}"
    )


def check_feedback(feedback: Tensor, n: int, device: torch.device) -> Tensor:
    """Check feedback on n rows, whose values are not read.

    Args:
        feedback: Must be (N,) or (N, K) with K from 1 to 16; bool, integer or floating point.
        n: The number N of rows.
        device: The device that it must be on.

    Returns:
        The feedback as `check_codes` returns it.

    Raises:
        TypeError: It is no dense tensor, or of another dtype.
        ValueError: The shape or device does not fit.
    """
    codes = check_codes("feedback", feedback, None, device)
    shape = codes.shape
    if len(shape) not in (1, 2) or shape[0] != n or (len(shape) == 2 and not 1 <= shape[1] <= MAX_SIGNALS):
        raise ValueError(
            f"feedback must have shape ({n},) or ({n}, K) with K from 1 to {MAX_SIGNALS}, got {tuple(shape)}"
        )
    return codes


def check_states(hidden: Tensor, width: int | None = None) -> None:
    """Check pooled hidden states.

    Args:
        hidden: Must be (N, H) with H > 0, float32, bfloat16, float16 or float64.
        width: The number that H must be; None: any.

    Raises:
        TypeError: They are no dense tensor, or of another dtype.
        ValueError: The shape is another.
    """
    check_tensor("hidden", hidden)
    if hidden.dim() != 2 or not hidden.shape[1] or (width is not None and hidden.shape[1] != width):
        wanted = f"(N, {width or 'H'})"
        raise ValueError(f"hidden must have shape {wanted}, one pooled state a row, got {tuple(hidden.shape)}")
    check_logits("hidden", hidden, None, hidden.device)


def check_hidden(hidden: Tensor, feedback: Tensor) -> Tensor:
    """Check hidden states and feedback, which must be on one device.

    Args:
        hidden: Must be (N, H) with H > 0, float32, bfloat16, float16 or float64.
        feedback: Must be (N,) or (N, K) with K from 1 to 16, bool, integer or floating point.

    Returns:
        The feedback as integers.

    Raises:
        TypeError: One is no dense tensor, or of another dtype.
        ValueError: A shape or device does not fit.
    """
    check_states(hidden)
    return check_feedback(feedback, hidden.shape[0], hidden.device)


def check_heads(
    hidden: Tensor,
    n_signals: int,
    reward_weight: Tensor,
    reward_bias: Tensor | None,
    propensity_weight: Tensor | None,
    propensity_bias: Tensor | None,
) -> None:
    """Check linear heads, which may each be float32, bfloat16, float16 or float64.

    Args:
        hidden: Hidden states (N, H), on whose device the heads must be.
        n_signals: The number K of signals.
        reward_weight: Must be (H,).
        reward_bias: Must be () or None.
        propensity_weight: Must be (K, H), or None for no propensity heads.
        propensity_bias: Must be (K,) or None, and None without `propensity_weight`.

    Raises:
        TypeError: One is no dense tensor, or of another dtype.
        ValueError: A shape or device does not fit, or there are propensity biases without weights.
    """
    width, none = hidden.shape[1], torch.Size(())
    check_tensor("reward_weight", reward_weight)
    shapes: dict[str, tuple[Tensor | None, torch.Size]] = {
        "reward_weight": (reward_weight, torch.Size((width,))),
        "reward_bias": (reward_bias, none),
        "propensity_weight": (propensity_weight, torch.Size((n_signals, width))),
        "propensity_bias": (propensity_bias, torch.Size((n_signals,))),
    }
    for name, (x, shape) in shapes.items():
        if x is None:
            continue
        check_logits(name, x, None, hidden.device)
        if x.shape != shape:
            hint = f"; use {name}.squeeze(0)" if x.shape == (1, *shape) else ""
            raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(x.shape)}{hint}")
    if propensity_bias is not None and propensity_weight is None:
        raise ValueError("propensity_bias belongs to propensity_weight; constants go into propensity_logits")


def check_given_propensity(logits: Tensor, hidden: Tensor, feedback: Tensor) -> Tensor:
    """Check propensity logits that take the place of propensity heads.

    Args:
        logits: Must be shaped like `feedback`, or constants, () or (K,); floating point, float64 only if `hidden` is.
        hidden: Hidden states (N, H).
        feedback: Feedback (N,) or (N, K).

    Returns:
        The logits as (N, K), or constants as (K,).

    Raises:
        TypeError: They are no dense tensor, or of another dtype.
        ValueError: The shape or device does not fit, or they alone are float64.
    """
    check_logits("propensity_logits", logits, None, hidden.device)
    if logits.dtype == torch.float64 and hidden.dtype != torch.float64:
        raise ValueError("propensity_logits are float64, hidden is not: convert one of them")
    rows = feedback.shape
    if is_of_signals(logits, rows):
        return logits if logits.dim() else logits.expand(rows[1:] or (1,))
    return logits_of_rows("propensity_logits", logits, rows).reshape(rows[0], rows[1] if len(rows) == 2 else 1)


def check_stratification(
    stratification: tuple[Tensor, Tensor], reward_logits: Tensor, propensity_logits: Tensor
) -> tuple[Tensor, Tensor]:
    """Check the logits of a separate stratification model, which the posterior comes from.

    Args:
        stratification: Must be a pair of logits shaped like the next two arguments, on the device of `reward_logits`;
            the propensities may be constants, () or (K,).
        reward_logits: Of the shape (N,).
        propensity_logits: Of the shape (N,) or (N, K); `linear_implicit_rm_loss` gives the feedback, which has it too.

    Returns:
        The pair, detached, and float64 rounded to float32 unless one of the other two arguments is float64.

    Raises:
        TypeError: One of the two is no dense tensor, or not floating point.
        ValueError: It is no pair, or a shape or device does not fit.
    """
    if not isinstance(stratification, Sequence) or len(stratification) != 2:
        raise ValueError("stratification must be a pair (reward_logits, propensity_logits), or None")
    reward, propensity = stratification
    device = reward_logits.device
    check_logits("stratification[0]", reward, reward_logits.shape, device)
    check_logits("stratification[1]", propensity, None, device)
    propensity = logits_of_rows("stratification[1]", propensity, propensity_logits.shape)
    if torch.float64 not in (reward_logits.dtype, propensity_logits.dtype):  # the kernels read float32 at most
        reward, propensity = (x.float() if x.dtype == torch.float64 else x for x in (reward, propensity))
    return reward.detach(), propensity.detach()
