// A tile of rows in flight: what the steps of the CPU kernel hand to one another, all of it in the first-level cache.
#pragma once

#include "load.h"
#include "vector_math.h"

namespace irm {
namespace IRM_ISA {

constexpr float kInf = __builtin_huge_valf();
constexpr float kNaN = __builtin_nanf("");

struct Signal {
  float polarity, rate, minus_log_rate, log1p_minus_rate;
};

// Every loop runs over all kTile rows; those past the end are rows without evidence. "Posterior logits" are the
// stratification model's where there is one, else the trained ones.
struct alignas(64) Tile {
  float s[kTile], s_post[kTile], t[kTile], t_post[kTile];  // logits; t of the signal at hand
  float m[kMaxSignals][kTile], not_m[kMaxSignals][kTile];  // sigmoid(+-t_post)
  int32_t code[kMaxSignals][kTile];                        // feedback: 1, 0, -1
  float A[kTile], C[kTile], D[kTile];                      // log P(f | r*=1), log P(f | r*=0), their difference
  float poison[kTile];                                     // 0, or NaN where a logit is not finite
  float q[kTile], not_q[kTile];                            // P(r*=1 | evidence) and its complement
  float loss[kTile], grad[kTile];
  float weight[kTile], dropped[kTile];                     // times scale, which may underflow; 1 where it is 0
  int64_t first;
  int rows;
};

inline float not_finite(float x) { return x - x; }  // 0, or NaN

inline float larger(float x, float y) { return x > y ? x : y; }

inline int load_weights(const Arguments& args, Tile& tile) {
  int status = 0;
  for (int i = 0; i < kTile; ++i) {
    tile.weight[i] = static_cast<float>(args.scale);
    tile.dropped[i] = 0.0f;
  }
  for (int i = 0; args.weight && i < tile.rows; ++i) {
    const float w = args.weight[tile.first + i];
    if (!(w >= 0.0f && w < kInf)) status |= kInvalidWeight;
    tile.weight[i] *= w;
    tile.dropped[i] = w == 0.0f ? 1.0f : 0.0f;
  }
  return status;
}

// Adds signal k to the log-likelihoods of both sides.
template <bool kMisclick>
inline void add_evidence(Tile& tile, const Signal& sig, int k) {
  const bool positive = sig.polarity > 0.0f;
  for (int i = 0; i < kTile; ++i) {
    const bool acted = tile.code[k][i] == 1, missing = tile.code[k][i] == -1;
    const float t = tile.t_post[i];
    const Sigmoid a = sigmoid_softplus(t);
    const float bad = not_finite(t) + not_finite(tile.t[i]);
    tile.m[k][i] = a.plus + not_finite(t);
    tile.not_m[k][i] = a.minus + not_finite(t);

    float own = acted ? -a.softplus_minus : -a.softplus;
    float other = acted ? -kInf : 0.0f;
    float difference = acted ? kInf : -a.softplus;  // own - other, never found by subtraction
    if (kMisclick) {
      const Sigmoid shifted = sigmoid_softplus(t + sig.log1p_minus_rate);
      const float em = sig.rate * a.plus;
      const bool small = em < 0.5f;
      // Else softplus(u) - softplus(t) of the shifted u, its linear parts subtracted exactly; t > 0 there.
      const float log_u = shifted.softplus < shifted.softplus_minus ? shifted.softplus : shifted.softplus_minus;
      const float linear = t + sig.log1p_minus_rate > 0.0f ? sig.log1p_minus_rate : -t;
      const float log_not_em = small ? log1p_small(small ? -em : 0.0f) : linear + (log_u - a.softplus_minus);
      other = acted ? -sig.minus_log_rate - a.softplus_minus : log_not_em;
      difference = acted ? sig.minus_log_rate : -shifted.softplus;
    }
    own = missing ? 0.0f : own;
    other = missing ? 0.0f : other;
    difference = missing ? 0.0f : difference;
    tile.A[i] += positive ? own : other;
    tile.C[i] += positive ? other : own;
    tile.D[i] += positive ? difference : -difference;
    tile.poison[i] += missing ? 0.0f : bad;
  }
}

// Posterior of r*, marginal loss and its gradient in the reward logit.
inline void combine_evidence(Tile& tile) {
  for (int i = 0; i < kTile; ++i) {
    // Turn the row so that the evidence speaks against x: d <= 0.
    const bool flip = tile.D[i] > 0.0f;
    const float turn = flip ? -1.0f : 1.0f;
    const float x = turn * tile.s_post[i], d = turn * tile.D[i], base = larger(tile.A[i], tile.C[i]);
    const bool impossible = base == -kInf;  // evidence that cannot be: likelihood zero, no posterior
    const ExpSigmoid g = exp_sigmoid(x), won = exp_sigmoid(x + d);
    const float y = g.plus * exp_nonpositive(d).minus1;
    const bool near_one = y < -0.5f;  // log1p(y) would lose the tail; x > 0 there
    const float linear = near_one ? larger(-x, d) : 0.0f;
    const float log_term = linear + log1p_small(near_one ? (won.e - g.e) * g.large : y);
    const float poison = tile.poison[i] + (impossible ? kNaN : 0.0f);
    tile.q[i] = (flip ? won.minus : won.plus) + poison;
    tile.not_q[i] = (flip ? won.plus : won.minus) + poison;
    tile.grad[i] = -turn * y * won.minus + poison;
    tile.loss[i] = (impossible ? kInf : -base - log_term) + tile.poison[i];
  }
}

}  // namespace IRM_ISA
}  // namespace irm
