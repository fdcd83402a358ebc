// Runs the blocks of a batch: instruction set, threads, and the sum of the partial sums in a fixed order.
#include "implicit_rm.h"

#include <algorithm>
#include <atomic>
#include <vector>

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

namespace irm {
namespace {

constexpr int64_t kRowsPerThread = 8192;  // below this, waking a thread costs more than it saves

struct InstructionSet {
  const char* name;
  BlockFunction process_block;
};

InstructionSet best_instruction_set() {
#if defined(IRM_X86)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return {"avx512", avx512::process_block};
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {"avx2", avx2::process_block};
#endif
  return {"baseline", baseline::process_block};
}

const InstructionSet kChosen = best_instruction_set();

// Threads take the next block until none is left, so that it does not matter how many of them come.
struct Work {
  const Arguments& args;
  std::vector<double> sums;  // one a block
  std::atomic<int64_t> next{0};
  std::atomic<int> status{0};

  void share() {
    const int64_t n_blocks = sums.size();
    for (int64_t b = next++; b < n_blocks; b = next++) status |= kChosen.process_block(args, b, sums[b]);
  }
};

// PyTorch has an OpenMP runtime loaded, with its threads waiting. A second pool would fight them for the cores, so that
// one is looked up in the process and used; without it the calling thread does the work alone.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

Parallel find_openmp() {
#if defined(_WIN32)
  return nullptr;
#else
  return reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
#endif
}

const Parallel kParallel = find_openmp();

void run_share(void* work) { static_cast<Work*>(work)->share(); }

int run(const Arguments& args) {
  const int64_t n_blocks = (args.n_rows + kRowsPerBlock - 1) / kRowsPerBlock;
  const int64_t n_threads = std::min(args.n_threads, args.n_rows / kRowsPerThread);
  Work work{args, std::vector<double>(n_blocks)};
  if (kParallel && n_threads > 1) {
    kParallel(run_share, &work, static_cast<unsigned>(n_threads), 0);
  } else {
    work.share();
  }
  double total = 0.0;
  for (double partial : work.sums) total += partial;
  if (args.loss_sum) *args.loss_sum = total;
  return work.status;
}

}  // namespace
}  // namespace irm

#if defined(_WIN32)
#define IRM_EXPORT extern "C" __declspec(dllexport)
#else
#define IRM_EXPORT extern "C" __attribute__((visibility("default")))
#endif

IRM_EXPORT int irm_implicit_rm(const irm::Arguments* args) { return irm::run(*args); }
IRM_EXPORT int64_t irm_arguments_size() { return sizeof(irm::Arguments); }
IRM_EXPORT const char* irm_instruction_set() { return irm::kChosen.name; }
