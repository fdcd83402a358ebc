// The weighted pointwise loss: what the Python side hands over, and the two halves of the CPU kernel.
#pragma once

#include "implicit_rm.h"

namespace irm {

// Mirrored field by field in pointwise.py: every field has 8 bytes.
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

// Computes one block of kRowsPerBlock rows and adds its losses up in `sum`; see implicit_rm.h.
using PointwiseBlockFunction = void (*)(const PointwiseArguments& args, int64_t block, double& sum);
namespace baseline { void process_pointwise_block(const PointwiseArguments&, int64_t, double&); }
namespace avx2 { void process_pointwise_block(const PointwiseArguments&, int64_t, double&); }
namespace avx512 { void process_pointwise_block(const PointwiseArguments&, int64_t, double&); }

}  // namespace irm
