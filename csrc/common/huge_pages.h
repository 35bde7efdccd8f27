// Fewer page faults and page walks for results that are written row by row in random order.
#pragma once

#include <cstdint>

namespace echo_ext {

// Asks the system for huge pages under a large result that has not been written to; NumPy does so for its arrays. Where
// there are none (not Linux, switched off) and for small results it does nothing.
void prefer_huge_pages(void* memory, int64_t bytes);

}  // namespace echo_ext
