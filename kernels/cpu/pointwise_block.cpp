// The weighted pointwise loss on CPUs: loss and gradient of a block of rows in one pass.
//
// Rows are taken in tiles that stay in the first-level cache, in plain loops free of branches, which the compiler
// vectorises; see implicit_rm_block.cpp. The Triton twin is kernels/triton/pointwise.py.
#include <cstring>

#include "load.h"
#include "pointwise.h"

namespace irm {
namespace IRM_ISA {
namespace {

constexpr int64_t kAhead = 16;  // tiles

// Rows past the end have weights 0, and so loss 0.
struct alignas(64) PointwiseTile {
  float s[kTile], w1[kTile], w0[kTile];
  float loss[kTile], grad[kTile];
  int64_t first;
  int rows;
};

void load_tile(const PointwiseArguments& args, PointwiseTile& tile) {
  load_logits(args.reward, tile.first, 0, tile.rows, tile.s);
  load_strided<float>(args.positive_weight, tile.first, 1, tile.rows, tile.w1);
  load_strided<float>(args.negative_weight, tile.first, 1, tile.rows, tile.w0);
}

template <bool kGrad>
void compute_tile(float scale, PointwiseTile& tile) {
  for (int i = 0; i < kTile; ++i) {
    const float s = tile.s[i], w1 = tile.w1[i], w0 = tile.w0[i];
    const Sigmoid g = sigmoid_softplus(s);
    const float poison = s - s;  // 0, or NaN where the logit is not finite
    const bool dropped = (w1 == 0.0f) & (w0 == 0.0f);  // contributes nothing, whatever the row holds
    tile.loss[i] = dropped ? 0.0f : (w1 * g.softplus_minus + w0 * g.softplus + poison) * scale;
    if (kGrad) tile.grad[i] = dropped ? 0.0f : (w0 * g.plus - w1 * g.minus + poison) * scale;
  }
}

void prefetch_tile(const PointwiseArguments& args, int64_t first) {
  prefetch_rows(args.reward.data, args.reward.row_stride * (args.reward.type == kFloat32 ? 4 : 2), first);
  prefetch_rows(args.positive_weight, sizeof(float), first);
  prefetch_rows(args.negative_weight, sizeof(float), first);
}

double finish_tile(const PointwiseArguments& args, const PointwiseTile& tile) {
  if (args.loss_rows) std::memcpy(args.loss_rows + tile.first, tile.loss, tile.rows * sizeof(float));
  if (args.grad_reward) std::memcpy(args.grad_reward + tile.first, tile.grad, tile.rows * sizeof(float));
  double lanes[8] = {}, sum = 0.0;  // several chains of additions, in a fixed order
  for (int i = 0; i < kTile; i += 8) {
    for (int j = 0; j < 8; ++j) lanes[j] += tile.loss[i + j];
  }
  for (int j = 0; j < 8; ++j) sum += lanes[j];
  return sum;
}

}  // namespace

void process_pointwise_block(const PointwiseArguments& args, int64_t block, double& sum) {
  const int64_t first = block * kRowsPerBlock, past = first + kRowsPerBlock;
  const int64_t last = past < args.n_rows ? past : args.n_rows;
  const float scale = static_cast<float>(args.scale);
  PointwiseTile tile;
  double block_sum = 0.0;  // not in `sum`, whose neighbours other threads write
  for (tile.first = first; tile.first < last; tile.first += kTile) {
    if (tile.first + kAhead * kTile < args.n_rows) prefetch_tile(args, tile.first + kAhead * kTile);
    tile.rows = static_cast<int>(last - tile.first < kTile ? last - tile.first : kTile);
    load_tile(args, tile);
    args.grad_reward ? compute_tile<true>(scale, tile) : compute_tile<false>(scale, tile);
    block_sum += finish_tile(args, tile);
  }
  sum = block_sum;
}

}  // namespace IRM_ISA
}  // namespace irm
