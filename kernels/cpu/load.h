// Reading a tile of rows out of a tensor of any of the dtypes and strides that PyTorch may hand over.
#pragma once

#include "implicit_rm.h"
#include "vector_math.h"

namespace irm {
namespace IRM_ISA {

constexpr int kTile = 128;  // rows: enough for the loops over a tile to hide latency, few enough for the cache

inline float widen(float x) { return x; }

struct BFloat16 { uint16_t bits; };
inline float widen(BFloat16 x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }

struct Float16 { uint16_t bits; };
inline float widen(Float16 x) {
  const uint32_t magnitude = x.bits & 0x7fffu, sign = (x.bits & 0x8000u) << 16;
  // Moved into place the exponent is 112 too small; a multiplication mends that for subnormal numbers too.
  const uint32_t finite = to_bits(from_bits(magnitude << 13) * 0x1p112f);
  const uint32_t special = 0x7f800000u | (magnitude << 13);
  return from_bits((magnitude >= 0x7c00u ? special : finite) | sign);
}

// Calls work(i, i * stride) for the first `rows` of a tile. Full tiles of the usual strides have loops of their own, in
// which length and stride are constants: the compiler then takes vectors apart instead of gathering elements.
template <int64_t kStride, typename Work>
inline void for_full_tile(Work work) {
  for (int i = 0; i < kTile; ++i) work(i, i * kStride);
}

template <typename Work>
inline void for_rows(int rows, int64_t stride, Work work) {
  switch (rows == kTile ? stride : 0) {
    case 1: return for_full_tile<1>(work);
    case 2: return for_full_tile<2>(work);
    case 3: return for_full_tile<3>(work);
    case 4: return for_full_tile<4>(work);
    default:
      for (int i = 0; i < rows; ++i) work(i, i * stride);
  }
}

// Rows past the end are filled up, so that the loops over a tile have a fixed length.
template <typename T>
inline void load_strided(const void* data, int64_t offset, int64_t stride, int rows, float* out) {
  const T* p = static_cast<const T*>(data) + offset;
  for_rows(rows, stride, [=](int i, int64_t at) { out[i] = widen(p[at]); });
  for (int i = rows; i < kTile; ++i) out[i] = 0.0f;
}

inline void prefetch(const void* p) { __builtin_prefetch(p); }

// Asks for a later tile's rows while this one is computed: the processor's own prefetching does not look that far.
inline void prefetch_rows(const void* data, int64_t row_bytes, int64_t first) {
  if (!data || row_bytes > 64) return;
  const char* p = static_cast<const char*>(data) + first * row_bytes;
  for (int64_t b = 0; b < kTile * row_bytes; b += 64) prefetch(p + b);
}

inline void load_logits(const LogitsView& v, int64_t first, int64_t k, int rows, float* out) {
  const int64_t offset = first * v.row_stride + k * v.signal_stride;
  switch (v.type) {
    case kFloat32: return load_strided<float>(v.data, offset, v.row_stride, rows, out);
    case kBFloat16: return load_strided<BFloat16>(v.data, offset, v.row_stride, rows, out);
    default: return load_strided<Float16>(v.data, offset, v.row_stride, rows, out);
  }
}

template <typename T>
inline bool load_codes_strided(const void* data, int64_t offset, int64_t stride, int rows, int32_t* out) {
  const T* p = static_cast<const T*>(data) + offset;
  uint32_t largest = 0;  // of the codes plus 1: all loops over a tile have lanes of 32 bits
  for_rows(rows, stride, [=, &largest](int i, int64_t at) {
    const int32_t code = static_cast<int32_t>(p[at]);
    out[i] = code;
    const uint32_t shifted = static_cast<T>(code) == p[at] ? static_cast<uint32_t>(code) + 1u : 3u;  // not 2^32 for 0
    largest = shifted > largest ? shifted : largest;
  });
  for (int i = rows; i < kTile; ++i) out[i] = -1;
  return largest <= 2;
}

// False where a value is none of 1, 0, -1.
inline bool load_codes(const CodesView& v, int64_t first, int64_t k, int rows, int32_t* out) {
  const int64_t offset = first * v.row_stride + k * v.signal_stride, stride = v.row_stride;
  switch (v.width) {
    case 1:
      return v.is_unsigned ? load_codes_strided<uint8_t>(v.data, offset, stride, rows, out)
                           : load_codes_strided<int8_t>(v.data, offset, stride, rows, out);
    case 2: return load_codes_strided<int16_t>(v.data, offset, stride, rows, out);
    case 4: return load_codes_strided<int32_t>(v.data, offset, stride, rows, out);
    default: return load_codes_strided<int64_t>(v.data, offset, stride, rows, out);
  }
}

}  // namespace IRM_ISA
}  // namespace irm
