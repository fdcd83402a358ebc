// Gradients times an upstream gradient, rounded to the dtype of their logits in the same pass.
#pragma once

#include "implicit_rm.h"

namespace irm {

// Packed by name in scale.py: every field has 8 bytes, and stands in IRM_SCALE_FIELDS.
struct ScaleArguments {
  int64_t n_elements;
  const float* grad;
  double scale;  // the upstream gradient, a float32 number
  void* scaled;
  int64_t type;  // LogitType of scaled
  int64_t n_threads;
};

#define IRM_SCALE_FIELDS(X) X(n_elements) X(grad) X(scale) X(scaled) X(type) X(n_threads)

// Scales the elements from `first` up to `last`.
IRM_DECLARE(void, scale_elements, (const ScaleArguments& args, int64_t first, int64_t last))

}  // namespace irm
