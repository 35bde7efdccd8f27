// Selection and sorting of candidates by their distance. Passes over vectors take the place of the comparisons of a
// list, of which every other one would be mispredicted.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "common/simd.h"
#include "knn/simd_distance.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {

// The lanes where a comparison holds, as one bit each.
template <typename T>
inline uint32_t lane_bits(Mask<T> mask) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 8)
    return _mm512_movepi64_mask((__m512i)mask);
  else
    return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 8)
    return static_cast<uint32_t>(_mm256_movemask_pd((__m256d)mask));
  else
    return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
#elif defined(__SSE2__)
  if constexpr (sizeof(T) == 8)
    return static_cast<uint32_t>(_mm_movemask_pd((__m128d)mask));
  else
    return static_cast<uint32_t>(_mm_movemask_ps((__m128)mask));
#else
  uint32_t bits = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) bits |= static_cast<uint32_t>(mask[lane] & 1) << lane;
  return bits;
#endif
}

inline int count_bits(uint32_t bits) { return __builtin_popcount(bits); }

template <typename T>
constexpr uint32_t kAllLanes = (uint32_t{1} << kLanes<T>)-1;

// Stores the selected lanes one after another. All lanes of `to` may be overwritten. Lanes are values or integers.
template <typename T, typename Lane, typename V>
inline void store_selected(Lane* to, V v, uint32_t bits) {
  static_assert(sizeof(Lane) == sizeof(T) && sizeof(V) == kVectorBytes, "one lane for each value");
#if defined(__AVX512F__)
  // To compress into a register and store it is faster than to compress into memory.
  if constexpr (sizeof(T) == 8)
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi64(static_cast<__mmask8>(bits), (__m512i)v));
  else
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), (__m512i)v));
#else
  int num = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    to[num] = v[lane];
    num += static_cast<int>(bits >> lane & 1);
  }
#endif
}

inline int64_t rounded_up(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }

// Adds one to the lanes of `counts` where a < b.
template <typename T>
inline Mask<T> count_where_less(Mask<T> counts, Vector<T> a, Vector<T> b) {
#if defined(__AVX512F__)
  const Mask<T> one = Mask<T>{} + 1;
  if constexpr (sizeof(T) == 8)
    return (Mask<T>)_mm512_mask_add_epi64((__m512i)counts, _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_LT_OQ),
                                          (__m512i)counts, (__m512i)one);
  else
    return (Mask<T>)_mm512_mask_add_epi32((__m512i)counts, _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ),
                                          (__m512i)counts, (__m512i)one);
#else
  return counts - (a < b);
#endif
}

template <typename T, int kParts>
inline void count_smaller_than(const T* own, const T* values, int64_t n, LaneInt<T>* smaller) {
  Vector<T> each[kParts];
  Mask<T> counts[kParts] = {};
  for (int part = 0; part < kParts; ++part) each[part] = load(own + part * kLanes<T>);
  for (int64_t j = 0; j < n; ++j) {
    const Vector<T> other = broadcast(values[j]);
    for (int part = 0; part < kParts; ++part) counts[part] = count_where_less<T>(counts[part], other, each[part]);
  }
  for (int part = 0; part < kParts; ++part)
    std::memcpy(smaller + part * kLanes<T>, &counts[part], sizeof(counts[part]));
}

// Sets smaller[i] to the number of values below values[i]. Both arrays have a size that is a multiple of the lanes.
template <typename T>
void count_smaller(const T* values, int64_t n, LaneInt<T>* smaller) {
  int64_t i = 0;
  for (; i + 4 * kLanes<T> <= n; i += 4 * kLanes<T>) count_smaller_than<T, 4>(values + i, values, n, smaller + i);
  for (; i < n; i += kLanes<T>) count_smaller_than<T, 1>(values + i, values, n, smaller + i);
}

// Finds order statistics. One instance serves one thread.
template <typename T>
class Selection {
 public:
  // The value of the given rank, counted from 0, among n values.
  T value_at(const T* values, int64_t n, int64_t rank) {
    for (std::vector<T>& kept : kept_)
      if (kept.size() < static_cast<size_t>(n + kLanes<T>)) kept.resize(static_cast<size_t>(n + kLanes<T>));
    for (int turn = 0; n > kFew; turn ^= 1) {
      T low, high;
      bracket(values, n, rank, low, high);
      int64_t below = 0;
      const int64_t inside = keep_between(values, n, low, high, kept_[turn].data(), below);
      if (rank < below || rank >= below + inside || (inside == n && low != high))
        return by_comparisons(values, n, rank, kept_[turn]);
      if (low == high) return low;
      rank -= below;
      n = inside;
      values = kept_[turn].data();
    }
    load_few(values, n, 1);
    return among_few(n, rank);
  }

 private:
  static constexpr int kFew = 32;
  static constexpr int kSample = 32;

  // Two of the values, between which the one of the given rank almost certainly lies.
  void bracket(const T* values, int64_t n, int64_t rank, T& low, T& high) {
    constexpr int kMargin = 6;
    load_few(values, kSample, n / kSample);
    const int64_t middle = (2 * rank + 1) * kSample / (2 * n);
    low = middle < kMargin ? -std::numeric_limits<T>::infinity() : among_few(kSample, middle - kMargin);
    high = middle + kMargin >= kSample ? std::numeric_limits<T>::infinity() : among_few(kSample, middle + kMargin);
  }

  static int64_t keep_between(const T* values, int64_t n, T low, T high, T* kept, int64_t& below) {
    const Vector<T> lows = broadcast(low);
    const Vector<T> highs = broadcast(high);
    int64_t inside = 0;
    const auto take = [&](Vector<T> v, uint32_t valid) {
      below += count_bits(lane_bits<T>(v < lows) & valid);
      const uint32_t bits = lane_bits<T>((v >= lows) & (v <= highs)) & valid;
      store_selected<T>(kept + inside, v, bits);
      inside += count_bits(bits);
    };
    int64_t i = 0;
    for (; i + kLanes<T> <= n; i += kLanes<T>) take(load(values + i), kAllLanes<T>);
    if (i < n) {
      T rest[kLanes<T>] = {};
      std::copy(values + i, values + n, rest);
      take(load(rest), (uint32_t{1} << (n - i)) - 1);
    }
    return inside;
  }

  void load_few(const T* values, int64_t n, int64_t step) {
    const int64_t padded = rounded_up(n, kLanes<T>);
    for (int64_t i = 0; i < n; ++i) few_[i] = values[i * step];
    for (int64_t i = n; i < padded; ++i) few_[i] = std::numeric_limits<T>::infinity();
    count_smaller(few_, padded, smaller_);
  }

  // The largest value that at most `rank` values are below; those that pad the last vector are infinite.
  T among_few(int64_t n, int64_t rank) const {
    const Vector<T> lowest = broadcast(-std::numeric_limits<T>::infinity());
    const Mask<T> most = Mask<T>{} + static_cast<LaneInt<T>>(rank);
    Vector<T> found = lowest;
    for (int64_t i = 0; i < n; i += kLanes<T>) {
      const Mask<T> is_low = load_ints<T>(smaller_ + i) <= most;
      found = maximum(found, is_low ? load(few_ + i) : lowest);
    }
    T largest = found[0];
    for (int lane = 1; lane < kLanes<T>; ++lane) largest = std::max(largest, found[lane]);
    return largest;
  }

  static T by_comparisons(const T* values, int64_t n, int64_t rank, std::vector<T>& copy) {
    std::copy(values, values + n, copy.begin());
    std::nth_element(copy.begin(), copy.begin() + rank, copy.begin() + n);
    return copy[static_cast<size_t>(rank)];
  }

  std::vector<T> kept_[2];
  alignas(kVectorBytes) T few_[kFew];
  alignas(kVectorBytes) LaneInt<T> smaller_[kFew];
};

// Sorts values, and rows along with them: by value, then by row. One instance serves one thread.
template <typename T>
class PairSort {
 public:
  using Row = LaneInt<T>;

  void sort(T* values, Row* rows, int64_t n) {
    values_.resize(static_cast<size_t>(n + kLanes<T>));
    rows_.resize(static_cast<size_t>(n + kLanes<T>));
    sort_range(values, rows, n);
  }

 private:
  static constexpr int kFew = 128;

  void sort_range(T* values, Row* rows, int64_t n) {
    while (n > kFew) {
      const T pivot = selection_.value_at(values, n, n / 2);
      int64_t below = 0;
      int64_t others = 0;
      for (int64_t i = 0; i < n; ++i) {
        const T value = values[i];
        const Row row = rows[i];
        const bool is_below = value < pivot;
        values[below] = value;
        rows[below] = row;
        values_[static_cast<size_t>(others)] = value;
        rows_[static_cast<size_t>(others)] = row;
        below += is_below;
        others += !is_below;
      }
      std::copy(values_.begin(), values_.begin() + others, values + below);
      std::copy(rows_.begin(), rows_.begin() + others, rows + below);
      if (below == 0) return by_comparisons(values, rows, n);
      sort_range(values, rows, below);
      values += below;
      rows += below;
      n = others;
    }
    sort_few(values, rows, n);
  }

  // The place of a value is the number of values below it, unless some are equal.
  void sort_few(T* values, Row* rows, int64_t n) {
    alignas(kVectorBytes) T few[kFew];
    alignas(kVectorBytes) Row own[kFew];
    alignas(kVectorBytes) Row smaller[kFew];
    const int64_t padded = rounded_up(n, kLanes<T>);
    std::copy(values, values + n, few);
    std::fill(few + n, few + padded, std::numeric_limits<T>::infinity());
    std::copy(rows, rows + n, own);
    count_smaller(few, padded, smaller);
    int64_t sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += smaller[i];
    if (2 * sum != n * (n - 1)) return by_comparisons(values, rows, n);
    for (int64_t i = 0; i < n; ++i) {
      values[smaller[i]] = few[i];
      rows[smaller[i]] = own[i];
    }
  }

  void by_comparisons(T* values, Row* rows, int64_t n) {
    pairs_.resize(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) pairs_[static_cast<size_t>(i)] = {values[i], rows[i]};
    std::sort(pairs_.begin(), pairs_.end());
    for (int64_t i = 0; i < n; ++i) {
      values[i] = pairs_[static_cast<size_t>(i)].first;
      rows[i] = pairs_[static_cast<size_t>(i)].second;
    }
  }

  Selection<T> selection_;
  std::vector<T> values_;
  std::vector<Row> rows_;
  std::vector<std::pair<T, Row>> pairs_;
};

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
