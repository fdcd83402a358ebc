// The loop over the tiles of a block, which the kernels of single logits share.
#pragma once

#include <cstring>

#include "load.h"

namespace irm {
namespace IRM_ISA {

constexpr int64_t kAhead = 16;  // tiles

// Stores the losses and reward gradients of a tile, and returns the sum of its losses.
template <typename Arguments, typename Tile>
inline double finish_tile(const Arguments& args, Tile& tile) {
  if (args.loss_rows) std::memcpy(args.loss_rows + tile.first, tile.loss, tile.rows * sizeof(float));
  if (args.grad_reward) std::memcpy(args.grad_reward + tile.first, tile.grad, tile.rows * sizeof(float));
  for (int i = tile.rows; i < kTile; ++i) tile.loss[i] = 0.0f;
  double lanes[8] = {}, sum = 0.0;  // several chains of additions, in a fixed order
  for (int i = 0; i < kTile; i += 8) {
    for (int j = 0; j < 8; ++j) lanes[j] += tile.loss[i + j];
  }
  for (int j = 0; j < 8; ++j) sum += lanes[j];
  return sum;
}

// Computes the tiles of a block, prefetching ahead, and returns the sum of its losses.
template <typename Arguments, typename Tile, typename Prefetch, typename Compute>
inline double for_tiles(const Arguments& args, int64_t block, Tile& tile, Prefetch prefetch, Compute compute) {
  const int64_t first = block * kRowsPerBlock, past = first + kRowsPerBlock;
  const int64_t last = past < args.n_rows ? past : args.n_rows;
  double sum = 0.0;
  for (tile.first = first; tile.first < last; tile.first += kTile) {
    if (tile.first + kAhead * kTile < args.n_rows) prefetch(args, tile.first + kAhead * kTile);
    tile.rows = static_cast<int>(last - tile.first < kTile ? last - tile.first : kTile);
    compute(tile);
    sum += finish_tile(args, tile);
  }
  return sum;
}

}  // namespace IRM_ISA
}  // namespace irm
