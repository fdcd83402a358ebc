// One copy of the functions of vector_math.h, in the order of its contracts.
#include "vector_math_check.h"

#include "vector_math.h"

namespace irm {
namespace IRM_ISA {
namespace {

float call(int64_t function, float x, float y) {
  switch (function) {
    case 0: return exp_nonpositive(x).value;
    case 1: return exp_nonpositive(x).minus1;
    case 2: return log1p_small(x);
    case 3: return minus_log(x, y);
    case 4: return minus_abs(x);
    case 5: return exp_sigmoid(x).plus;
    case 6: return exp_sigmoid(x).minus;
    case 7: return sigmoid_softplus(x).softplus;
    case 8: return sigmoid_softplus(x).softplus_minus;
    default: {
      const ExpSigmoid a = exp_sigmoid(x), b = exp_sigmoid(y);
      return sigmoid_difference(a.plus, a.minus, b.plus, b.minus, y - x);
    }
  }
}

}  // namespace

void check_vector_math(int64_t function, const float* x, const float* y, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = call(function, x[i], y[i]);
}

}  // namespace IRM_ISA
}  // namespace irm
