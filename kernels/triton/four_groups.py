"""Device functions of the four-group model, one block of rows at a time: evidence, posterior, loss.

docs/numerics.md derives the forms. The C++ twins are in kernels/cpu/implicit_rm_block.cpp, under the same names.
"""

import triton
import triton.language as tl
from irm_fast.kernels.triton.math import exp_nonpositive, log1p_small, sigmoid_softplus

INF = tl.constexpr(float("inf"))


@triton.jit
def add_evidence(b_t, b_code, polarity, rate, minus_log_rate, log1p_minus_rate, HAS_MISCLICK: tl.constexpr):
    """log P(f | r*=1), log P(f | r*=0) and their difference for one signal, and sigmoid(+-t)."""
    acted, missing = b_code == 1, b_code == -1
    m, not_m, softplus, softplus_minus = sigmoid_softplus(b_t)
    own = tl.where(acted, -softplus_minus, -softplus)
    if HAS_MISCLICK:
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
    own = tl.where(missing, 0.0, own)
    other = tl.where(missing, 0.0, other)
    difference = tl.where(missing, 0.0, difference)
    positive = polarity > 0
    return (
        tl.where(positive, own, other),
        tl.where(positive, other, own),
        tl.where(positive, difference, -difference),
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
    g, _, softplus, softplus_minus = sigmoid_softplus(x)
    z = x + d
    e, _ = exp_nonpositive(-tl.abs(z))
    large = 1.0 / (1.0 + e)
    small = e * large
    won, lost = tl.where(z < 0, small, large), tl.where(z < 0, large, small)  # sigmoid(z), sigmoid(-z)

    _, expm1_d = exp_nonpositive(d)
    y = g * expm1_d
    near_one = y < -0.5  # log1p(y) would lose the tail: take log-sum-exp
    a, b = -softplus, d - softplus_minus
    log_term = tl.where(near_one, tl.where(a > b, a, b), 0.0) + log1p_small(tl.where(near_one, e, y))
    nothing = tl.where(impossible, float("nan"), 0.0)
    q = tl.where(flip, lost, won) + nothing
    not_q = tl.where(flip, won, lost) + nothing
    loss = tl.where(impossible, INF, -base - log_term)
    return q, not_q, loss, -turn * y * lost + nothing, impossible


@triton.jit
def not_finite(x):
    return x - x  # 0, or NaN


@triton.jit
def load_logits(ptr, o_n, m_n, stride_n, k, stride_k):
    return tl.load(ptr + o_n * stride_n + k * stride_k, mask=m_n, other=0.0).to(tl.float32)


@triton.jit
def load_codes(ptr, o_n, m_n, stride_n, k, stride_k):
    b_code = tl.load(ptr + o_n * stride_n + k * stride_k, mask=m_n, other=0)
    if b_code.dtype.primitive_bitwidth < 32:  # compared as uint8, -1 would be 255; int64 must not be narrowed
        b_code = b_code.to(tl.int32)
    return b_code


@triton.jit
def invalid_code(b_code):
    return tl.where((b_code == 1) | (b_code == 0) | (b_code == -1), 0.0, float("nan"))
