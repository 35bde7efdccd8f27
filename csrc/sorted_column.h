// One column in ascending order: counting neighbours on a line is finding the two ends of an interval.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "isa.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {

template <typename T>
class SortedColumn {
 public:
  SortedColumn(const T* values, int64_t size);

  int64_t size() const { return static_cast<int64_t>(order_.size()); }
  const int32_t* order() const { return order_.data(); }  // the row of each place
  // Places from -1 to size() may be read: the two ends hold no number, which is within no distance of anything.
  const T* values() const { return values_.data() + 1; }

 private:
  std::vector<int32_t> order_;
  std::vector<T> values_;
};

// Sorts by radix on the 32 leading bits of an order-preserving integer form of the values, then what those leave equal
// by the values themselves. Values are first taken relative to a typical one, so that the leading bits tell apart what
// is close together relative to the spread of the data, not to its distance from zero.
template <typename T>
SortedColumn<T>::SortedColumn(const T* values, int64_t size) {
  const auto n = static_cast<size_t>(size);
  T probes[15];
  for (int i = 0; i < 15; ++i) probes[i] = values[size * i / 15];
  std::nth_element(probes, probes + 7, probes + 15);
  const T centre = probes[7];

  constexpr int kDigitBits = 11;
  constexpr uint32_t kDigits = 1u << kDigitBits;
  std::vector<uint64_t> items(n);
  std::vector<uint64_t> sorted(n);
  std::vector<uint32_t> starts(3 * kDigits, 0u);
  for (size_t i = 0; i < n; ++i) {
    // Float is enough for a first sorting: rounding is monotone.
    const float value = static_cast<float>(values[i] - centre);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    items[i] = static_cast<uint64_t>(bits) << 32 | i;
    ++starts[bits % kDigits];
    ++starts[kDigits + (bits >> kDigitBits) % kDigits];
    ++starts[2 * kDigits + (bits >> (2 * kDigitBits))];
  }
  for (int pass = 0; pass < 3; ++pass) {
    uint32_t* start = starts.data() + pass * kDigits;
    uint32_t before = 0;
    for (uint32_t digit = 0; digit < kDigits; ++digit) {
      const uint32_t here = start[digit];
      start[digit] = before;
      before += here;
    }
    const int shift = 32 + pass * kDigitBits;
    for (size_t i = 0; i < n; ++i) sorted[start[(items[i] >> shift) % kDigits]++] = items[i];
    items.swap(sorted);
  }

  order_.resize(n);
  values_.resize(n + 2);
  values_.front() = values_.back() = std::numeric_limits<T>::quiet_NaN();
  for (size_t i = 0; i < n; ++i) order_[i] = static_cast<int32_t>(items[i] & 0xffffffffu);
  for (size_t begin = 0; begin < n;) {
    size_t end = begin + 1;
    while (end < n && items[end] >> 32 == items[begin] >> 32) ++end;
    if (end - begin > 1)
      std::sort(order_.begin() + static_cast<std::ptrdiff_t>(begin), order_.begin() + static_cast<std::ptrdiff_t>(end),
                [values](int32_t a, int32_t b) { return values[a] < values[b] || (values[a] == values[b] && a < b); });
    begin = end;
  }
  for (size_t i = 0; i < n; ++i) values_[i + 1] = values[order_[i]];
}

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
