"""Accurate float32 device functions: the Triton twin of kernels/cpu/vector_math.h.

Written out instead of taken from libdevice, so that the interpreter, NVIDIA and AMD GPUs compute the same thing, and
because the fast exp of GPUs loses relative accuracy for large arguments. Only exp and expm1 of arguments <= 0 and
log1p of arguments in [-1/2, 1] are needed.
"""

import triton
import triton.language as tl


@triton.jit
def exp_nonpositive(x):
    """exp(x) and exp(x) - 1 for x <= 0, -inf included. Under exp(-87.7) the result is flushed to zero."""
    clamped = tl.where(x < -88.0, -88.0, x)  # where 2^n below has its exponent bits, and so its value, at zero
    # Adding 1.5 * 2^23 rounds to the nearest integer, which is then found in the low bits of the sum.
    shifted = clamped * 1.44269504 + 12582912.0
    n = shifted - 12582912.0
    r = (clamped - n * 0.693359375) + n * 2.12194440e-4  # ln 2 in two parts, the first product exact
    p = r * 0.00139336435 + 0.00836317557
    p = p * r + 0.0416664650
    p = p * r + 0.166665770
    p = p * r + 0.500000001
    p = p * r * r + r  # exp(r) - 1
    scale = ((shifted.to(tl.int32, bitcast=True) << 23) + 0x3F800000).to(tl.float32, bitcast=True)  # 2^n
    return p * scale + scale, p * scale + (scale - 1.0)


@triton.jit
def log1p_small(x):
    """log(1 + x) for x in [-1/2, 1]: 2 atanh(u) with u = x / (2 + x), |u| <= 1/3."""
    u = x / (2.0 + x)
    z = u * u
    p = z * 0.232390505 + 0.217033150
    p = p * z + 0.285925834
    p = p * z + 0.399997014
    p = p * z + 0.666666673
    return p * z * u + 2.0 * u


@triton.jit
def exp_sigmoid(x):
    """exp(-|x|), 1 / (1 + exp(-|x|)), sigmoid(x), sigmoid(-x)."""
    e, _ = exp_nonpositive(-tl.abs(x))
    large = 1.0 / (1.0 + e)
    small = e * large
    negative = x < 0.0
    return e, large, tl.where(negative, small, large), tl.where(negative, large, small)


@triton.jit
def sigmoid_softplus(x):
    """sigmoid(x), sigmoid(-x), softplus(x), softplus(-x)."""
    e, _, plus, minus = exp_sigmoid(x)
    log_term = log1p_small(e)
    negative = x < 0.0
    return plus, minus, tl.where(negative, 0.0, x) + log_term, tl.where(negative, -x, 0.0) + log_term


@triton.jit
def sigmoid_difference(plus_x, minus_x, plus_y, minus_y, lead):
    """sigmoid(x) - sigmoid(y) without cancellation; `lead` is y - x."""
    below = lead <= 0
    _, change = exp_nonpositive(tl.where(below, lead, -lead))
    return tl.where(below, -plus_x * minus_y * change, minus_x * plus_y * change)
