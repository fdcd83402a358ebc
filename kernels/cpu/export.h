// What the Python side calls.
#pragma once

#include <new>

#include "implicit_rm.h"

#if defined(_WIN32)
#define IRM_EXPORT extern "C" __declspec(dllexport)
#else
#define IRM_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace irm {

// An exception must not leave the C interface.
template <typename Run>
int guarded(Run run) {
  try {
    return run();
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  }
}

}  // namespace irm
