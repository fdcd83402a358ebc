// One signal, no misclicks, no labels, no stratification model: the common case, taken in short loops over a tile.
//
// The same forms as in tile.h. Each loop holds one exponential or logarithm, so that the processor has the chains of
// many rows in flight at once; one long loop is a third slower.
#pragma once

#include <cstring>

#include "tile.h"

namespace irm {
namespace IRM_ISA {

// Losses and gradients of a tile, losses left in tile.loss, reward gradients in tile.grad.
inline int process_one_signal(const Arguments& args, Tile& tile) {
  const int32_t* code = tile.code[0];
  float *A = tile.A, *m = tile.m[0], *not_m = tile.not_m[0], *dt = tile.D;
  float prior_e[kTile], prior_large[kTile], won_e[kTile];
  int status = load_codes(args.feedback, tile.first, 0, tile.rows, tile.code[0]) ? 0 : kInvalidFeedback;
  load_logits(args.reward, tile.first, 0, tile.rows, tile.s);
  load_logits(args.propensity, tile.first, 0, tile.rows, tile.t);
  status |= load_weights(args, tile);

  for (int i = 0; i < kTile; ++i) {
    const float t = tile.t[i];
    const ExpSigmoid a = exp_sigmoid(t);
    A[i] = code[i] == -1 ? 0.0f : -larger(code[i] == 1 ? -t : t, 0.0f) - log1p_small(a.e);
    m[i] = code[i] == -1 ? 0.0f : a.plus;
    not_m[i] = a.minus;
  }
  for (int i = 0; i < kTile; ++i) {
    const ExpSigmoid g = exp_sigmoid(tile.s[i]);
    prior_e[i] = g.e;
    prior_large[i] = g.large;
  }
  for (int i = 0; i < kTile; ++i) {
    const ExpSigmoid won = exp_sigmoid(tile.s[i] + A[i]);
    won_e[i] = won.e;
    tile.q[i] = won.plus;
    tile.not_q[i] = won.minus;
  }
  for (int i = 0; i < kTile; ++i) {
    const bool acted = code[i] == 1, missing = code[i] == -1;
    const float s = tile.s[i], weight = tile.weight[i];
    const float bad = not_finite(s) + (missing ? 0.0f : not_finite(tile.t[i]));
    const ExpSigmoid g = exp_sigmoid_of(s, prior_e[i], prior_large[i]);
    const OneSidedLoss loss = one_sided_loss(s, A[i], g, won_e[i], m[i], acted);
    tile.loss[i] = (loss.value + bad) * weight;
    tile.grad[i] = ((acted ? -g.minus : loss.gu * tile.not_q[i]) + bad) * weight;
    dt[i] = missing ? 0.0f : ((acted ? -not_m[i] : tile.q[i] * m[i]) + bad) * weight;
  }
  for (int i = 0; args.weight && i < kTile; ++i) {  // a row of weight 0 contributes nothing, whatever it holds
    const bool dropped = tile.dropped[i] != 0.0f;
    tile.loss[i] = dropped ? 0.0f : tile.loss[i];
    tile.grad[i] = dropped ? 0.0f : tile.grad[i];
    dt[i] = dropped ? 0.0f : dt[i];
  }
  if (args.grad_propensity) std::memcpy(args.grad_propensity + tile.first, dt, tile.rows * sizeof(float));
  return status;
}

}  // namespace IRM_ISA
}  // namespace irm
