// Heads and implicit reward-model loss on CPUs: one read of the hidden states.
//
// Rows are taken in tiles that stay in the second-level cache. A tile's logits are formed, its loss and the gradients
// of its logits come from the kernel of the loss (implicit_rm_block.cpp), and the weight gradient reads the tile again
// from the cache. Sums over a tile are kept in registers and then added to the sums of the block: two short sums, not
// a long one, so that float32 rounding stays small. The Triton twin is kernels/triton/linear_implicit_rm.py.
//
// No template of the standard library is used here: the linker would be free to run the AVX-512 copy of it anywhere.
#include "lanes.h"
#include "linear_implicit_rm.h"

namespace irm {
namespace IRM_ISA {
namespace {

constexpr int64_t kTileRows = kTile;  // as many as the loss takes at once
constexpr int64_t kTileBytes = 256 << 10, kMinTileRows = 8;
constexpr int kHeadGroup = kManyRegisters ? 6 : 2;  // heads at a time: accumulators stay in registers

template <typename T>
struct LinearTile {
  int64_t first;
  int rows;
  const T* hidden;                       // of the first row
  int64_t stride;                        // between rows, in elements
  float logits[kMaxHeads * kTileRows];   // [head][row]
  float grad_reward[kTileRows];
  float grad_propensity[kTileRows * kMaxSignals];  // [row][signal]
  float grad_scratch[kTileRows * kMaxHeads];       // where nobody wants the gradients of the logits themselves
  float* grad_logits;                    // [row][1 + signal]
  int n_kept;                            // rows whose weight is not 0
  int kept[kTileRows];
};

template <int N>
struct Count {};

// Logits of kRows rows and kHeads heads.
template <typename T, int kRows, int kHeads>
inline void dot(const LinearArguments& args, LinearTile<T>& tile, int row, int head) {
  const int64_t H = args.width;
  const T* x = tile.hidden + row * tile.stride;
  const float* w = args.heads + head * H;
  Lanes sum[kRows][kHeads] = {};
  const auto add = [&](auto load_lanes) {
    Lanes xs[kRows];
    for (int r = 0; r < kRows; ++r) xs[r] = load_lanes(x + r * tile.stride);
    for (int m = 0; m < kHeads; ++m) {
      const Lanes ws = load_lanes(w + m * H);
      for (int r = 0; r < kRows; ++r) sum[r][m] += xs[r] * ws;
    }
  };
  int64_t c = 0;
  for (; c + kLanes <= H; c += kLanes) {
    add([c](auto* p) { return load(p + c); });
    // The processor's own prefetching starts anew in every row, which often is another page.
    for (int r = 0; head == 0 && r < kRows; ++r) prefetch(x + (r + kRows) * tile.stride + c);
  }
  if (c < H) add([c, H](auto* p) { return load_first(p + c, static_cast<int>(H - c)); });
  for (int m = 0; m < kHeads; ++m) {
    float* logits = tile.logits + (head + m) * kTileRows + row;
    for (int r = 0; r < kRows; ++r) logits[r] = add_up(sum[r][m]) + args.bias[head + m];
  }
}

template <typename T, int kHeads>
void form_logits(const LinearArguments& args, LinearTile<T>& tile, int head, Count<kHeads>) {
  int row = 0;
  for (; row + 4 <= tile.rows; row += 4) dot<T, 4, kHeads>(args, tile, row, head);
  for (; row < tile.rows; ++row) dot<T, 1, kHeads>(args, tile, row, head);
}

// Adds grad_logits.T @ hidden of a tile to the sums of kHeads heads, in columns from `column` on: kVectors full
// vectors, or, where that is 0, the last `count` columns.
template <typename T, int kHeads, int kVectors>
inline void add_columns(const LinearArguments& args, const LinearTile<T>& tile, int head, int64_t column, int count,
                        float* grad_heads) {
  constexpr int kWidth = kVectors ? kVectors : 1;
  const int64_t H = args.width, G = args.loss.n_signals + 1;
  Lanes sum[kHeads][kWidth] = {};
  for (int i = 0; i < tile.n_kept; ++i) {
    const T* x = tile.hidden + tile.kept[i] * tile.stride + column;
    const float* g = tile.grad_logits + tile.kept[i] * G + head;
    Lanes xs[kWidth];
    for (int v = 0; v < kWidth; ++v) xs[v] = kVectors ? load(x + v * kLanes) : load_first(x, count);
    for (int m = 0; m < kHeads; ++m) {
      for (int v = 0; v < kWidth; ++v) sum[m][v] += g[m] * xs[v];
    }
  }
  for (int m = 0; m < kHeads; ++m) {
    float* out = grad_heads + (head + m) * H + column;
    for (int v = 0; v < kWidth; ++v) {
      if (kVectors) {
        store(out + v * kLanes, load(out + v * kLanes) + sum[m][v]);
      } else {
        store_first(out, load_first(out, count) + sum[m][v], count);
      }
    }
  }
}

template <typename T, int kHeads>
void add_weight_grad(const LinearArguments& args, const LinearTile<T>& tile, int head, Count<kHeads>,
                     float* grad_heads) {
  constexpr int kVectors = kManyRegisters && kHeads <= 2 ? 8 : 4;
  const int64_t H = args.width;
  int64_t c = 0;
  for (; c + kVectors * kLanes <= H; c += kVectors * kLanes) {
    add_columns<T, kHeads, kVectors>(args, tile, head, c, 0, grad_heads);
  }
  for (; c + kLanes <= H; c += kLanes) add_columns<T, kHeads, 1>(args, tile, head, c, 0, grad_heads);
  if (c < H) add_columns<T, kHeads, 0>(args, tile, head, c, static_cast<int>(H - c), grad_heads);
}

// Calls work(head, Count) for all heads, as many at a time as there are registers for.
template <typename Work>
inline void for_head_groups(int64_t n_heads, Work work) {
  int head = 0;
  for (; head + kHeadGroup <= n_heads; head += kHeadGroup) work(head, Count<kHeadGroup>());
  switch (n_heads - head) {
    case 5: return work(head, Count<5>());
    case 4: return work(head, Count<4>());
    case 3: return work(head, Count<3>());
    case 2: return work(head, Count<2>());
    case 1: return work(head, Count<1>());
  }
}

inline LogitsView from_row(LogitsView v, int64_t row) {
  if (v.data) v.data = static_cast<const char*>(v.data) + row * v.row_stride * (v.type == kFloat32 ? 4 : 2);
  return v;
}

inline CodesView from_row(CodesView v, int64_t row) {
  if (v.data) v.data = static_cast<const char*>(v.data) + row * v.row_stride * v.width;
  return v;
}

// Loss of a tile and the gradients of its logits: the kernel of the loss on a batch of the tile's rows.
template <typename T>
int tile_loss(const LinearArguments& linear, LinearTile<T>& tile, bool need_grads, double& sum) {
  const int64_t K = linear.loss.n_signals;
  Arguments args = linear.loss;
  args.n_rows = tile.rows;
  args.reward = {tile.logits, kFloat32, 1, 0};
  args.propensity = {tile.logits + kTileRows, kFloat32, 1, kTileRows};
  if (linear.n_heads == 1) args.propensity = from_row(linear.loss.propensity, tile.first);
  args.reward_strat = from_row(args.reward_strat, tile.first);
  args.propensity_strat = from_row(args.propensity_strat, tile.first);
  args.feedback = from_row(args.feedback, tile.first);
  args.preference = from_row(args.preference, tile.first);
  if (args.weight) args.weight += tile.first;
  if (args.loss_rows) args.loss_rows += tile.first;
  if (args.groups) args.groups += tile.first * K * 4;
  args.grad_reward = need_grads ? tile.grad_reward : nullptr;
  args.grad_propensity = need_grads ? tile.grad_propensity : nullptr;
  const int status = process_block(args, 0, sum);

  tile.n_kept = 0;
  for (int i = 0; need_grads && i < tile.rows; ++i) {
    float* row = tile.grad_logits + i * (K + 1);
    row[0] = tile.grad_reward[i];
    for (int64_t k = 0; k < K; ++k) row[1 + k] = tile.grad_propensity[i * K + k];
    if (!args.weight || args.weight[i] != 0.0f) tile.kept[tile.n_kept++] = i;
  }
  return status;
}

template <typename T>
int process_rows(const LinearArguments& args, RowRange range, float* grad_heads, double& sum) {
  const int64_t tile_rows = kTileBytes / (args.width * static_cast<int64_t>(sizeof(T)));
  const int64_t step = tile_rows < kMinTileRows ? kMinTileRows : tile_rows < kTileRows ? tile_rows : kTileRows;
  const bool need_grads = args.grad_logits || grad_heads;
  if (grad_heads) std::memset(grad_heads, 0, args.n_heads * args.width * sizeof(float));
  LinearTile<T> tile;
  tile.stride = args.hidden.row_stride;
  int status = 0;
  double range_sum = 0.0;  // not in `sum`, whose neighbours other threads write
  for (tile.first = range.first; tile.first < range.last; tile.first += step) {
    const int64_t left = range.last - tile.first;
    tile.rows = static_cast<int>(left < step ? left : step);
    tile.hidden = static_cast<const T*>(args.hidden.data) + tile.first * tile.stride;
    tile.grad_logits = args.grad_logits ? args.grad_logits + tile.first * (args.loss.n_signals + 1) : tile.grad_scratch;
    for_head_groups(args.n_heads, [&](int head, auto n) { form_logits(args, tile, head, n); });
    double tile_sum;
    status |= tile_loss(args, tile, need_grads, tile_sum);
    range_sum += tile_sum;
    if (grad_heads) {
      for_head_groups(args.n_heads, [&](int head, auto n) { add_weight_grad(args, tile, head, n, grad_heads); });
    }
  }
  sum = range_sum;
  return status;
}

}  // namespace

int process_linear_rows(const LinearArguments& args, RowRange rows, float* grad_heads, double& sum) {
  switch (args.hidden.type) {
    case kFloat32: return process_rows<float>(args, rows, grad_heads, sum);
    case kBFloat16: return process_rows<BFloat16>(args, rows, grad_heads, sum);
    default: return process_rows<Float16>(args, rows, grad_heads, sum);
  }
}

}  // namespace IRM_ISA
}  // namespace irm
