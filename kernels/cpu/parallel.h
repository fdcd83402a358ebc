// Threads for the kernels: those that PyTorch already has.
#pragma once

#include <cstdint>

namespace irm {

// Runs share(context) on up to n_threads threads at once, the caller among them, and returns when all are done.
// How many come is not promised: share takes work from a common counter until none is left.
void run_parallel(void (*share)(void*), void* context, int64_t n_threads);

}  // namespace irm
