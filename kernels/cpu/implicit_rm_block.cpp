// The implicit reward-model loss on CPUs: posterior, loss and gradients of a block of rows in one pass.
//
// Rows are taken in tiles that stay in the first-level cache. Each step is a plain loop over the rows of a tile, free of
// branches, which the compiler vectorises. kernels/reference/definition.py defines what is computed; docs/why/numerics.md
// derives the forms used here, which keep float32 accurate in the tails. The Triton twin, with the same quantities under
// the same names, is kernels/triton/four_groups.py.
//
// No template of the standard library is used here: the linker would be free to run the AVX-512 copy of it anywhere.
#include <cstring>

#include "one_sided.h"
#include "tile.h"
#include "tile_loop.h"

namespace irm {
namespace IRM_ISA {
namespace {


// The paper's form: cross-entropies against a posterior that is a constant, first the preference.
void stratified_reward(Tile& tile) {
  for (int i = 0; i < kTile; ++i) {
    const float s = tile.s[i], q = tile.q[i], not_q = tile.not_q[i];
    const Sigmoid g = sigmoid_softplus(s);
    const bool impossible = tile.loss[i] == kInf;
    const float lead = (tile.s_post[i] - s) + tile.D[i];  // logit of q, less s
    tile.loss[i] = impossible ? kInf : q * g.softplus_minus + not_q * g.softplus;
    tile.grad[i] = sigmoid_difference(g.plus, g.minus, q, not_q, lead);
  }
}

// Given silence and that r* is not on the signal's side: active (a misclick that did not happen) and passive.
struct OtherSide {
  float active, passive;
};

template <bool kMisclick>
inline OtherSide silent_other_side(float m, float not_m, float rate) {
  if (!kMisclick) return {m, not_m};
  const float inverse = 1.0f / (not_m + (1.0f - rate) * m);  // 1 / (1 - e m), no cancellation
  return {m * (1.0f - rate) * inverse, not_m * inverse};
}

// Gradient in the propensity logit of signal k; the stratified form also adds its cross-entropy to the loss.
template <bool kMisclick, bool kStratified>
void propensity_gradient(Tile& tile, const Signal& sig, int k, float* dt) {
  const bool positive = sig.polarity > 0.0f;
  for (int i = 0; i < kTile; ++i) {
    const bool acted = tile.code[k][i] == 1, missing = tile.code[k][i] == -1;
    const float m = tile.m[k][i], not_m = tile.not_m[k][i];
    const float w = positive ? tile.q[i] : tile.not_q[i], not_w = positive ? tile.not_q[i] : tile.q[i];
    const OtherSide other = silent_other_side<kMisclick>(m, not_m, sig.rate);
    float silent_grad = w * m;  // m - (PA + NA)
    if (kMisclick) silent_grad += not_w * sig.rate * m * other.passive;
    const float nothing = 0.0f * w;  // 0, or NaN where the row has no posterior
    dt[i] = missing ? 0.0f : (acted ? -not_m : silent_grad) + nothing;
    if (kStratified) {
      const float active = acted ? 1.0f : not_w * other.active;  // PA + NA of a recorded entry
      const float passive = acted ? 0.0f : w + not_w * other.passive;
      const float t = tile.t[i];
      const Sigmoid trained = sigmoid_softplus(t);
      const float cross_entropy = active * trained.softplus_minus + passive * trained.softplus;
      const bool impossible = tile.loss[i] == kInf;
      tile.loss[i] += missing || impossible ? 0.0f : cross_entropy;
      // Two ways to write sigmoid(t) - active: the one whose terms are smaller cancels less.
      const float shift = sigmoid_difference(trained.plus, trained.minus, m, not_m, tile.t_post[i] - t);
      const float up = trained.plus * passive, down = trained.minus * active;
      const float step = (shift < 0.0f ? -shift : shift) + silent_grad < up + down ? shift + silent_grad : up - down;
      dt[i] = missing ? 0.0f : (acted ? -trained.minus : step) + nothing;
    }
    dt[i] = tile.dropped[i] != 0.0f ? 0.0f : dt[i] * tile.weight[i];
  }
}

// Posterior of the four groups of signal k: PA, NA, PP, NP of every row.
template <bool kMisclick>
void store_groups(const Tile& tile, const Signal& sig, int k, float* groups, int64_t row_stride) {
  const bool positive = sig.polarity > 0.0f;
  for (int i = 0; i < tile.rows; ++i) {
    const bool acted = tile.code[k][i] == 1, missing = tile.code[k][i] == -1;
    const float m = tile.m[k][i], not_m = tile.not_m[k][i];
    const OtherSide silent = silent_other_side<kMisclick>(m, not_m, sig.rate);
    const OtherSide own = {missing ? m : acted ? 1.0f : 0.0f, missing ? not_m : acted ? 0.0f : 1.0f};
    const OtherSide other = {missing ? m : acted ? 1.0f : silent.active, missing ? not_m : acted ? 0.0f : silent.passive};
    float* row = groups + i * row_stride;
    row[0] = tile.q[i] * (positive ? own.active : other.active);
    row[1] = tile.not_q[i] * (positive ? other.active : own.active);
    row[2] = tile.q[i] * (positive ? own.passive : other.passive);
    row[3] = tile.not_q[i] * (positive ? other.passive : own.passive);
  }
}

// The evidence (log-likelihoods of r* = 1 and of r* = 0) before any signal has spoken: labels, which are evidence
// without limit.
template <bool kStratified>
int start_evidence(const Arguments& args, Tile& tile) {
  int32_t label[kTile];
  for (int i = 0; i < kTile; ++i) label[i] = -1;
  const bool valid = !args.preference.data || load_codes(args.preference, tile.first, 0, tile.rows, label);
  load_logits(kStratified ? args.reward_strat : args.reward, tile.first, 0, tile.rows, tile.s_post);
  for (int i = 0; i < kTile; ++i) {
    tile.A[i] = label[i] == 0 ? -kInf : 0.0f;
    tile.C[i] = label[i] == 1 ? -kInf : 0.0f;
    tile.D[i] = tile.A[i] - tile.C[i];
    tile.poison[i] = not_finite(tile.s[i]) + not_finite(tile.s_post[i]);
  }
  return valid ? 0 : kInvalidPreference;
}

template <bool kStratified>
void load_signal_logits(const Arguments& args, Tile& tile, int k) {
  load_logits(args.propensity, tile.first, k, tile.rows, tile.t);
  load_logits(kStratified ? args.propensity_strat : args.propensity, tile.first, k, tile.rows, tile.t_post);
}

Signal signal_of(const Arguments& args, int k) {
  const float* p = args.signals + k;
  const int64_t K = args.n_signals;
  return {p[0], p[K], p[2 * K], p[3 * K]};
}

template <bool kMisclick, bool kStratified>
void signal_outputs(const Arguments& args, Tile& tile, int k) {
  const int64_t K = args.n_signals, entry = tile.first * K + k;
  const Signal sig = signal_of(args, k);
  if (kStratified) load_signal_logits<kStratified>(args, tile, k);
  if (kStratified || args.grad_propensity) {
    alignas(64) float dt[kTile];
    propensity_gradient<kMisclick, kStratified>(tile, sig, k, dt);
    float* out = args.grad_propensity + entry;
    if (args.grad_propensity) for_rows(tile.rows, K, [=, &dt](int i, int64_t at) { out[at] = dt[i]; });
  }
  if (args.groups) store_groups<kMisclick>(tile, sig, k, args.groups + entry * 4, K * 4);
}

int load_feedback(const Arguments& args, Tile& tile) {
  bool valid = true;
  for (int k = 0; k < args.n_signals; ++k) {
    valid = load_codes(args.feedback, tile.first, k, tile.rows, tile.code[k]) && valid;
  }
  return valid ? 0 : kInvalidFeedback;
}

template <bool kMisclick, bool kStratified>
int general_posterior(const Arguments& args, Tile& tile) {
  const int status = start_evidence<kStratified>(args, tile);
  for (int k = 0; k < args.n_signals; ++k) {
    load_signal_logits<kStratified>(args, tile, k);
    add_evidence<kMisclick>(tile, signal_of(args, k), k);
  }
  combine_evidence(tile);
  if (kStratified) stratified_reward(tile);
  return status;
}

void one_sided_posterior(const Arguments& args, Tile& tile) {
  OneSided row;
  start_one_sided(tile, row);
  for (int k = 0; k < args.n_signals; ++k) {
    load_logits(args.propensity, tile.first, k, tile.rows, tile.t);
    add_one_sided(tile, row, k);
  }
  combine_one_sided(tile, row);
  if (any_too_large(row)) {
    Tile special = tile;
    general_posterior<false, false>(args, special);
    merge_too_large(tile, special, row);
  }
}

template <bool kMisclick, bool kStratified>
int process_tile(const Arguments& args, bool one_sided, Tile& tile) {
  load_logits(args.reward, tile.first, 0, tile.rows, tile.s);
  int status = load_weights(args, tile) | load_feedback(args, tile);
  if (one_sided) {
    one_sided_posterior(args, tile);
  } else {
    status |= general_posterior<kMisclick, kStratified>(args, tile);
  }
  if (kStratified || args.grad_propensity || args.groups) {
    for (int k = 0; k < args.n_signals; ++k) signal_outputs<kMisclick, kStratified>(args, tile, k);
  }
  // A row of weight 0 contributes nothing, whatever it holds.
  for (int i = 0; i < kTile; ++i) {
    const bool dropped = tile.dropped[i] != 0.0f;
    tile.loss[i] = dropped ? 0.0f : tile.loss[i] * tile.weight[i];
    tile.grad[i] = dropped ? 0.0f : tile.grad[i] * tile.weight[i];
  }
  return status;
}

void prefetch_tile(const Arguments& args, int64_t first) {
  const auto bytes = [](const LogitsView& v) { return v.row_stride * (v.type == kFloat32 ? 4 : 2); };
  prefetch_rows(args.reward.data, bytes(args.reward), first);
  prefetch_rows(args.propensity.data, bytes(args.propensity), first);
  prefetch_rows(args.feedback.data, args.feedback.row_stride * args.feedback.width, first);
}

template <bool kMisclick, bool kStratified>
int process_tiles(const Arguments& args, int64_t block, double& sum) {
  int status = 0;
  bool one_sided = !kMisclick && !kStratified && !args.preference.data;
  for (int64_t k = 0; k < args.n_signals; ++k) one_sided = one_sided && args.signals[k] > 0.0f;
  Tile tile;
  sum = for_tiles(args, block, tile, prefetch_tile,
                  [&](Tile& t) { status |= process_tile<kMisclick, kStratified>(args, one_sided, t); });
  return status;
}

}  // namespace

int process_block(const Arguments& args, int64_t block, double& sum) {
  const bool stratified = args.reward_strat.data != nullptr;
  if (args.has_misclick) {
    return stratified ? process_tiles<true, true>(args, block, sum) : process_tiles<true, false>(args, block, sum);
  }
  return stratified ? process_tiles<false, true>(args, block, sum) : process_tiles<false, false>(args, block, sum);
}

}  // namespace IRM_ISA
}  // namespace irm
