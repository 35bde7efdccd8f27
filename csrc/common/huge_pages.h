// Huge pages for large results whose rows are written in random order: they save page faults and page table walks.
#pragma once

#include <cstdint>

namespace echo_ext {

// Asks the operating system to back a large, not yet written buffer with huge pages, as NumPy does for its arrays. Does
// nothing for small buffers and where huge pages are not available.
void prefer_huge_pages(void* memory, int64_t bytes);

}  // namespace echo_ext
