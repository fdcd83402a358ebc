// The implicit reward-model loss on CPUs: posterior, loss and gradients of a block of rows in one pass.
//
// Rows are taken in tiles that stay in the first-level cache. Each step is a plain loop over the rows of a tile, free of
// branches, which the compiler vectorises. irm_fast/reference.py defines what is computed and docs/numerics.md derives
// the forms used here, which keep float32 accurate in the tails. The Triton twin is kernels/triton/implicit_rm.py.
//
// No template of the standard library is used here: the linker would be free to run the AVX-512 copy of it anywhere.
#include <cmath>
#include <cstring>

#include "tiles.h"

namespace irm {
namespace IRM_ISA {
namespace {

constexpr float kInf = HUGE_VALF;
constexpr float kNaN = NAN;

struct Signal {
  float polarity, rate, minus_log_rate, log1p_minus_rate;
};

// A tile in flight. "Posterior logits" are the stratification model's where there is one, else the trained ones.
struct Tile {
  int64_t first;
  int rows;
  float s[kTile], s_post[kTile], t[kTile], t_post[kTile];  // logits; t of the signal at hand
  int32_t code[kMaxSignals][kTile];                        // feedback: 1, 0, -1
  float m[kMaxSignals][kTile], not_m[kMaxSignals][kTile];  // sigmoid(+-t_post)
  float A[kTile], C[kTile], D[kTile];                      // log P(f | r*=1), log P(f | r*=0), their difference
  float poison[kTile];                                     // 0, or NaN where a logit is not finite
  float q[kTile], not_q[kTile];                            // P(r*=1 | evidence) and its complement
  float loss[kTile], grad[kTile];
  float weight[kTile], dropped[kTile];                     // times scale; 1 where the weight is 0
};

inline float not_finite(float x) { return x - x; }  // 0, or NaN

// sigmoid(x) - sigmoid(y) without cancellation; `lead` is y - x.
inline float sigmoid_difference(float plus_x, float minus_x, float plus_y, float minus_y, float lead) {
  const bool below = lead <= 0.0f;
  const float change = exp_nonpositive(below ? lead : -lead).minus1;
  return below ? -plus_x * minus_y * change : minus_x * plus_y * change;
}

// Adds one signal to the log-likelihoods of both sides.
template <bool kMisclick>
void add_evidence(Tile& tile, const Signal& sig, int k) {
  const bool positive = sig.polarity > 0.0f;
  for (int i = 0; i < tile.rows; ++i) {
    const bool acted = tile.code[k][i] == 1, missing = tile.code[k][i] == -1;
    const float t = tile.t_post[i];
    const Sigmoid a = sigmoid_softplus(t);
    tile.m[k][i] = a.plus + not_finite(t);
    tile.not_m[k][i] = a.minus + not_finite(t);

    float own = acted ? -a.softplus_minus : -a.softplus;
    float other = acted ? -kInf : 0.0f;
    float difference = acted ? kInf : -a.softplus;  // own - other, never found by subtraction
    if (kMisclick) {
      const Sigmoid u = sigmoid_softplus(t + sig.log1p_minus_rate);
      const float em = sig.rate * a.plus;
      const bool small = em < 0.5f;
      // Else softplus(u) - softplus(t), its linear parts subtracted exactly; t > 0 there.
      const float log_u = u.softplus < u.softplus_minus ? u.softplus : u.softplus_minus;
      const float linear = t + sig.log1p_minus_rate > 0.0f ? sig.log1p_minus_rate : -t;
      const float log_not_em = small ? log1p_small(small ? -em : 0.0f) : linear + (log_u - a.softplus_minus);
      other = acted ? -sig.minus_log_rate - a.softplus_minus : log_not_em;
      difference = acted ? sig.minus_log_rate : -u.softplus;
    }
    own = missing ? 0.0f : own;
    other = missing ? 0.0f : other;
    difference = missing ? 0.0f : difference;
    tile.A[i] += positive ? own : other;
    tile.C[i] += positive ? other : own;
    tile.D[i] += positive ? difference : -difference;
    tile.poison[i] += missing ? 0.0f : not_finite(t) + not_finite(tile.t[i]);
  }
}

// Posterior of r*, marginal loss and its gradient in the reward logit.
void combine_evidence(Tile& tile) {
  for (int i = 0; i < tile.rows; ++i) {
    const float s = tile.s_post[i];
    // Turn the row so that the evidence speaks against x: d <= 0.
    const bool flip = tile.D[i] > 0.0f;
    const float turn = flip ? -1.0f : 1.0f;
    const float x = turn * s, d = turn * tile.D[i], base = tile.A[i] > tile.C[i] ? tile.A[i] : tile.C[i];
    const bool impossible = base == -kInf;  // evidence that cannot be: likelihood zero, no posterior
    const Sigmoid g = sigmoid_softplus(x);
    const float z = x + d, e = exp_nonpositive(z < 0.0f ? z : -z).value;
    const float large = 1.0f / (1.0f + e), small = e * large;
    const float won = z < 0.0f ? small : large, lost = z < 0.0f ? large : small;  // sigmoid(z), sigmoid(-z)

    const float y = g.plus * exp_nonpositive(d).minus1;
    const bool near_one = y < -0.5f;  // log1p(y) would lose the tail: take log-sum-exp
    const float a = -g.softplus, b = d - g.softplus_minus;
    const float log_term = (near_one ? (a > b ? a : b) : 0.0f) + log1p_small(near_one ? e : y);
    const float poison = tile.poison[i] + (impossible ? kNaN : 0.0f);

    tile.q[i] = (flip ? lost : won) + poison;
    tile.not_q[i] = (flip ? won : lost) + poison;
    tile.grad[i] = -turn * y * lost + poison;
    tile.loss[i] = (impossible ? kInf : -base - log_term) + tile.poison[i];
  }
}

// The paper's form: cross-entropies against a posterior that is a constant, first the preference.
void stratified_reward(Tile& tile) {
  for (int i = 0; i < tile.rows; ++i) {
    const float s = tile.s[i], q = tile.q[i], not_q = tile.not_q[i];
    const Sigmoid g = sigmoid_softplus(s);
    const bool impossible = tile.loss[i] == kInf;
    const float lead = (tile.s_post[i] - s) + tile.D[i];  // logit of q, less s
    tile.loss[i] = impossible ? kInf : q * g.softplus_minus + not_q * g.softplus;
    tile.grad[i] = sigmoid_difference(g.plus, g.minus, q, not_q, lead);
  }
}

template <bool kMisclick, bool kStratified>
void signal_outputs(Tile& tile, const Arguments& args, const Signal& sig, int k) {
  const bool positive = sig.polarity > 0.0f;
  const int64_t K = args.n_signals;
  float* grad = args.grad_propensity ? args.grad_propensity + tile.first * K + k : nullptr;
  float* groups = args.groups ? args.groups + (tile.first * K + k) * 4 : nullptr;
  float dt[kTile], PA[kTile], NA[kTile], PP[kTile], NP[kTile];

  for (int i = 0; i < tile.rows; ++i) {
    const bool acted = tile.code[k][i] == 1, missing = tile.code[k][i] == -1;
    const float m = tile.m[k][i], not_m = tile.not_m[k][i];
    const float w = positive ? tile.q[i] : tile.not_q[i], not_w = positive ? tile.not_q[i] : tile.q[i];
    // Given the other side and silence: active (a misclick that did not happen), passive, and e m (1-m) / (1 - e m).
    float active_other = m, passive_other = not_m, misclick_term = 0.0f;
    if (kMisclick) {
      const float inverse = 1.0f / (not_m + (1.0f - sig.rate) * m);  // 1 / (1 - e m), no cancellation
      active_other = m * (1.0f - sig.rate) * inverse;
      passive_other = not_m * inverse;
      misclick_term = sig.rate * m * passive_other;
    }
    const float active = acted ? 1.0f : not_w * active_other;  // PA + NA of a recorded entry
    const float silent_grad = w * m + not_w * misclick_term;   // m - active
    const float nothing = 0.0f * w;                            // 0, or NaN where the row has no posterior
    dt[i] = missing ? 0.0f : (acted ? -not_m : silent_grad) + nothing;
    if (kStratified) {
      const float passive = acted ? 0.0f : w + not_w * passive_other;
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
    const float active_own = missing ? m : acted ? 1.0f : 0.0f;
    const float passive_own = missing ? not_m : acted ? 0.0f : 1.0f;
    active_other = missing ? m : acted ? 1.0f : active_other;
    passive_other = missing ? not_m : acted ? 0.0f : passive_other;
    PA[i] = tile.q[i] * (positive ? active_own : active_other);
    NA[i] = tile.not_q[i] * (positive ? active_other : active_own);
    PP[i] = tile.q[i] * (positive ? passive_own : passive_other);
    NP[i] = tile.not_q[i] * (positive ? passive_other : passive_own);
  }
  if (grad) {
    for (int i = 0; i < tile.rows; ++i) {
      grad[i * K] = tile.dropped[i] != 0.0f ? 0.0f : dt[i] * tile.weight[i];
    }
  }
  if (groups) {
    for (int i = 0; i < tile.rows; ++i) {
      float* row = groups + i * K * 4;
      row[0] = PA[i]; row[1] = NA[i]; row[2] = PP[i]; row[3] = NP[i];
    }
  }
}

int load_rows(const Arguments& args, Tile& tile) {
  int status = 0;
  const bool stratified = args.reward_strat.data != nullptr;
  load_logits(args.reward, tile.first, 0, tile.rows, tile.s);
  load_logits(stratified ? args.reward_strat : args.reward, tile.first, 0, tile.rows, tile.s_post);
  int32_t label[kTile];
  for (int i = 0; i < kTile; ++i) label[i] = -1;
  if (args.preference.data && !load_codes(args.preference, tile.first, 0, tile.rows, label)) {
    status |= kInvalidPreference;
  }
  for (int i = 0; i < tile.rows; ++i) {
    const float w = args.weight ? args.weight[tile.first + i] : 1.0f;
    if (!(w >= 0.0f && w < kInf)) status |= kInvalidWeight;
    tile.weight[i] = w * args.scale;
    tile.dropped[i] = w == 0.0f ? 1.0f : 0.0f;
    // A label is evidence without limit.
    tile.A[i] = label[i] == 0 ? -kInf : 0.0f;
    tile.C[i] = label[i] == 1 ? -kInf : 0.0f;
    tile.D[i] = tile.A[i] - tile.C[i];
    tile.poison[i] = not_finite(tile.s[i]) + not_finite(tile.s_post[i]);
  }
  return status;
}

template <bool kStratified>
void load_signal_logits(const Arguments& args, Tile& tile, int k) {
  load_logits(args.propensity, tile.first, k, tile.rows, tile.t);
  load_logits(kStratified ? args.propensity_strat : args.propensity, tile.first, k, tile.rows, tile.t_post);
}

template <bool kMisclick, bool kStratified>
int process_tile(const Arguments& args, Tile& tile, double& sum) {
  int status = load_rows(args, tile);
  const auto signal = [&](int k) {
    const float* p = args.signals + k;
    const int64_t K = args.n_signals;
    return Signal{p[0], p[K], p[2 * K], p[3 * K]};
  };
  for (int k = 0; k < args.n_signals; ++k) {
    if (!load_codes(args.feedback, tile.first, k, tile.rows, tile.code[k])) status |= kInvalidFeedback;
    load_signal_logits<kStratified>(args, tile, k);
    add_evidence<kMisclick>(tile, signal(k), k);
  }
  combine_evidence(tile);
  if (kStratified) stratified_reward(tile);
  if (kStratified || args.grad_propensity || args.groups) {
    for (int k = 0; k < args.n_signals; ++k) {
      if (kStratified) load_signal_logits<kStratified>(args, tile, k);
      signal_outputs<kMisclick, kStratified>(tile, args, signal(k), k);
    }
  }
  // A row of weight 0 contributes nothing, whatever it holds.
  for (int i = 0; i < tile.rows; ++i) {
    const bool dropped = tile.dropped[i] != 0.0f;
    tile.loss[i] = dropped ? 0.0f : tile.loss[i] * tile.weight[i];
    tile.grad[i] = dropped ? 0.0f : tile.grad[i] * tile.weight[i];
  }
  if (args.loss_rows) std::memcpy(args.loss_rows + tile.first, tile.loss, tile.rows * sizeof(float));
  if (args.grad_reward) std::memcpy(args.grad_reward + tile.first, tile.grad, tile.rows * sizeof(float));
  for (int i = 0; i < tile.rows; ++i) sum += tile.loss[i];
  return status;
}

template <bool kMisclick, bool kStratified>
int process_tiles(const Arguments& args, int64_t block, double& sum) {
  const int64_t first = block * kRowsPerBlock, past = first + kRowsPerBlock;
  const int64_t last = past < args.n_rows ? past : args.n_rows;
  int status = 0;
  Tile tile;
  sum = 0.0;
  for (tile.first = first; tile.first < last; tile.first += kTile) {
    tile.rows = static_cast<int>(last - tile.first < kTile ? last - tile.first : kTile);
    status |= process_tile<kMisclick, kStratified>(args, tile, sum);
  }
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
