// A parallel counting sort. It is our own because it sorts by buckets and digits of any size in linear time, and can
// run on the pool's threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/isa.h"
#include "common/parallel.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {

// Splits [0, n) into runs that are each worth a thread, and calls run(begin, end, index) for consecutive pieces of
// each.
template <typename Run>
void for_each_run(int64_t n, int num_threads, const Run& run) {
  constexpr int64_t kWorthAThread = 1 << 16;  // a busy machine may make threads wait for each other
  const int64_t runs = std::max<int64_t>(1, std::min<int64_t>(num_threads, n / kWorthAThread));
  parallel_for(runs, num_threads, [&](int64_t r, int) {
    for_each_piece(r * n / runs, (r + 1) * n / runs, [&](int64_t begin, int64_t end) { run(begin, end, r); });
  });
}

// Calls move(i, place) for every i in [0, n), where `place` is the position of i in a stable sort by key(i) < num_keys.
// The calls may come in any order. Afterwards, ends[v] is one past the place of the last item with key v.
template <typename Key, typename Move>
void counting_sort(int64_t n, uint32_t num_keys, int num_threads, std::vector<uint32_t>& ends, const Key& key,
                   const Move& move) {
  const size_t row = num_keys;
  ends.assign(row * static_cast<size_t>(std::max(num_threads, 1)), 0u);
  for_each_run(n, num_threads, [&](int64_t begin, int64_t end, int64_t run) {
    uint32_t* counts = ends.data() + run * static_cast<int64_t>(row);
    for (int64_t i = begin; i < end; ++i) ++counts[key(i)];
  });
  uint32_t before = 0;
  for (size_t v = 0; v < row; ++v) {
    for (size_t at = v; at < ends.size(); at += row) {
      const uint32_t here = ends[at];
      ends[at] = before;
      before += here;
    }
  }
  for_each_run(n, num_threads, [&](int64_t begin, int64_t end, int64_t run) {
    uint32_t* places = ends.data() + run * static_cast<int64_t>(row);
    for (int64_t i = begin; i < end; ++i) move(i, places[key(i)]++);
  });
  // The last run's counters have advanced to the ends of all keys. Rows of unused runs hold the same ends.
  std::copy(ends.end() - static_cast<int64_t>(row), ends.end(), ends.begin());
}

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
