// What the kernels ask of the machine: its instruction set, and threads.
#include <cstdlib>
#include <cstring>

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

#include "export.h"
#include "instruction_set.h"
#include "parallel.h"
#include "vector_math_check.h"

namespace irm {
namespace {

InstructionSet choose_instruction_set() {
  const char* asked = std::getenv("IRM_FAST_ISA");
  const auto at_most = [asked](const char* name) { return asked && std::strcmp(asked, name) == 0; };
  if (at_most("baseline")) return InstructionSet::baseline;
#if defined(IRM_X86)
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && !at_most("avx2")) return InstructionSet::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    return InstructionSet::avx2;
  }
#endif
  return InstructionSet::baseline;
}

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

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet chosen = choose_instruction_set();
  return chosen;
}

void run_parallel(void (*share)(void*), void* context, int64_t n_threads) {
  static const Parallel openmp = find_openmp();
  if (openmp && n_threads > 1) {
    openmp(share, context, static_cast<unsigned>(n_threads), 0);
  } else {
    share(context);
  }
}

}  // namespace irm

IRM_EXPORT const char* irm_instruction_set() {
  switch (irm::instruction_set()) {
    case irm::InstructionSet::avx512: return "avx512";
    case irm::InstructionSet::avx2: return "avx2";
    default: return "baseline";
  }
}

IRM_EXPORT void irm_check_vector_math(int64_t function, const float* x, const float* y, float* out, int64_t n) {
  using namespace irm;
  IRM_DISPATCH(check_vector_math)(function, x, y, out, n);
}
