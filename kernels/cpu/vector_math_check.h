// The functions of vector_math.h one by one, for the test that holds them to their contracts.
#pragma once

#include <cstdint>

#include "instruction_set.h"

namespace irm {

// Writes f(x) or f(x, y) for n arguments; `function` counts the contracts of vector_math.h in their order.
IRM_DECLARE(void, check_vector_math, (int64_t function, const float* x, const float* y, float* out, int64_t n))

}  // namespace irm
