// Shares the gradients out among threads.
#include "scale.h"

#include <algorithm>

#include "export.h"
#include "huge_pages.h"
#include "instruction_set.h"
#include "parallel.h"

namespace irm {
namespace {

constexpr int64_t kElementsPerBlock = 1 << 16;

int run(const ScaleArguments& args) {
  const int64_t n = args.n_elements;
  advise_huge_pages(args.scaled, n * (args.type == kFloat32 ? 4 : 2));
  const auto scale = IRM_DISPATCH(scale_elements);
  for_blocks((n + kElementsPerBlock - 1) / kElementsPerBlock, args.n_threads, [&](int64_t b) {
    scale(args, b * kElementsPerBlock, std::min(n, (b + 1) * kElementsPerBlock));
  });
  return 0;
}

}  // namespace
}  // namespace irm

IRM_EXPORT int irm_scale(const irm::ScaleArguments* args) {
  return irm::guarded([args] { return irm::run(*args); });
}
IRM_EXPORT_LAYOUT(irm_scale, irm::ScaleArguments, IRM_SCALE_FIELDS)
