// The weighted pointwise loss on CPUs: loss and gradient of a block of rows in one pass.
//
// Rows are taken in tiles that stay in the first-level cache, in plain loops free of branches, which the compiler
// vectorises; see implicit_rm_block.cpp. The Triton twin is kernels/triton/pointwise.py.
#include <cstring>

#include "load.h"
#include "pointwise.h"
#include "tile_loop.h"

namespace irm {
namespace IRM_ISA {
namespace {


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

}  // namespace

void process_pointwise_block(const PointwiseArguments& args, int64_t block, double& sum) {
  const float scale = static_cast<float>(args.scale);
  PointwiseTile tile;
  sum = for_tiles(args, block, tile, prefetch_tile, [&](PointwiseTile& t) {
    load_tile(args, t);
    args.grad_reward ? compute_tile<true>(scale, t) : compute_tile<false>(scale, t);
  });
}

}  // namespace IRM_ISA
}  // namespace irm
