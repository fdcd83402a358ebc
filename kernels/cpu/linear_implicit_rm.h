// Heads and loss in one read of the hidden states: what the Python side hands over, and the two halves of the kernel.
#pragma once

#include "implicit_rm.h"

namespace irm {

constexpr int kMaxHeads = kMaxSignals + 1;

// Mirrored field by field in linear_implicit_rm.py.
struct LinearArguments {
  Arguments loss;            // its reward is unused, and its propensity where a head computes it; gradients null
  LogitsView hidden;         // (N, H), columns side by side
  const float* heads;        // (M, H): the reward head, then K propensity heads or none
  const float* bias;         // (M,)
  int64_t n_heads, width;    // M, H
  float* grad_logits;        // (N, K+1) or null
  float* grad_heads;         // (M, H) or null
};

// (grad_logits[:, :M] * upstream) @ heads, for the hidden states.
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

struct RowRange {
  int64_t first, last;
};

// Computes the rows of a range. The sum of their losses goes to `sum`, their part of the weight gradient to
// `grad_heads` (M, H) where that is not null. Returns a Status.
using LinearRowsFunction = int (*)(const LinearArguments& args, RowRange rows, float* grad_heads, double& sum);
using HiddenGradFunction = void (*)(const HiddenGradArguments& args, RowRange rows);

// linear_implicit_rm_block.cpp and linear_hidden_grad_block.cpp are compiled once for every instruction set.
namespace baseline {
int process_linear_rows(const LinearArguments&, RowRange, float*, double&);
void write_hidden_grad(const HiddenGradArguments&, RowRange);
}  // namespace baseline
namespace avx2 {
int process_linear_rows(const LinearArguments&, RowRange, float*, double&);
void write_hidden_grad(const HiddenGradArguments&, RowRange);
}  // namespace avx2
namespace avx512 {
int process_linear_rows(const LinearArguments&, RowRange, float*, double&);
void write_hidden_grad(const HiddenGradArguments&, RowRange);
}  // namespace avx512

}  // namespace irm
