// SIMD vectors of the widest kind that an instruction set has: loads that widen to float32, stores that round.
//
// The compilers' own vector types are used, so that one source serves every instruction set; intrinsics only where a
// conversion has an instruction.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "load.h"

namespace irm {
namespace IRM_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

// Accumulators that leave room for operands: 32 vector registers in AVX-512 and on ARM, else 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr bool kManyRegisters = true;
#else
constexpr bool kManyRegisters = false;
#endif

typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
#if defined(__AVX512F__)  // GCC 12 makes several instructions of what is one
inline Words to_words(Halves x) { return (Words)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)x); }
#elif defined(__AVX2__)
inline Words to_words(Halves x) { return (Words)_mm256_cvtepu16_epi32((__m128i)x); }
#else
inline Words to_words(Halves x) { return __builtin_convertvector(x, Words); }
#endif
inline Halves to_halves(Words x) { return __builtin_convertvector(x, Halves); }

inline Lanes as_lanes(Words x) {
  Lanes y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

inline Words as_words(Lanes x) {
  Words y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

template <int kCount>
struct Vector {
  typedef float Type __attribute__((vector_size(4 * kCount)));
};

template <int kCount>
inline float add_up(typename Vector<kCount>::Type x) {
  if constexpr (kCount == 4) {
    return (x[0] + x[2]) + (x[1] + x[3]);
  } else {
    typename Vector<kCount / 2>::Type half[2];
    std::memcpy(half, &x, sizeof x);
    return add_up<kCount / 2>(half[0] + half[1]);
  }
}

inline float add_up(Lanes x) { return add_up<kLanes>(x); }

inline Lanes load(const float* p) {
  Lanes x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

inline Lanes load(const BFloat16* p) {
  Halves x;
  std::memcpy(&x, p, sizeof x);
  return as_lanes(to_words(x) << 16);
}

inline Lanes load(const Float16* p) {
#if defined(__AVX512F__)  // with a mask: without, GCC 12 warns of a variable of its own header
  return (Lanes)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return (Lanes)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Halves x;  // as widen(Float16) in load.h
  std::memcpy(&x, p, sizeof x);
  const Words bits = to_words(x), magnitude = bits & 0x7fffu;
  const Words finite = as_words(as_lanes(magnitude << 13) * 0x1p112f), special = 0x7f800000u | (magnitude << 13);
  return as_lanes((magnitude >= 0x7c00u ? special : finite) | (bits & 0x8000u) << 16);
#endif
}

inline void store(float* p, Lanes x) { std::memcpy(p, &x, sizeof x); }

// To the nearest, ties to even; NaN stays NaN.
inline void store(BFloat16* p, Lanes x) {
  const Words bits = as_words(x), up = 0x7fffu + ((bits >> 16) & 1u);
  const Halves rounded = to_halves(x == x ? (bits + up) >> 16 : (bits >> 16) | 0x40u);
  std::memcpy(p, &rounded, sizeof rounded);
}

inline void store(Float16* p, Lanes x) {
#if defined(__AVX512F__)
  const __m256i rounded = _mm512_maskz_cvtps_ph(0xffff, (__m512)x, _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), rounded);
#elif defined(__AVX2__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
  const Words bits = as_words(x), magnitude = bits & 0x7fffffffu;
  // Results below 2^-14 have their last bit at 2^-24: adding 1/2 rounds there. Others may carry up to infinity.
  const Words tiny = as_words(as_lanes(magnitude) + 0.5f) - 0x3f000000u;
  const Words normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const Words finite = magnitude < (113u << 23) ? tiny : normal;
  const Words special = magnitude > 0x7f800000u ? Words{} + 0x7e00u : Words{} + 0x7c00u;
  const Halves rounded = to_halves((magnitude >= (143u << 23) ? special : finite) | (bits >> 16 & 0x8000u));
  std::memcpy(p, &rounded, sizeof rounded);
#endif
}

// The first `count` lanes, for the last columns of a row; the others are 0 and are not written.
template <typename T>
inline Lanes load_first(const T* p, int count) {
  T padded[kLanes] = {};
  for (int i = 0; i < count; ++i) padded[i] = p[i];
  return load(padded);
}

template <typename T>
inline void store_first(T* p, Lanes x, int count) {
  T padded[kLanes];
  store(padded, x);
  for (int i = 0; i < count; ++i) p[i] = padded[i];
}

}  // namespace IRM_ISA
}  // namespace irm
