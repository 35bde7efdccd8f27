#include "huge_pages.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace echo_ext {

void prefer_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 4096, kLeastBytes = uintptr_t{1} << 22;
  if (memory == nullptr || static_cast<uintptr_t>(bytes) < kLeastBytes) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: refused, all goes on as before
#endif
}

}  // namespace echo_ext
