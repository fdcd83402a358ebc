// Shares the rows of a batch out among threads, and adds up what the blocks found in a fixed order.
#include "linear_implicit_rm.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "export.h"
#include "huge_pages.h"
#include "instruction_set.h"
#include "parallel.h"

namespace irm {
namespace {

constexpr int64_t kBytesPerThread = 256 << 10;  // below this, waking a thread costs more than it saves

// Blocks of the forward pass. Each has sums of its own, added up at the end in one order: the result depends on the
// shapes, never on the threads. Their number bounds the memory for the sums, their rows what it costs to add them.
constexpr int64_t kMaxBlocks = 128, kMinRowsPerBlock = 64, kMinRowsPerHead = 16, kMinRows = 8;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t element_size(int64_t type) { return type == kFloat32 ? 4 : 2; }

// Rows of a block, of `per_block` each.
RowRange block_rows(int64_t block, int64_t per_block, int64_t n_rows) {
  return {block * per_block, std::min((block + 1) * per_block, n_rows)};
}

void add_partials(const float* partials, int64_t n_partials, int64_t size, int64_t n_threads, float* out) {
  constexpr int64_t kChunk = 1024;
  for_blocks(divide_up(size, kChunk), std::min(n_threads, n_partials * size * 4 / kBytesPerThread), [=](int64_t chunk) {
    const int64_t first = chunk * kChunk, count = std::min(kChunk, size - first);
    double sum[kChunk] = {};
    for (int64_t p = 0; p < n_partials; ++p) {
      for (int64_t i = 0; i < count; ++i) sum[i] += partials[p * size + first + i];
    }
    for (int64_t i = 0; i < count; ++i) out[first + i] = static_cast<float>(sum[i]);
  });
}

int run(const LinearArguments& args) {
  const int64_t n = args.loss.n_rows, size = args.n_heads * args.width;
  const int64_t bytes = n * args.width * element_size(args.hidden.type);
  const int64_t n_threads = std::min(args.loss.n_threads, bytes / kBytesPerThread);
  // Blocks without sums of their own may be small.
  const int64_t at_least = args.grad_heads ? std::max(kMinRowsPerBlock, kMinRowsPerHead * args.n_heads) : kMinRows;
  const int64_t per_block = std::max(divide_up(n, kMaxBlocks), at_least), n_blocks = divide_up(n, per_block);
  const std::unique_ptr<float[]> partials(args.grad_heads ? new float[n_blocks * size] : nullptr);
  if (partials) advise_huge_pages(partials.get(), n_blocks * size * sizeof(float));
  std::vector<double> sums(n_blocks);
  std::atomic<int> status{0};

  const auto process_rows = IRM_DISPATCH(process_linear_rows);
  for_blocks(n_blocks, n_threads, [&](int64_t b) {
    float* grad_heads = partials ? partials.get() + b * size : nullptr;
    status |= process_rows(args, block_rows(b, per_block, n), grad_heads, sums[b]);
  });
  if (partials) add_partials(partials.get(), n_blocks, size, args.loss.n_threads, args.grad_heads);
  double total = 0.0;
  for (double sum : sums) total += sum;
  if (args.loss.loss_sum) *args.loss.loss_sum = static_cast<float>(total);
  return status;
}

int run(const HiddenGradArguments& args) {
  const int64_t row_bytes = args.width * element_size(args.type), bytes = args.n_rows * row_bytes;
  const int64_t n_threads = std::max<int64_t>(1, std::min(args.n_threads, bytes / kBytesPerThread));
  advise_huge_pages(args.hidden_grad, bytes);
  // Large blocks, so that threads seldom meet in one huge page; several a thread, so that none waits long for another.
  const int64_t block_bytes = std::max(std::min<int64_t>(bytes / (8 * n_threads), 8 << 20), kBytesPerThread / 2);
  const int64_t per_block = divide_up(block_bytes, row_bytes);
  const auto write_rows = IRM_DISPATCH(write_hidden_grad);
  for_blocks(divide_up(args.n_rows, per_block), n_threads,
             [&](int64_t b) { write_rows(args, block_rows(b, per_block, args.n_rows)); });
  return 0;
}

}  // namespace
}  // namespace irm

IRM_EXPORT int irm_linear_implicit_rm(const irm::LinearArguments* args) {
  return irm::guarded([args] { return irm::run(*args); });
}
IRM_EXPORT_LAYOUT(irm_linear_implicit_rm, irm::LinearArguments, IRM_LINEAR_FIELDS)
IRM_EXPORT int irm_linear_hidden_grad(const irm::HiddenGradArguments* args) {
  return irm::guarded([args] { return irm::run(*args); });
}
IRM_EXPORT_LAYOUT(irm_linear_hidden_grad, irm::HiddenGradArguments, IRM_HIDDEN_GRAD_FIELDS)
