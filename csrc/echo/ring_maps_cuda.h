// Composed maps of consecutive positions of a circle, on levels of increasing size: any part of the circle consists of
// a few maps of each level.
#pragma once

#include "echo/ring_cuda.h"

namespace echo_ext {

// t -> constant + scale * t, from the value after some positions to the window from the first of them.
template <typename T>
struct AffineMap {
  static constexpr int kNumbers = 2;
  T numbers[kNumbers] = {0, 1};  // constant and scale

  __device__ __forceinline__ AffineMap then(const AffineMap& next) const {
    AffineMap both;
    both.numbers[0] = numbers[0] + numbers[1] * next.numbers[0];
    both.numbers[1] = numbers[1] * next.numbers[1];
    return both;
  }
};

// The effect of windows that start at consecutive positions on sums that pass over these positions. Let v be the
// gradients of all windows that have started so far, u the same times the prefixes of these windows, and (sum, weight)
// the prefix of the next window, which each window extends by the term after its end. Then
//     v -> decay * v + grad,           u -> decay * u + grad * sum + both * weight,
//     sum -> sum + weight * tail,      weight -> weight * scale.
template <typename T>
struct PassedWindows {
  T v = 0, u = 0, sum = 0, weight = 1;
};
template <typename T>
struct WindowsMap {
  static constexpr int kNumbers = 5;
  T numbers[kNumbers] = {1, 0, 0, 1, 0};  // decay, grad, tail, scale and both

  __device__ __forceinline__ WindowsMap then(const WindowsMap& next) const {
    const auto& [decay, grad, tail, scale, both] = numbers;
    WindowsMap all;
    all.numbers[0] = decay * next.numbers[0];
    all.numbers[1] = next.numbers[0] * grad + next.numbers[1];
    all.numbers[2] = tail + scale * next.numbers[2];
    all.numbers[3] = scale * next.numbers[3];
    all.numbers[4] = next.numbers[0] * both + tail * next.numbers[1] + scale * next.numbers[4];
    return all;
  }
  __device__ __forceinline__ void pass(PassedWindows<T>& passed) const {
    const auto& [decay, grad, tail, scale, both] = numbers;
    passed.v = decay * passed.v + grad;
    passed.u = decay * passed.u + grad * passed.sum + both * passed.weight;
    passed.sum += passed.weight * tail;
    passed.weight *= scale;
  }
};

// The maps of all circles of a launch. Each number of a map is stored as a row of all columns.
template <typename Map, typename T>
struct MapTable {
  T* numbers;
  int64_t width;

  __device__ __forceinline__ void store(int64_t index, int column, const Map& map) const {
#pragma unroll
    for (int i = 0; i < Map::kNumbers; ++i) numbers[(index * Map::kNumbers + i) * width + column] = map.numbers[i];
  }
  __device__ __forceinline__ Map load(int64_t index, int column) const {
    Map map;
#pragma unroll
    for (int i = 0; i < Map::kNumbers; ++i) map.numbers[i] = numbers[(index * Map::kNumbers + i) * width + column];
    return map;
  }
};

__host__ __device__ __forceinline__ int64_t maps_of_level(const RingLevels& levels, int level, int64_t bank_rows) {
  return (bank_rows + (int64_t{1} << levels.log_size[level]) - 1) >> levels.log_size[level];
}

// Calls visit(level, first, count) for runs of maps that cover `length` positions from `begin` on in order, with maps
// as large as possible.
template <typename Visit>
__device__ __forceinline__ void for_each_run(const RingLevels& levels, int64_t bank_rows, int64_t begin, int64_t length,
                                             const Visit& visit) {
  begin = wrap(begin, bank_rows);
  while (length > 0) {
    const int64_t end = begin + length < bank_rows ? begin + length : bank_rows;
    length -= end - begin;
    while (begin < end) {
      int level = 0;
      const auto fits = [&](int next) {
        const int64_t size = int64_t{1} << levels.log_size[next];
        return (begin & (size - 1)) == 0 && (begin + size <= end || end == bank_rows);
      };
      while (level < levels.count && fits(level + 1)) ++level;
      int64_t stop = end;
      if (level < levels.count) {  // stop where a larger map can be used
        const int64_t larger = ((begin >> levels.log_size[level + 1]) + 1) << levels.log_size[level + 1];
        if (larger < stop) stop = larger;
      }
      const int log_size = levels.log_size[level];
      const int64_t whole = stop == bank_rows ? maps_of_level(levels, level, bank_rows) : stop >> log_size;
      const int64_t first = begin >> log_size;
      visit(level, first, static_cast<int>(whole - first));
      begin = whole << log_size < end ? whole << log_size : end;
    }
    begin = 0;
  }
}

}  // namespace echo_ext
