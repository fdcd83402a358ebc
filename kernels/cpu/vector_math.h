// Branch-free float32 functions that compilers turn into SIMD when they are inlined into a plain loop.
//
// Everything the four-group model needs comes from exp and expm1 of arguments <= 0 and from log1p of arguments in
// [-1/2, 1], so no range reduction of a logarithm and no overflow can occur. Coefficients were fitted for this file
// (least squares on Chebyshev nodes, 40 digits; fit_polynomials.py shows how). The Triton twin is
// kernels/triton/math.py: keep the two alike.
//
// A contract states for which arguments a function is meant and its greatest error there, in units of the last place of
// the result. tests/kernels/test_vector_math.py reads the contracts from this file and holds every copy to them.
#pragma once

#include <cstdint>
#include <cstring>

namespace irm {
namespace IRM_ISA {  // a copy for each instruction set: the linker must not merge them

inline float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

struct Exp {
  float value;   // exp(x)
  float minus1;  // exp(x) - 1, to full relative accuracy
};

// exp for x <= 0, -inf included; results under exp(-87.7) are flushed to zero, NaN stays NaN.
// Contract 0: exp_nonpositive(x).value for x in [-87.3, 0]: 1.1 ulp
// Contract 1: exp_nonpositive(x).minus1 for x in [-87.3, 0]: 1.1 ulp
inline Exp exp_nonpositive(float x) {
  const float clamped = x < -88.0f ? -88.0f : x;  // where 2^n below has its exponent bits, and so its value, at zero
  // Adding 1.5 * 2^23 rounds to the nearest integer, which is then found in the low bits of the sum.
  const float shifted = clamped * 1.44269504f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts, the first product exact
  float p = 0.00139336435f;
  p = p * r + 0.00836317557f;
  p = p * r + 0.0416664650f;
  p = p * r + 0.166665770f;
  p = p * r + 0.500000001f;
  p = p * r * r + r;                                           // exp(r) - 1
  const float scale = from_bits((to_bits(shifted) << 23) + 0x3f800000u);  // 2^n
  return {p * scale + scale, p * scale + (scale - 1.0f)};
}

// log(1 + x): 2 atanh(u) with u = x / (2 + x), |u| <= 1/3.
// Contract 2: log1p_small(x) for x in [-0.5, 1]: 2 ulp
inline float log1p_small(float x) {
  const float u = x / (2.0f + x);
  const float z = u * u;
  float p = 0.232390505f;
  p = p * z + 0.217033150f;
  p = p * z + 0.285925834f;
  p = p * z + 0.399997014f;
  p = p * z + 0.666666673f;
  return p * z * u + 2.0f * u;
}

// -log p of a normal number p, from p and 1 - p, both of full relative accuracy; so is the result.
// Contract 3: minus_log(x, 1 - x) for x in [1.2e-38, 1]: 2 ulp
inline float minus_log(float p, float not_p) {
  const bool near_one = p > 0.5f;
  // p = 2^n (1 + f) with 1 + f in [3/4, 3/2)
  const int32_t bits = static_cast<int32_t>(to_bits(p)), n = (bits - 0x3f400000) >> 23;
  const float f = from_bits(static_cast<uint32_t>(bits) - (static_cast<uint32_t>(n) << 23)) - 1.0f;
  const float exponent = near_one ? 0.0f : static_cast<float>(n);
  return exponent * -0.693147181f - log1p_small(near_one ? -not_p : f);
}

// -|x|; the sign of NaN is set too.
// Contract 4: minus_abs(x) for x in [-3e38, 3e38]: 0 ulp
inline float minus_abs(float x) { return from_bits(to_bits(x) | 0x80000000u); }

struct ExpSigmoid {
  float e, large;     // exp(-|x|), 1 / (1 + e)
  float plus, minus;  // sigmoid(x), sigmoid(-x)
};

// Saturates to 0 and 1 where exp_nonpositive does; NaN stays NaN.
// Contract 5: exp_sigmoid(x).plus for x in [-87.3, 87.3]: 2.9 ulp
// Contract 6: exp_sigmoid(x).minus for x in [-87.3, 87.3]: 2.9 ulp
inline ExpSigmoid exp_sigmoid(float x) {
  const float e = exp_nonpositive(minus_abs(x)).value;
  const float large = 1.0f / (1.0f + e);
  const float small = e * large;
  return {e, large, x < 0.0f ? small : large, x < 0.0f ? large : small};
}

struct Sigmoid {
  float plus, minus;              // sigmoid(x), sigmoid(-x)
  float softplus, softplus_minus;  // softplus(x), softplus(-x)
};

// Contract 7: sigmoid_softplus(x).softplus for x in [-87.3, 87.3]: 2.9 ulp
// Contract 8: sigmoid_softplus(x).softplus_minus for x in [-87.3, 87.3]: 2.9 ulp
inline Sigmoid sigmoid_softplus(float x) {
  const ExpSigmoid g = exp_sigmoid(x);
  const float log_term = log1p_small(g.e);
  return {g.plus, g.minus, (x < 0.0f ? 0.0f : x) + log_term, (x < 0.0f ? -x : 0.0f) + log_term};
}

// sigmoid(x) - sigmoid(y) without cancellation; `lead` is y - x.
// Contract 9: sigmoid_difference(x, y) for x in [-40, 40], y alike: 4.5 ulp
inline float sigmoid_difference(float plus_x, float minus_x, float plus_y, float minus_y, float lead) {
  const bool below = lead <= 0.0f;
  const float change = exp_nonpositive(below ? lead : -lead).minus1;
  return below ? -plus_x * minus_y * change : minus_x * plus_y * change;
}

}  // namespace IRM_ISA
}  // namespace irm
