#include "common/huge_pages.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace echo_ext {

void prefer_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kMinBytes = uintptr_t{1} << 22;
  if (memory == nullptr || static_cast<uintptr_t>(bytes) < kMinBytes) return;
  const auto first = reinterpret_cast<uintptr_t>(memory), page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (first + page - 1) / page * page, end = (first + static_cast<uintptr_t>(bytes)) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice only: a refusal changes nothing
#endif
}

}  // namespace echo_ext
