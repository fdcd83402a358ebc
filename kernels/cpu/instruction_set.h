// Which of the compiled copies of a kernel this processor runs.
//
// The *_block.cpp files are compiled once for every instruction set, each copy in a namespace of that name. A new
// instruction set is a name in the lists below, a test of the processor in runtime.cpp, and a line in CMakeLists.txt.
#pragma once

#include <initializer_list>

namespace irm {

enum class InstructionSet { baseline, avx2, avx512 };  // in the order of the copies

// The best one of this processor; the environment variable IRM_FAST_ISA (baseline, avx2) may ask for less, for tests.
InstructionSet instruction_set();

template <typename Function>
Function copy_for_this_processor(std::initializer_list<Function> copies) {
  return copies.begin()[static_cast<int>(instruction_set())];
}

}  // namespace irm

// IRM_DECLARE(int, f, (double)): declares every copy of f. IRM_DISPATCH(f): the copy to call.
#if defined(IRM_X86)
#define IRM_DECLARE(result, name, parameters) \
  namespace baseline { result name parameters; } \
  namespace avx2 { result name parameters; } \
  namespace avx512 { result name parameters; }
#define IRM_DISPATCH(name) copy_for_this_processor({baseline::name, avx2::name, avx512::name})
#else
#define IRM_DECLARE(result, name, parameters) \
  namespace baseline { result name parameters; }
#define IRM_DISPATCH(name) copy_for_this_processor({baseline::name})
#endif
