// One column in ascending order. Counting neighbors on a line amounts to finding the two ends of an interval.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "common/isa.h"
#include "knn/counting_sort.h"
#include "knn/select.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {

template <typename T>
class SortedColumn {
 public:
  SortedColumn(const T* values, int64_t size, int num_threads);

  int64_t size() const { return static_cast<int64_t>(order_.size()); }
  const int32_t* order() const { return order_.data(); }  // the row at each place
  // Places -1 to size() may be read. The first and the last hold NaN, which is not within any distance of anything.
  const T* values() const { return values_.data() + 1; }

 private:
  static constexpr int64_t kFew = 1024;

  void sort_few(const T* values, int64_t size) {
    std::vector<LaneInt<T>> rows(static_cast<size_t>(size));
    for (int64_t i = 0; i < size; ++i) rows[i] = static_cast<LaneInt<T>>(i);
    std::copy(values, values + size, values_.begin() + 1);
    PairSort<T>().sort(values_.data() + 1, rows.data(), size);
    std::copy(rows.begin(), rows.end(), order_.begin());
  }

  std::vector<int32_t> order_;
  std::vector<T> values_;
};

// Sorts rows whose values have the same leading bits. Polls, because there may be arbitrarily many of them.
template <typename T>
__attribute__((noinline)) void sort_ties(const T* values, int32_t* begin, int32_t* end) {
  PollCounter polls;
  const auto before = [values, &polls](int32_t a, int32_t b) {
    polls.add(1);
    return values[a] < values[b] || (values[a] == values[b] && a < b);
  };
  // Equal values are already in order, because the sort by the leading bits is stable.
  if (!std::is_sorted(begin, end, before)) std::sort(begin, end, before);
}

// Few values are sorted as pairs with their rows. Many are sorted by radix on the 32 leading bits of an
// order-preserving integer form of the values, then ties by the values themselves, and equal values by row. A typical
// value is subtracted first, so that the leading bits resolve differences relative to the spread of the data and not
// relative to its distance from zero.
template <typename T>
SortedColumn<T>::SortedColumn(const T* values, int64_t size, int num_threads)
    : order_(static_cast<size_t>(size)), values_(static_cast<size_t>(size) + 2) {
  values_.front() = values_.back() = std::numeric_limits<T>::quiet_NaN();
  if (size <= kFew) {
    sort_few(values, size);
    return;
  }
  T sample[15];
  for (int i = 0; i < 15; ++i) sample[i] = values[size * i / 15];
  std::nth_element(sample, sample + 7, sample + 15);
  const T center = sample[7];

  std::vector<uint64_t> items(static_cast<size_t>(size));  // the leading bits and the row
  std::vector<uint64_t> sorted(static_cast<size_t>(size));
  for_each_run(size, num_threads, [&](int64_t begin, int64_t end, int64_t) {
    for (int64_t i = begin; i < end; ++i) {
      // float is precise enough for the first sort, since rounding is monotone. Adding zero makes -0 equal to +0.
      const float value = static_cast<float>(values[i] - center) + 0.0f;
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof(bits));
      bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
      items[i] = static_cast<uint64_t>(bits) << 32 | static_cast<uint64_t>(i);
    }
  });
  constexpr int kDigitBits = 11;
  constexpr uint32_t kDigits = 1u << kDigitBits;
  std::vector<uint32_t> ends;
  for (int shift = 32; shift < 64; shift += kDigitBits) {
    counting_sort(
        size, kDigits, num_threads, ends, [&](int64_t i) { return (items[i] >> shift) % kDigits; },
        [&](int64_t i, uint32_t place) { sorted[place] = items[i]; });
    items.swap(sorted);
  }

  for_each_run(size, num_threads, [&](int64_t begin, int64_t end, int64_t) {
    for (int64_t i = begin; i < end; ++i) order_[i] = static_cast<int32_t>(items[i] & 0xffffffffu);
  });
  int64_t sorted_end = 0;
  for_each_piece(0, size, [&](int64_t, int64_t piece_end) {
    for (int64_t begin = sorted_end; begin < piece_end; begin = sorted_end) {
      sorted_end = begin + 1;
      while (sorted_end < size && items[sorted_end] >> 32 == items[begin] >> 32) ++sorted_end;
      if (sorted_end - begin > 1) sort_ties(values, order_.data() + begin, order_.data() + sorted_end);
    }
  });
  for_each_run(size, num_threads, [&](int64_t begin, int64_t end, int64_t) {
    for (int64_t i = begin; i < end; ++i) values_[i + 1] = values[order_[i]];
  });
}

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
