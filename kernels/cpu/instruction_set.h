// Which of the compiled copies of a kernel this processor runs.
#pragma once

namespace irm {

enum class InstructionSet { kBaseline, kAvx2, kAvx512 };

// The best one of this processor; the environment variable IRM_FAST_ISA (baseline, avx2) may ask for less, for tests.
InstructionSet instruction_set();

}  // namespace irm
