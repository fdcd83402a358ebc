"""The common case at half the work: every signal speaks for r*=1, no misclicks, no labels, no stratification model.

The C++ twin is kernels/cpu/one_sided.h. Acting then proves r*=1, all terms are products and sums of positive
probabilities, and one logarithm a row is enough. Here powers of e are taken out of every product, so that nothing
underflows and no row needs the general form. Rows are vectors [BLOCK_N], signals tuples of K such vectors: what belongs
to a row stays in one thread. docs/why/numerics.md derives the forms.
"""

import triton
import triton.language as tl
from irm_fast.kernels.triton.math import exp2_fast, exp_minus, log2_fast, minus_log1p_minus, reciprocal_fast

NEVER = tl.constexpr(-1e30)  # logit of what does not happen: the probability, its gradient and its evidence are 0


@triton.jit
def sigmoid_parts(x):
    """exp(-|x|) / (1 + exp(-|x|)), 1 / (1 + exp(-|x|)), and the one of them that is sigmoid(x); NaN if not finite."""
    e = exp_minus(tl.abs(x))
    large = reciprocal_fast(1.0 + e)
    small = e * large
    return small, large, tl.where(x < 0.0, small, large)


@triton.jit
def one_sided_rows(b_s, b_t, b_code, K: tl.constexpr):
    """Loss and its gradients in b_s and b_t, and the poison: 0, or NaN where a row has no posterior.

    Args:
        b_s: Reward logits, [BLOCK_N] float32.
        b_t: K propensity logits, tuple of [BLOCK_N] float32.
        b_code: K entries of the feedback, tuple of [BLOCK_N].
    """
    proof, valid = b_code[0] == 1, (b_code[0] >= -1) & (b_code[0] <= 1)
    for k in tl.static_range(1, K):
        proof |= b_code[k] == 1
        valid &= (b_code[k] >= -1) & (b_code[k] <= 1)

    # P(f_k | r*=1) is sigmoid(-h). Their product is exp(-b_power) b_like; 1 - product is b_unlike while nothing acted,
    # else 1 - b_like.
    b_power, b_like, b_unlike = tl.zeros_like(b_s), tl.zeros_like(b_s) + 1.0, tl.zeros_like(b_s)
    b_m = ()  # sigmoid(h): m where silent, 1 - m where acted, 0 where missing
    for k in tl.static_range(K):
        h = tl.where(b_code[k] == -1, NEVER, tl.where(b_code[k] == 1, -b_t[k], b_t[k]))
        small, large, m = sigmoid_parts(h)
        b_power += tl.maximum(h, 0.0)
        b_like *= large
        b_unlike += tl.where(proof, small, m) * (1.0 - b_unlike)
        b_m += (m,)

    # Silence of all has probability (1-g) + g product; of the two powers of e the larger is taken out.
    not_g_large, g_large, g = sigmoid_parts(b_s)
    b_power += tl.maximum(-b_s, 0.0)
    lead = b_power - tl.maximum(b_s, 0.0)
    ahead = lead >= 0.0
    ratio = exp2_fast(tl.abs(lead) * -1.44269504)
    joint, apart = tl.where(ahead, b_like * ratio, b_like), tl.where(ahead, 1.0, ratio)
    silent = joint + apart
    inverse = reciprocal_fast(silent)
    b_q, b_not_q = tl.where(proof, 1.0, joint * inverse), apart * inverse

    seen = g_large * tl.where(proof, b_like, silent)  # times exp(-b_power) is the probability of the row
    b_power = tl.where(proof, b_power, tl.minimum(b_power, tl.maximum(b_s, 0.0)))
    unseen = b_unlike * tl.where(proof, g_large, g) + tl.where(proof, not_g_large, 0.0)
    likely = unseen < 0.25
    b_loss = tl.where(
        likely,
        tl.where(proof, b_power, 0.0) + minus_log1p_minus(unseen),
        b_power - 0.693147181 * log2_fast(seen),
    )
    not_g = tl.where(b_s < 0.0, g_large, not_g_large)
    b_ds = tl.where(proof, -not_g, g * b_unlike * b_not_q)
    # Not `seen - seen`: fused with the product that made `seen`, that is its rounding error and no zero.
    b_poison = tl.where(valid & (seen < float("inf")), 0.0, float("nan"))
    return b_loss, b_ds, b_q, b_m, b_poison
