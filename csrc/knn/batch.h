// Distribution of a batch of independent problems over threads.
#pragma once

#include <cstdint>

#include "common/parallel.h"

namespace echo_ext {

// Calls solve(item, num_threads) for each item. If there are at least as many items as threads, each item gets one
// thread. Otherwise the items are solved one after another, each with all threads.
template <typename Solve>
void for_each_item(int64_t num_items, int num_threads, const Solve& solve) {
  if (num_items >= num_threads) {
    parallel_for(num_items, num_threads, [&](int64_t item, int) { solve(item, num_items == 1 ? num_threads : 1); });
  } else {
    for (int64_t item = 0; item < num_items; ++item) solve(item, num_threads);
  }
}

}  // namespace echo_ext
