// What the Python side hands over, and the two halves of the CPU kernel.
#pragma once

#include <cstdint>

#include "instruction_set.h"
#include "layout.h"

namespace irm {

enum LogitType : int64_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

struct LogitsView {
  const void* data;
  int64_t type;                       // LogitType
  int64_t row_stride, signal_stride;  // in elements
};

// Small integers (feedback, labels) of `width` bytes; unsigned bytes are told apart because 255 is not -1.
struct CodesView {
  const void* data;
  int64_t width, is_unsigned;
  int64_t row_stride, signal_stride;
};

enum Status : int { kInvalidFeedback = 1, kInvalidPreference = 2, kInvalidWeight = 4, kOutOfMemory = 8 };

// Packed by name in implicit_rm.py: every field has 8 bytes, and stands in IRM_ARGUMENTS_FIELDS.
struct Arguments {
  int64_t n_rows, n_signals;
  LogitsView reward, propensity;              // the logits that are trained
  LogitsView reward_strat, propensity_strat;  // those of a separate stratification model; data null: none
  CodesView feedback, preference;             // preference.data null: no labels
  const float* weight;                        // (N,) or null: all 1
  const float* signals;                       // (4, K): polarity, misclick rate e, -log e, log1p(-e)
  int64_t has_misclick;
  double scale;                               // multiplies loss and gradients: 1, or 1/N for a mean
  float* loss_rows;                           // (N,), or null: the sum is wanted
  float* loss_sum;                            // ()
  float* grad_reward;                         // (N,) or null
  float* grad_propensity;                     // (N, K) or null
  float* groups;                              // (N, K, 4) or null
  int64_t n_threads;
};

#define IRM_ARGUMENTS_FIELDS(X, in) \
  X(in n_rows) X(in n_signals) IRM_LOGITS_FIELDS(X, in reward) IRM_LOGITS_FIELDS(X, in propensity) \
  IRM_LOGITS_FIELDS(X, in reward_strat) IRM_LOGITS_FIELDS(X, in propensity_strat) IRM_CODES_FIELDS(X, in feedback) \
  IRM_CODES_FIELDS(X, in preference) X(in weight) X(in signals) X(in has_misclick) X(in scale) X(in loss_rows) \
  X(in loss_sum) X(in grad_reward) X(in grad_propensity) X(in groups) X(in n_threads)

constexpr int kMaxSignals = 16;
constexpr int64_t kRowsPerBlock = 4096;  // one partial sum a block: the result does not depend on the threads

// Computes one block of rows, adds its losses up in `sum` and returns a Status. implicit_rm_block.cpp is compiled once
// for every instruction set; implicit_rm.cpp picks one at run time and shares the blocks out among threads.
IRM_DECLARE(int, process_block, (const Arguments& args, int64_t block, double& sum))

}  // namespace irm
