// Threads for the kernels: those that PyTorch already has.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace irm {

// Runs share(context) on up to n_threads threads at once, the caller among them, and returns when all are done.
// How many come is not promised: share takes work from a common counter until none is left.
void run_parallel(void (*share)(void*), void* context, int64_t n_threads);

// Calls work(block) for every block, on several threads. They take the next block until none is left, so that it does
// not matter how many of them come.
template <typename Work>
void for_blocks(int64_t n_blocks, int64_t n_threads, Work work) {
  struct Shared {
    Work& work;
    int64_t n_blocks;
    std::atomic<int64_t> next{0};
  } shared{work, n_blocks};
  const auto share = [](void* context) {
    Shared& s = *static_cast<Shared*>(context);
    for (int64_t b = s.next++; b < s.n_blocks; b = s.next++) s.work(b);
  };
  run_parallel(share, &shared, std::min(n_blocks, n_threads));
}

}  // namespace irm
