"""Accurate float32 device functions: the Triton twin of kernels/cpu/vector_math.h.

Written out instead of taken from libdevice, so that the interpreter, NVIDIA and AMD GPUs compute the same thing, and
because the fast exp of GPUs loses relative accuracy for large arguments. Only exp and expm1 of arguments <= 0 and
log1p of arguments in [-1/2, 1] are needed.
"""

import triton
import triton.language as tl
from irm_fast.kernels.triton import launch

INTERPRETED = tl.constexpr(launch.INTERPRETED)


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


@tl.core.builtin
def _on_nvidia(_semantic=None):
    """Whether the kernel is compiled for NVIDIA, as a constant."""
    return tl.constexpr(_semantic.builder.options.backend_name == "cuda")


@triton.jit
def exp2_fast(x):
    """2^x within 2 ulp; NVIDIA's instruction flushes results under 2^-126 to zero."""
    if INTERPRETED:
        y = tl.exp2(x)
    elif _on_nvidia():
        y = tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        y = tl.exp2(x)
    return y


@triton.jit
def log2_fast(x):
    """log2(x) for normal x, within 2^-22 absolute in [1/2, 2] and 2 ulp elsewhere."""
    if INTERPRETED:
        y = tl.log2(x)
    elif _on_nvidia():
        y = tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        y = tl.log2(x)
    return y


@triton.jit
def reciprocal_fast(x):
    """1/x for normal x, within 1 ulp."""
    if INTERPRETED:
        y = 1.0 / x
    elif _on_nvidia():
        y = tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        y = 1.0 / x
    return y


@triton.jit
def exp_minus(x):
    """exp(-x) for x >= 0; NaN for infinite x, and for NaN.

    The power of two takes a rounded exponent; what rounding it lost comes back in one multiplication.
    """
    exponent = x * -1.44269504
    y = exp2_fast(exponent)
    return tl.fma(y, tl.fma(exponent, -0.693147181, -x), y)


@triton.jit
def minus_log1p_minus(x):
    """-log(1 - x) for x in [0, 1/4], within 1e-7 relative."""
    p = x * 0.33979762 + 0.14391501
    p = p * x + 0.25779945
    p = p * x + 0.33285666
    p = p * x + 0.5000105
    p = p * x + 0.99999994
    return p * x
