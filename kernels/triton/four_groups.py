"""Device functions of the four-group model on a tile of rows and signals: evidence, posterior, loss, gradients.

A tile is [BLOCK_N, BLOCK_K] with BLOCK_K a power of two; a column that is no signal counts as missing, and so
contributes nothing. What belongs to a row is [BLOCK_N, 1]. docs/why/numerics.md derives the forms. The C++ twin is
kernels/cpu/implicit_rm_block.cpp: the same quantities under the same names.
"""

import triton
import triton.language as tl
from irm_fast.kernels.triton.math import exp_nonpositive, exp_sigmoid, log1p_small, sigmoid_difference, sigmoid_softplus

INF = tl.constexpr(float("inf"))


@triton.jit
def four_groups_tile(
    b_s,  # [BLOCK_N, 1] reward logits, float32
    b_t,  # [BLOCK_N, BLOCK_K] propensity logits, float32
    o_n,  # [BLOCK_N, 1] int64, the rows
    m_n,  # [BLOCK_N, 1], the rows that exist
    o_k,  # [1, BLOCK_K], the signals; columns outside of 0..K-1 are padding
    reward_strat_ptr,
    propensity_strat_ptr,
    feedback_ptr,
    preference_ptr,
    weight_ptr,
    signals_ptr,
    loss_ptr,
    groups_ptr,
    scale,
    stride_reward_strat,
    stride_propensity_strat_n,
    stride_propensity_strat_k,
    stride_feedback_n,
    stride_feedback_k,
    stride_preference,
    K: tl.constexpr,
    HAS_MISCLICK: tl.constexpr,
    PER_ROW: tl.constexpr,
):
    """Loss [BLOCK_N, 1] and its gradients in b_s and b_t, weighted and scaled, and which rows have weight 0.

    Losses are stored here if PER_ROW, groups if there is a place for them. Rows that do not exist have loss 0.
    """
    m_k = (o_k >= 0) & (o_k < K)
    m_nk = m_n & m_k
    b_code = load_codes(feedback_ptr, o_n * stride_feedback_n + o_k * stride_feedback_k, m_nk)
    polarity = tl.load(signals_ptr + o_k, mask=m_k, other=1.0)
    rate = tl.load(signals_ptr + K + o_k, mask=m_k, other=0.0)
    b_s_post, b_t_post = b_s, b_t
    if reward_strat_ptr is not None:
        b_s_post = load_logits(reward_strat_ptr, o_n * stride_reward_strat, m_n)
        o_nk = o_n * stride_propensity_strat_n + o_k * stride_propensity_strat_k
        b_t_post = load_logits(propensity_strat_ptr, o_nk, m_nk)

    # The poison is NaN where a logit is not finite or a value impossible, else 0: added to the results of a row, it
    # makes them NaN. What a missing entry holds does not matter.
    b_poison = tl.where(b_code == -1, 0.0, invalid_code(b_code) + not_finite(b_t) + not_finite(b_t_post))
    b_poison = tl.sum(b_poison, 1, keep_dims=True) + not_finite(b_s) + not_finite(b_s_post)
    b_A, b_C, b_D, m, not_m = add_evidence(b_t_post, b_code, polarity, rate, signals_ptr, o_k, m_k, K, HAS_MISCLICK)
    if preference_ptr is not None:  # a label is evidence without limit
        b_label = load_codes(preference_ptr, o_n * stride_preference, m_n)
        b_poison += invalid_code(b_label)
        b_A = tl.where(b_label == 0, -INF, b_A)
        b_C = tl.where(b_label == 1, -INF, b_C)
        b_D = tl.where(b_label == 0, -INF, tl.where(b_label == 1, INF, b_D))
    b_q, b_not_q, b_loss, b_ds, b_impossible = combine_evidence(b_s_post, b_A, b_C, b_D)
    b_q += b_poison
    b_not_q += b_poison

    w, not_w, active_other, passive_other, b_dt = propensity_gradient(
        b_q, b_not_q, m, not_m, polarity, rate, HAS_MISCLICK
    )
    nothing = 0.0 * w  # 0, or NaN where the row has no posterior
    if reward_strat_ptr is not None:  # cross-entropies against a posterior that is a constant
        b_loss, b_ds = stratified_reward(b_s, b_q, b_not_q, (b_s_post - b_s) + b_D)
        b_entropy, b_dt = stratified_propensity(
            b_t, b_t_post, b_code, m, not_m, w, not_w * active_other, w + not_w * passive_other, b_dt
        )
        b_loss = tl.where(b_impossible, INF, b_loss + b_entropy)
    else:
        b_dt = tl.where(b_code == 1, -not_m, b_dt)
    if groups_ptr is not None:
        o_nk = (o_n * K + o_k) * 4
        m += not_finite(b_t_post)
        not_m += not_finite(b_t_post)
        store_groups(groups_ptr + o_nk, m_nk, b_q, b_not_q, b_code, m, not_m, active_other, passive_other, polarity > 0)

    b_factor = tl.zeros_like(b_s) + scale
    dropped = o_n < 0
    if weight_ptr is not None:  # rows of weight 0 contribute nothing, whatever they hold
        b_w = tl.load(weight_ptr + o_n, mask=m_n, other=0.0)
        b_factor = tl.where((b_w >= 0) & (b_w < INF), b_w * scale, float("nan"))
        dropped = b_w == 0
    b_loss = tl.where(dropped, 0.0, (b_loss + b_poison) * b_factor)
    if PER_ROW:
        tl.store(loss_ptr + o_n, b_loss, mask=m_n)
    b_ds = tl.where(dropped, 0.0, (b_ds + b_poison) * b_factor)
    b_dt = tl.where((b_code == -1) | dropped, 0.0, (b_dt + nothing) * b_factor)
    return tl.where(m_n, b_loss, 0.0), b_ds, b_dt, dropped


@triton.jit
def add_evidence(b_t, b_code, polarity, rate, signals_ptr, o_k, m_k, K: tl.constexpr, HAS_MISCLICK: tl.constexpr):
    """Sums over signals of log P(f | r*=1), log P(f | r*=0) and their difference; sigmoid(+-t) of each."""
    acted, missing = b_code == 1, b_code == -1
    m, not_m, softplus, softplus_minus = sigmoid_softplus(b_t)
    own = tl.where(acted, -softplus_minus, -softplus)
    if HAS_MISCLICK:
        minus_log_rate = tl.load(signals_ptr + 2 * K + o_k, mask=m_k, other=INF)
        log1p_minus_rate = tl.load(signals_ptr + 3 * K + o_k, mask=m_k, other=0.0)
        u = b_t + log1p_minus_rate
        _, _, u_softplus, u_softplus_minus = sigmoid_softplus(u)
        em = rate * m
        small = em < 0.5
        # Else softplus(u) - softplus(t), its linear parts subtracted exactly; t > 0 there.
        log_u = tl.where(u_softplus < u_softplus_minus, u_softplus, u_softplus_minus)
        linear = tl.where(u > 0, log1p_minus_rate, -b_t)
        log_not_em = tl.where(small, log1p_small(tl.where(small, -em, 0.0)), linear + (log_u - softplus_minus))
        other = tl.where(acted, -minus_log_rate - softplus_minus, log_not_em)
        difference = tl.where(acted, minus_log_rate, -u_softplus)
    else:
        other = tl.where(acted, -INF, 0.0)
        difference = tl.where(acted, INF, -softplus)  # own - other, never found by subtraction
    positive = polarity > 0
    A, C = tl.where(positive, own, other), tl.where(positive, other, own)
    D = tl.where(positive, difference, -difference)
    return (
        tl.sum(tl.where(missing, 0.0, A), 1, keep_dims=True),
        tl.sum(tl.where(missing, 0.0, C), 1, keep_dims=True),
        tl.sum(tl.where(missing, 0.0, D), 1, keep_dims=True),
        m,
        not_m,
    )


@triton.jit
def combine_evidence(b_s, b_A, b_C, b_D):
    """P(r*=1 | evidence), its complement, marginal loss, its gradient in the reward logit, impossible evidence."""
    # Turn the row so that the evidence speaks against x: d <= 0.
    flip = b_D > 0
    turn = tl.where(flip, -1.0, 1.0)
    x, d = turn * b_s, turn * b_D
    base = tl.where(b_A > b_C, b_A, b_C)
    impossible = base == -INF  # evidence that cannot be: likelihood zero, no posterior
    g_e, g_large, g, _ = exp_sigmoid(x)
    won_e, _, won, lost = exp_sigmoid(x + d)
    _, expm1_d = exp_nonpositive(d)
    y = g * expm1_d
    near_one = y < -0.5  # log1p(y) would lose the tail; x > 0 there
    linear = tl.where(near_one, tl.where(-x > d, -x, d), 0.0)
    log_term = linear + log1p_small(tl.where(near_one, (won_e - g_e) * g_large, y))
    nothing = tl.where(impossible, float("nan"), 0.0)
    q = tl.where(flip, lost, won) + nothing
    not_q = tl.where(flip, won, lost) + nothing
    loss = tl.where(impossible, INF, -base - log_term)
    return q, not_q, loss, -turn * y * lost + nothing, impossible


@triton.jit
def propensity_gradient(b_q, b_not_q, m, not_m, polarity, rate, HAS_MISCLICK: tl.constexpr):
    """The gradient in the propensity logits where silent, after the masses that it is made of.

    Those are P(r*) of the side that a signal speaks for and of the other side, and there the shares of active and of
    passive users.
    """
    w = tl.where(polarity > 0, b_q, b_not_q)
    not_w = tl.where(polarity > 0, b_not_q, b_q)
    active_other, passive_other, grad = m, not_m, w * m  # the gradient is m - (PA + NA)
    if HAS_MISCLICK:
        inverse = 1.0 / (not_m + (1.0 - rate) * m)  # 1 / (1 - e m), no cancellation
        active_other = m * (1.0 - rate) * inverse  # a misclick that did not happen
        passive_other = not_m * inverse
        grad += not_w * rate * m * passive_other
    return w, not_w, active_other, passive_other, grad


@triton.jit
def stratified_reward(b_s, b_q, b_not_q, lead):
    """CE(q', s) and its gradient; `lead` is the logit of q', less s."""
    g, not_g, softplus, softplus_minus = sigmoid_softplus(b_s)
    loss = b_q * softplus_minus + b_not_q * softplus
    return loss, sigmoid_difference(g, not_g, b_q, b_not_q, lead)


@triton.jit
def stratified_propensity(b_t, b_t_post, b_code, m, not_m, w, active, passive, silent_grad):
    """Sum over recorded signals of CE(p', t), and its gradients in t; p' = PA + NA is `active` where silent."""
    acted = b_code == 1
    active, passive = tl.where(acted, 1.0, active), tl.where(acted, 0.0, passive)
    trained, not_trained, softplus, softplus_minus = sigmoid_softplus(b_t)
    entropy = tl.where(b_code == -1, 0.0, active * softplus_minus + passive * softplus)
    # Two ways to write sigmoid(t) - active: the one whose terms are smaller cancels less.
    shift = sigmoid_difference(trained, not_trained, m, not_m, b_t_post - b_t)
    up, down = trained * passive, not_trained * active
    step = tl.where(tl.abs(shift) + silent_grad < up + down, shift + silent_grad, up - down)
    return tl.sum(entropy, 1, keep_dims=True), tl.where(acted, -not_trained, step)


@triton.jit
def store_groups(ptrs, m_nk, b_q, b_not_q, b_code, m, not_m, active_other, passive_other, positive):
    acted, missing = b_code == 1, b_code == -1
    active_own = tl.where(missing, m, tl.where(acted, 1.0, 0.0))
    passive_own = tl.where(missing, not_m, tl.where(acted, 0.0, 1.0))
    active_other = tl.where(missing, m, tl.where(acted, 1.0, active_other))
    passive_other = tl.where(missing, not_m, tl.where(acted, 0.0, passive_other))
    tl.store(ptrs, b_q * tl.where(positive, active_own, active_other), mask=m_nk)  # PA
    tl.store(ptrs + 1, b_not_q * tl.where(positive, active_other, active_own), mask=m_nk)  # NA
    tl.store(ptrs + 2, b_q * tl.where(positive, passive_own, passive_other), mask=m_nk)  # PP
    tl.store(ptrs + 3, b_not_q * tl.where(positive, passive_other, passive_own), mask=m_nk)  # NP


@triton.jit
def not_finite(x):
    return x - x  # 0, or NaN


@triton.jit
def load_logits(ptr, offsets, mask):
    return tl.load(ptr + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_codes(ptr, offsets, mask):
    """1, 0, -1; what lies outside of the mask is missing."""
    return tl.where(mask, widen(tl.load(ptr + offsets, mask=mask, other=0)), -1)


@triton.jit
def widen(b_code):
    if b_code.dtype.primitive_bitwidth < 32:  # compared as uint8, -1 would be 255; int64 must not be narrowed
        b_code = b_code.to(tl.int32)
    return b_code


@triton.jit
def invalid_code(b_code):
    return tl.where((b_code == 1) | (b_code == 0) | (b_code == -1), 0.0, float("nan"))
