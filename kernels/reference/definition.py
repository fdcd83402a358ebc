"""The definition of right: the four-group model in plain float64 PyTorch.

Slow, short, readable beside the mathematics. Gradients come from autograd; no closed form of a gradient stands here.
Every kernel is checked against this file, and this file against an independent high-precision evaluation in the tests.

Symbols, for one row and signal k (arXiv:2603.23184, section 3; several signals, misclicks and labels go beyond it):
    g   = sigmoid(s)     P(r* = 1): the user prefers the response; s is the reward logit
    m_k = sigmoid(t_k)   P(a_k = 1): the user is active on signal k; t_k is the propensity logit
    e_k                  P(f_k = 1 | a_k = 1, r* on the side that signal k does not speak for): the misclick rate
    f_k                  1 acted, 0 silent, -1 missing
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


class LogLikelihoods(NamedTuple):
    """Log-likelihoods of the recorded feedback on both sides of the preference, and posteriors of activity."""

    log_p_preferred: Tensor  # (N,)  A = sum_k log P(f_k | r* = 1); -inf where the label says r* = 0
    log_p_other: Tensor  # (N,)  C = sum_k log P(f_k | r* = 0); -inf where the label says r* = 1
    active_preferred: Tensor  # (N, K)  P(a_k = 1 | r* = 1, f_k)
    active_other: Tensor  # (N, K)  P(a_k = 1 | r* = 0, f_k)


def implicit_rm_loss(
    reward_logits: Tensor,
    propensity_logits: Tensor,
    feedback: Tensor,
    *,
    preference: Tensor | None = None,
    polarity=None,
    misclick_rate=None,
    stratification: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Loss of every row, (N,) float64, differentiable by autograd.

    Shapes: `reward_logits` (N,), `propensity_logits` (N, K), (K,) or (), `feedback` (N, K), `preference` (N,);
    `polarity` and `misclick_rate` a number or (K,). Arguments mean what they mean in `irm_fast.implicit_rm_loss`.
    """
    s, t = _finite(reward_logits), _finite(propensity_logits).expand(feedback.shape)
    options = (preference, polarity, misclick_rate)
    if stratification is None:
        return -torch.logsumexp(_joint(s, _log_likelihoods(t, feedback, *options)), dim=0)

    with torch.no_grad():  # posteriors are constants
        e = _log_likelihoods(_finite(stratification[1]).expand(feedback.shape), feedback, *options)
        q, not_q = torch.softmax(_joint(_finite(stratification[0]), e), dim=0)
        active = q[:, None] * e.active_preferred + not_q[:, None] * e.active_other  # p_k = PA + NA
        impossible = torch.isinf(e.log_p_preferred) & torch.isinf(e.log_p_other)
    recorded = ~_is_missing(feedback)
    t, active = torch.where(recorded, t, 0.0), torch.where(recorded, active, 0.0)
    loss = cross_entropy(q, s) + (cross_entropy(active, t) * recorded).sum(1)
    return loss.masked_fill(impossible, torch.inf)


def linear_implicit_rm_loss(
    hidden: Tensor,
    reward_weight: Tensor,
    feedback: Tensor,
    *,
    reward_bias: Tensor | float = 0.0,
    propensity_weight: Tensor | None = None,
    propensity_bias: Tensor | float = 0.0,
    propensity_logits: Tensor | None = None,
    **options,
) -> Tensor:
    """`implicit_rm_loss` of the logits that linear heads form of hidden (N, H): (N,) float64, feedback (N, K)."""
    h = hidden.double()
    if propensity_weight is not None:
        propensity_logits = h @ propensity_weight.double().T + propensity_bias
    assert propensity_logits is not None
    return implicit_rm_loss(h @ reward_weight.double() + reward_bias, propensity_logits, feedback, **options)


def pointwise_loss(reward_logits: Tensor, positive_weight: Tensor, negative_weight: Tensor) -> Tensor:
    """Loss of every row, (N,) float64: `w1 softplus(-s) + w0 softplus(s)`; 0 where both weights are, whatever s is."""
    dropped = (positive_weight == 0) & (negative_weight == 0)
    s = _finite(reward_logits)
    # softplus(x) is -logsigmoid(-x); PyTorch's own softplus is linear from x = 20 on.
    rows = -positive_weight.double() * logsigmoid(s) - negative_weight.double() * logsigmoid(-s)
    return rows.masked_fill(dropped, 0.0)


def stratify(
    reward_logits: Tensor,
    propensity_logits: Tensor,
    feedback: Tensor,
    *,
    preference: Tensor | None = None,
    polarity=None,
    misclick_rate=None,
) -> Tensor:
    """Posterior over the four groups of every row and signal: (N, K, 4) float64 in the order PA, NA, PP, NP.

    PA: preferred and active, NA: not preferred and active, PP: preferred and passive, NP: not preferred and passive.
    """
    s, t = _finite(reward_logits), _finite(propensity_logits).expand(feedback.shape)
    e = _log_likelihoods(t, feedback, preference, polarity, misclick_rate)
    q, not_q = torch.softmax(_joint(s, e), dim=0)[..., None]
    return torch.stack(
        [
            q * e.active_preferred,
            not_q * e.active_other,
            q * (1 - e.active_preferred),
            not_q * (1 - e.active_other),
        ],
        dim=-1,
    )


def cross_entropy(target: Tensor, logit: Tensor) -> Tensor:
    """CE(q, s) = -[q log sigmoid(s) + (1 - q) log sigmoid(-s)], elementwise."""
    return -(target * logsigmoid(logit) + (1 - target) * logsigmoid(-logit))


def _joint(s: Tensor, e: LogLikelihoods) -> Tensor:
    """log P(f, r* = 1) and log P(f, r* = 0), (2, N)."""
    return torch.stack([logsigmoid(s) + e.log_p_preferred, logsigmoid(-s) + e.log_p_other])


def _log_likelihoods(t: Tensor, feedback: Tensor, preference: Tensor | None, polarity, misclick_rate) -> LogLikelihoods:
    acted, missing = feedback == 1, _is_missing(feedback)
    e = torch.as_tensor(0.0 if misclick_rate is None else misclick_rate, dtype=t.dtype, device=t.device)
    speaks_for_preferred = torch.as_tensor(1 if polarity is None else polarity).to(t.device) > 0

    m = torch.sigmoid(t)
    active_own = torch.where(missing, m, acted.to(t))
    active_other = torch.where(acted, 1.0, torch.where(missing, m, m * (1 - e) / (1 - e * m)))

    t = torch.where(missing, 0.0, t)  # a missing entry says nothing, whatever its logit holds
    own = torch.where(acted, logsigmoid(t), logsigmoid(-t)).masked_fill(missing, 0.0)
    other = torch.where(acted, e.log() + logsigmoid(t), torch.log1p(-e * torch.sigmoid(t))).masked_fill(missing, 0.0)
    log_p_preferred = torch.where(speaks_for_preferred, own, other).sum(1)
    log_p_other = torch.where(speaks_for_preferred, other, own).sum(1)
    if preference is not None:
        log_p_preferred = log_p_preferred.masked_fill(preference == 0, -torch.inf)
        log_p_other = log_p_other.masked_fill(preference == 1, -torch.inf)
    return LogLikelihoods(
        log_p_preferred,
        log_p_other,
        torch.where(speaks_for_preferred, active_own, active_other),
        torch.where(speaks_for_preferred, active_other, active_own),
    )


def _is_missing(feedback: Tensor) -> Tensor:
    """Whether an entry is not recorded: -1, or NaN among feedback of floating point."""
    return (feedback == -1) | feedback.isnan()


def _finite(logits: Tensor) -> Tensor:
    """float64, with infinities turned into NaN: an infinite logit is a broken model, not a certain one."""
    logits = logits.double()
    return logits + (logits - logits)
