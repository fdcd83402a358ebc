// Runs the blocks of a batch: the copy for this processor, threads, and the sum of the partial sums in a fixed order.
#include "implicit_rm.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "export.h"
#include "huge_pages.h"
#include "instruction_set.h"
#include "parallel.h"

namespace irm {
namespace {

constexpr int64_t kRowsPerThread = 8192;  // below this, waking a thread costs more than it saves

int run(const Arguments& args) {
  const int64_t n = args.n_rows, entries = n * args.n_signals;
  if (args.grad_reward) advise_huge_pages(args.grad_reward, n * sizeof(float));
  if (args.grad_propensity) advise_huge_pages(args.grad_propensity, entries * sizeof(float));
  if (args.groups) advise_huge_pages(args.groups, entries * 4 * sizeof(float));
  const int64_t n_blocks = (n + kRowsPerBlock - 1) / kRowsPerBlock;
  std::vector<double> sums(n_blocks);
  std::atomic<int> status{0};
  const auto process = IRM_DISPATCH(process_block);
  for_blocks(n_blocks, std::min(args.n_threads, n / kRowsPerThread),
             [&](int64_t b) { status |= process(args, b, sums[b]); });
  double total = 0.0;
  for (double sum : sums) total += sum;
  if (args.loss_sum) *args.loss_sum = static_cast<float>(total);
  return status;
}

}  // namespace
}  // namespace irm

IRM_EXPORT int irm_implicit_rm(const irm::Arguments* args) {
  return irm::guarded([args] { return irm::run(*args); });
}
#define FIELDS(X) IRM_ARGUMENTS_FIELDS(X, )
IRM_EXPORT_LAYOUT(irm_implicit_rm, irm::Arguments, FIELDS)
