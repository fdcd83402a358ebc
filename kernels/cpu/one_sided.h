// The common case at half the work: every signal speaks for r*=1, no misclicks, no labels, no stratification model.
//
// Then acting proves r*=1, all terms are products and sums of positive probabilities, and one logarithm a row is
// enough: with L = P(f | r*=1), silence of all signals has probability (1-g) + g L, anything else g L. Products would
// underflow where logits are very large; such rows are left to the general form. The loops are short on purpose: the
// processor then has the chains of many rows in flight at once, where one long loop is a third slower.
#pragma once

#include "tile.h"

namespace irm {
namespace IRM_ISA {

constexpr float kLargestLogits = 70.0f;  // sum of the absolute logits of a row: no product falls below exp(-83)

struct OneSided {
  float g[kTile], not_g[kTile];        // sigmoid(+-s)
  float like[kTile], not_like[kTile];  // L and 1 - L
  float proof[kTile];                  // 1 where a signal acted
  float size[kTile];                   // sum of absolute logits
};

inline void start_one_sided(const Tile& tile, OneSided& row) {
  for (int i = 0; i < kTile; ++i) {
    const ExpSigmoid g = exp_sigmoid(tile.s[i]);
    row.g[i] = g.plus;
    row.not_g[i] = g.minus;
    row.size[i] = -minus_abs(tile.s[i]);
    row.like[i] = 1.0f;
    row.not_like[i] = row.proof[i] = 0.0f;
  }
}

inline void add_one_sided(Tile& tile, OneSided& row, int k) {
  for (int i = 0; i < kTile; ++i) {
    const bool acted = tile.code[k][i] == 1, missing = tile.code[k][i] == -1;
    const ExpSigmoid a = exp_sigmoid(tile.t[i]);
    tile.m[k][i] = a.plus + not_finite(tile.t[i]);
    tile.not_m[k][i] = a.minus + not_finite(tile.t[i]);
    row.like[i] *= missing ? 1.0f : acted ? a.plus : a.minus;
    row.not_like[i] += (missing ? 0.0f : acted ? a.minus : a.plus) * (1.0f - row.not_like[i]);
    row.proof[i] = acted ? 1.0f : row.proof[i];
    row.size[i] -= missing ? 0.0f : minus_abs(tile.t[i]);
  }
}

// Posterior, loss and reward gradient.
inline void combine_one_sided(Tile& tile, const OneSided& row) {
  float seen[kTile], not_seen[kTile];  // P(f) and its complement
  for (int i = 0; i < kTile; ++i) {
    const bool proof = row.proof[i] != 0.0f;
    const float joint = row.g[i] * row.like[i], rest = row.g[i] * row.not_like[i];
    const float silent = row.not_g[i] + joint, inverse = 1.0f / silent, not_q = row.not_g[i] * inverse;
    tile.q[i] = proof ? 1.0f : joint * inverse;
    tile.not_q[i] = proof ? 0.0f : not_q;
    tile.grad[i] = proof ? -row.not_g[i] : rest * not_q;
    seen[i] = proof ? joint : silent;
    not_seen[i] = proof ? row.not_g[i] + rest : rest;
  }
  for (int i = 0; i < kTile; ++i) tile.loss[i] = minus_log(seen[i], not_seen[i]);
}

// Whether a row has logits that are too large or not finite.
inline bool any_too_large(const OneSided& row) {
  int32_t any = 0;
  for (int i = 0; i < kTile; ++i) any |= !(row.size[i] <= kLargestLogits);
  return any;
}

// The results of `special` where logits are too large: what a row gets does not depend on its neighbours.
inline void merge_too_large(Tile& tile, const Tile& special, const OneSided& row) {
  for (int i = 0; i < kTile; ++i) {
    const bool fine = row.size[i] <= kLargestLogits;
    tile.q[i] = fine ? tile.q[i] : special.q[i];
    tile.not_q[i] = fine ? tile.not_q[i] : special.not_q[i];
    tile.grad[i] = fine ? tile.grad[i] : special.grad[i];
    tile.loss[i] = fine ? tile.loss[i] : special.loss[i];
  }
}

}  // namespace IRM_ISA
}  // namespace irm
