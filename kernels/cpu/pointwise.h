// The weighted pointwise loss: what the Python side hands over, and the two halves of the CPU kernel.
#pragma once

#include "implicit_rm.h"

namespace irm {

// Packed by name in pointwise.py: every field has 8 bytes, and stands in IRM_POINTWISE_FIELDS.
struct PointwiseArguments {
  int64_t n_rows;
  LogitsView reward;
  const float* positive_weight;  // (N,), of softplus(-s)
  const float* negative_weight;  // (N,), of softplus(s)
  double scale;                  // multiplies loss and gradient: 1, or 1/N for a mean
  float* loss_rows;              // (N,), or null: the sum is wanted
  float* loss_sum;               // ()
  float* grad_reward;            // (N,) or null
  int64_t n_threads;
};

#define IRM_POINTWISE_FIELDS(X) \
  X(n_rows) IRM_LOGITS_FIELDS(X, reward) X(positive_weight) X(negative_weight) X(scale) X(loss_rows) X(loss_sum) \
  X(grad_reward) X(n_threads)

// Computes one block of kRowsPerBlock rows and adds its losses up in `sum`; see implicit_rm.h.
IRM_DECLARE(void, process_pointwise_block, (const PointwiseArguments& args, int64_t block, double& sum))

}  // namespace irm
