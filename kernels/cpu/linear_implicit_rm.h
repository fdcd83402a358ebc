// Heads and loss in one read of the hidden states: what the Python side hands over, and the two halves of the kernel.
#pragma once

#include "implicit_rm.h"

namespace irm {

constexpr int kMaxHeads = kMaxSignals + 1;

// Packed by name in linear_implicit_rm.py; every field stands in IRM_LINEAR_FIELDS.
struct LinearArguments {
  Arguments loss;            // its reward is unused, and its propensity where a head computes it; gradients null
  LogitsView hidden;         // (N, H), columns side by side
  const float* heads;        // (M, H): the reward head, then K propensity heads or none
  const float* bias;         // (M,)
  int64_t n_heads, width;    // M, H
  float* grad_logits;        // (N, K+1) or null
  float* grad_heads;         // (M, H) or null
};

#define IRM_LINEAR_FIELDS(X) \
  IRM_ARGUMENTS_FIELDS(X, loss.) IRM_LOGITS_FIELDS(X, hidden) X(heads) X(bias) X(n_heads) X(width) X(grad_logits) \
  X(grad_heads)

// (grad_logits[:, :M] * upstream) @ heads, for the hidden states; every field stands in IRM_HIDDEN_GRAD_FIELDS.
struct HiddenGradArguments {
  int64_t n_rows, n_heads, width;
  const float* grad_logits;  // (N, .), rows `grad_stride` apart
  int64_t grad_stride;
  const float* upstream;     // (), or (N,)
  int64_t upstream_stride;   // 0 for ()
  const float* heads;        // (M, H)
  void* hidden_grad;         // (N, H)
  int64_t type;              // LogitType of hidden_grad
  int64_t n_threads;
};

#define IRM_HIDDEN_GRAD_FIELDS(X) \
  X(n_rows) X(n_heads) X(width) X(grad_logits) X(grad_stride) X(upstream) X(upstream_stride) X(heads) X(hidden_grad) \
  X(type) X(n_threads)

struct RowRange {
  int64_t first, last;
};

// Computes the rows of a range. The sum of their losses goes to `sum`, their part of the weight gradient to
// `grad_heads` (M, H) where that is not null. Returns a Status.
IRM_DECLARE(int, process_linear_rows, (const LinearArguments& args, RowRange rows, float* grad_heads, double& sum))
IRM_DECLARE(void, write_hidden_grad, (const HiddenGradArguments& args, RowRange rows))

}  // namespace irm
