// Runs the blocks of a batch: instruction set, threads, and the sum of the partial sums in a fixed order.
#include "implicit_rm.h"

#include <algorithm>
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

struct Work {
  const Arguments& args;
  std::vector<double> sums;
  std::vector<int> status;  // one a thread

  void share(int64_t thread) {
    const int64_t n_blocks = sums.size(), n_threads = status.size();
    for (int64_t b = n_blocks * thread / n_threads; b < n_blocks * (thread + 1) / n_threads; ++b) {
      status[thread] |= kChosen.process_block(args, b, sums[b]);
    }
  }
};

// PyTorch has an OpenMP runtime loaded, with its threads waiting. A second pool would fight them for the cores, so that
// one is looked up in the process and used; without it the calling thread does the work alone.
struct OpenMP {
  using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
  using ThreadNumber = int (*)();
  Parallel parallel = nullptr;
  ThreadNumber thread_number = nullptr;

  OpenMP() {
#if !defined(_WIN32)
    parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    thread_number = reinterpret_cast<ThreadNumber>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));
#endif
  }
  bool available() const { return parallel && thread_number; }
};

const OpenMP kOpenMP;

void run_share(void* work) { static_cast<Work*>(work)->share(kOpenMP.thread_number()); }

int run(const Arguments& args) {
  const int64_t n_blocks = (args.n_rows + kRowsPerBlock - 1) / kRowsPerBlock;
  const int64_t wanted = kOpenMP.available() ? std::min(args.n_threads, args.n_rows / kRowsPerThread) : 1;
  const int64_t n_threads = std::max<int64_t>(1, wanted);
  Work work{args, std::vector<double>(n_blocks), std::vector<int>(n_threads, 0)};
  if (n_threads == 1) {
    work.share(0);
  } else {
    kOpenMP.parallel(run_share, &work, static_cast<unsigned>(n_threads), 0);
  }
  double total = 0.0;
  for (double partial : work.sums) total += partial;
  if (args.loss_sum) *args.loss_sum = total;
  int status = 0;
  for (int s : work.status) status |= s;
  return status;
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
