// A range of gradients, scaled and rounded.
//
// No template of the standard library is used here: the linker would be free to run the AVX-512 copy of it anywhere.
#include "lanes.h"
#include "scale.h"

namespace irm {
namespace IRM_ISA {
namespace {

template <typename T>
void scale_range(const ScaleArguments& args, int64_t first, int64_t last) {
  const float scale = static_cast<float>(args.scale);
  T* out = static_cast<T*>(args.scaled);
  int64_t i = first;
  for (; i + kLanes <= last; i += kLanes) store(out + i, load(args.grad + i) * scale);
  if (i < last) {
    const int rest = static_cast<int>(last - i);
    store_first(out + i, load_first(args.grad + i, rest) * scale, rest);
  }
}

}  // namespace

void scale_elements(const ScaleArguments& args, int64_t first, int64_t last) {
  switch (args.type) {
    case kFloat32: return scale_range<float>(args, first, last);
    case kBFloat16: return scale_range<BFloat16>(args, first, last);
    default: return scale_range<Float16>(args, first, last);
  }
}

}  // namespace IRM_ISA
}  // namespace irm
