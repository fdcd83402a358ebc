// Memory that the system hands out afresh costs a page fault for every 4 KB written. Asked for in pages of 2 MB, the
// same memory is written several times faster where transparent huge pages are left to the program's choice.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace irm {

// To be called before the first write. Small memory is left alone, and so are the ends that fill no huge page.
inline void advise_huge_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 2 << 20;
  if (!data || bytes < 2 * kPage) return;
  const uintptr_t start = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (start + kPage - 1) / kPage * kPage, last = (start + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // advice: a refusal costs speed only
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace irm
