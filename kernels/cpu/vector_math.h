// Branch-free float32 functions that compilers turn into SIMD when they are inlined into a plain loop.
//
// Everything the four-group model needs comes from exp and expm1 of arguments <= 0 and from log1p of arguments in
// [-1/2, 1], so no range reduction of a logarithm and no overflow can occur. Coefficients were fitted for this file
// (least squares on Chebyshev nodes, 40 digits). The Triton twin is kernels/triton/math.py: keep the two alike.
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

// exp for x <= 0, -inf included; results under exp(-87) are flushed to zero, NaN stays NaN.
inline Exp exp_nonpositive(float x) {
  const float clamped = x < -87.0f ? -87.0f : x;
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
  const float value = p * scale + scale;
  const float minus1 = p * scale + (scale - 1.0f);
  return {x < -87.0f ? 0.0f : value, x < -87.0f ? -1.0f : minus1};
}

// log(1 + x) for x in [-1/2, 1]: 2 atanh(u) with u = x / (2 + x), |u| <= 1/3.
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

struct Sigmoid {
  float plus, minus;              // sigmoid(x), sigmoid(-x)
  float softplus, softplus_minus;  // softplus(x), softplus(-x)
};

inline Sigmoid sigmoid_softplus(float x) {
  const float e = exp_nonpositive(x < 0.0f ? x : -x).value;
  const float large = 1.0f / (1.0f + e);
  const float small = e * large;
  const float log_term = log1p_small(e);
  const bool negative = x < 0.0f;
  return {negative ? small : large, negative ? large : small, (negative ? 0.0f : x) + log_term,
          (negative ? -x : 0.0f) + log_term};
}

}  // namespace IRM_ISA
}  // namespace irm
