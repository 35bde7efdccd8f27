// The neighbours nearest to the boundary of a ball, on either side of it.
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "batch.h"
#include "knn.h"
#include "sorted_column.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {
namespace {

constexpr int64_t kPointsPerTask = 256;

// On a line the ball is an interval of places; walk from its two ends, the nearer neighbour first.
template <typename T>
void boundary_on_line(const KnnBoundary& p, const T* points, const T* radii, const int64_t* skip, int64_t* indices,
                      int num_threads) {
  const SortedColumn<T> column(points, p.num_points, num_threads);
  const int64_t n = p.num_points;
  const T* values = column.values();
  const int32_t* order = column.order();
  parallel_for((n + kPointsPerTask - 1) / kPointsPerTask, num_threads, [&](int64_t task, int) {
    for (int64_t own = task * kPointsPerTask; own < std::min(n, (task + 1) * kPointsPerTask); ++own) {
      const int64_t row = order[own];
      const auto distance = [&](int64_t place) {
        return extend_distance<Metric::chebyshev>(T(0), values[place] - values[own]);
      };
      const auto usable = [&](int64_t place) {
        const int64_t apart = order[place] < row ? row - order[place] : order[place] - row;
        return apart > p.exclude_within && order[place] != skip[row];
      };
      const auto inside = [&](int64_t place) { return distance(place) < radii[row]; };
      const int64_t below =
          std::partition_point(order, order + own, [&](const int32_t& at) { return !inside(&at - order); }) - order;
      const int64_t above =
          std::partition_point(order + own, order + n, [&](const int32_t& at) { return inside(&at - order); }) - order;

      int64_t* out = indices + row * (2 * p.width + 1);
      int64_t* const out_end = out + 2 * p.width + 1;
      // Inwards: the farther of the two ends first.
      for (int64_t left = below, right = above - 1, taken = 0; taken < p.width && left <= right;) {
        const int64_t place = distance(left) >= distance(right) ? left++ : right--;
        if (!usable(place)) continue;
        *out++ = order[place];
        ++taken;
      }
      // Outwards: the nearer first.
      for (int64_t left = below - 1, right = above, taken = 0; taken <= p.width && (left >= 0 || right < n);) {
        const bool go_left = right == n || (left >= 0 && distance(left) <= distance(right));
        const int64_t place = go_left ? left-- : right++;
        if (!usable(place)) continue;
        *out++ = order[place];
        ++taken;
      }
      std::fill(out, out_end, int64_t{-1});
    }
  });
}

template <typename T>
void boundary_by_all_pairs(const KnnBoundary& p, const T* points, const T* radii, const int64_t* skip, int64_t* indices,
                           int num_threads) {
  const int64_t n = p.num_points;
  parallel_for((n + kPointsPerTask - 1) / kPointsPerTask, num_threads, [&](int64_t task, int) {
    std::vector<std::pair<T, int64_t>> inside;
    std::vector<std::pair<T, int64_t>> outside;
    for (int64_t i = task * kPointsPerTask; i < std::min(n, (task + 1) * kPointsPerTask); ++i) {
      inside.clear();
      outside.clear();
      for (int64_t j = 0; j < n; ++j) {
        if (std::max(i - j, j - i) <= p.exclude_within || j == skip[i]) continue;
        T distance = 0;
        for (int c = 0; c < p.dim; ++c)
          distance = extend_distance<Metric::chebyshev>(distance, points[j * p.dim + c] - points[i * p.dim + c]);
        if (distance < radii[i])
          inside.emplace_back(-distance, j);
        else
          outside.emplace_back(distance, j);
      }
      int64_t* out = indices + i * (2 * p.width + 1);
      int64_t* const out_end = out + 2 * p.width + 1;
      const auto take_first = [&out](std::vector<std::pair<T, int64_t>>& candidates, int wanted) {
        const auto end =
            candidates.begin() + std::min<std::ptrdiff_t>(wanted, static_cast<std::ptrdiff_t>(candidates.size()));
        if (end != candidates.end()) std::nth_element(candidates.begin(), end, candidates.end());
        for (auto at = candidates.begin(); at != end; ++at) *out++ = at->second;
      };
      take_first(inside, p.width);
      take_first(outside, p.width + 1);
      std::fill(out, out_end, int64_t{-1});
    }
  });
}

}  // namespace

template <typename T>
void knn_boundary(const KnnBoundary& p) {
  for_each_item(p.batch, p.num_threads, [&](int64_t item, int threads) {
    const int64_t first = item * p.num_points;
    const auto* points = static_cast<const T*>(p.points) + first * p.dim;
    const auto* radii = static_cast<const T*>(p.radii) + first;
    int64_t* indices = p.indices + first * (2 * p.width + 1);
    if (p.dim == 1)
      boundary_on_line<T>(p, points, radii, p.skip + first, indices, threads);
    else
      boundary_by_all_pairs<T>(p, points, radii, p.skip + first, indices, threads);
  });
}

template void knn_boundary<float>(const KnnBoundary& p);
template void knn_boundary<double>(const KnnBoundary& p);

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
