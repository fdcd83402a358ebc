// Gradient of the hidden states on CPUs: an outer product of logit gradients and heads, written once.
//
// No template of the standard library is used here: the linker would be free to run the AVX-512 copy of it anywhere.
#include "lanes.h"
#include "linear_implicit_rm.h"

namespace irm {
namespace IRM_ISA {
namespace {

constexpr int kRowGroup = kManyRegisters ? 4 : 2;  // rows at a time: accumulators stay in registers

// Gradients of the logits of a group of rows, times upstream: [row][head].
struct Factors {
  float value[kRowGroup * kMaxHeads];
};

// Writes kVectors full vectors of kRows rows, or, where that is 0, their last `count` columns.
template <typename T, int kRows, int kVectors>
inline void write_columns(const HiddenGradArguments& args, const Factors& factors, int64_t column, int count, T* out) {
  constexpr int kWidth = kVectors ? kVectors : 1;
  Lanes sum[kRows][kWidth] = {};
  for (int64_t m = 0; m < args.n_heads; ++m) {
    const float* w = args.heads + m * args.width + column;
    Lanes ws[kWidth];
    for (int v = 0; v < kWidth; ++v) ws[v] = kVectors ? load(w + v * kLanes) : load_first(w, count);
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kWidth; ++v) sum[r][v] += factors.value[r * args.n_heads + m] * ws[v];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    T* row = out + r * args.width + column;
    for (int v = 0; v < kWidth; ++v) {
      if (kVectors) {
        store(row + v * kLanes, sum[r][v]);
      } else {
        store_first(row, sum[r][v], count);
      }
    }
  }
}

template <typename T, int kRows>
void write_rows(const HiddenGradArguments& args, int64_t first) {
  Factors factors;
  for (int r = 0; r < kRows; ++r) {
    const float* g = args.grad_logits + (first + r) * args.grad_stride;
    const float upstream = args.upstream[(first + r) * args.upstream_stride];
    for (int64_t m = 0; m < args.n_heads; ++m) factors.value[r * args.n_heads + m] = g[m] * upstream;
  }
  constexpr int64_t kStep = 4 * kLanes;
  T* out = static_cast<T*>(args.hidden_grad) + first * args.width;
  int64_t c = 0;
  for (; c + kStep <= args.width; c += kStep) write_columns<T, kRows, 4>(args, factors, c, 0, out);
  for (; c + kLanes <= args.width; c += kLanes) write_columns<T, kRows, 1>(args, factors, c, 0, out);
  if (c < args.width) write_columns<T, kRows, 0>(args, factors, c, static_cast<int>(args.width - c), out);
}

template <typename T>
void write_range(const HiddenGradArguments& args, RowRange rows) {
  int64_t i = rows.first;
  for (; i + kRowGroup <= rows.last; i += kRowGroup) write_rows<T, kRowGroup>(args, i);
  for (; i < rows.last; ++i) write_rows<T, 1>(args, i);
}

}  // namespace

void write_hidden_grad(const HiddenGradArguments& args, RowRange rows) {
  switch (args.type) {
    case kFloat32: return write_range<float>(args, rows);
    case kBFloat16: return write_range<BFloat16>(args, rows);
    default: return write_range<Float16>(args, rows);
  }
}

}  // namespace IRM_ISA
}  // namespace irm
