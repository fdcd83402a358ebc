// Shares the blocks of a batch out among threads, and adds their sums up in a fixed order.
#include "pointwise.h"

#include <algorithm>
#include <vector>

#include "export.h"
#include "huge_pages.h"
#include "instruction_set.h"
#include "parallel.h"

namespace irm {
namespace {

constexpr int64_t kRowsPerThread = 8192;  // below this, waking a thread costs more than it saves

int run(const PointwiseArguments& args) {
  const int64_t n = args.n_rows;
  if (args.grad_reward) advise_huge_pages(args.grad_reward, n * sizeof(float));
  if (args.loss_rows) advise_huge_pages(args.loss_rows, n * sizeof(float));
  const int64_t n_blocks = (n + kRowsPerBlock - 1) / kRowsPerBlock;
  std::vector<double> sums(n_blocks);
  const auto process = IRM_DISPATCH(process_pointwise_block);
  for_blocks(n_blocks, std::min(args.n_threads, n / kRowsPerThread), [&](int64_t b) { process(args, b, sums[b]); });
  double total = 0.0;
  for (double sum : sums) total += sum;
  if (args.loss_sum) *args.loss_sum = static_cast<float>(total);
  return 0;
}

}  // namespace
}  // namespace irm

IRM_EXPORT int irm_pointwise(const irm::PointwiseArguments* args) {
  return irm::guarded([args] { return irm::run(*args); });
}
IRM_EXPORT_LAYOUT(irm_pointwise, irm::PointwiseArguments, IRM_POINTWISE_FIELDS)
