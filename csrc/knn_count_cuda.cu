// Counts of neighbours within radii: bisection among sorted values for one column, boxes for several.
#include "knn_tree_cuda.h"

namespace echo_ext {
namespace {

// What was counted although it is the point itself, or too near in time.
template <typename T>
__device__ __forceinline__ int64_t too_near_in_time(const KnnCount& p, int64_t item, int64_t row, const T* radii) {
  const T* points = static_cast<const T*>(p.points) + item * p.num_points * p.dim;
  const bool euclidean = p.metric == Metric::euclidean;
  const auto number = [&](int64_t i) { return p.rows == nullptr ? i : p.rows[i]; };
  const auto counted = [&](int64_t other) {
    T distance = 0;
    for (int c = 0; c < p.dim; ++c) {
      const T difference = points[other * p.dim + c] - points[row * p.dim + c];
      distance = extend(euclidean, distance, difference);
      if (p.num_groups > 1) {
        if (!is_within(p.inclusive, distance, radii[p.groups[c] * p.num_points + row])) return false;
        distance = 0;
      }
    }
    return p.num_groups > 1 || is_within(p.inclusive, distance, radii[row]);
  };
  int64_t taken_back = counted(row);
  for (int64_t other = row - 1; other >= 0 && number(row) - number(other) <= p.exclude_within; --other)
    taken_back += counted(other);
  for (int64_t other = row + 1; other < p.num_points && number(other) - number(row) <= p.exclude_within; ++other)
    taken_back += counted(other);
  return taken_back;
}

// ---- One column: the values lie sorted, tile after tile
// ----------------------------------------------------------------

constexpr int kThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    line_kernel(const __grid_constant__ KnnCount p, const __grid_constant__ TreeView<T> all) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.num_radii * p.batch * p.num_points) return;
  const int64_t job = i / p.num_points, own = i % p.num_points, item = job % p.batch;
  const ItemView<T> view(all, item);
  const T* values = view.tiles;
  const T* radii = static_cast<const T*>(p.radii) + job * p.num_points;
  const int64_t row = view.order[own];
  const T value = values[own], radius = radii[row];
  const auto inside = [&](int64_t place) {
    return is_within(p.inclusive, extend(p.metric == Metric::euclidean, T(0), values[place] - value), radius);
  };
  int64_t first = own, low = 0;  // of the places inside, [first, end)
  while (low < first) {
    const int64_t middle = (low + first) / 2;
    if (inside(middle))
      first = middle;
    else
      low = middle + 1;
  }
  int64_t end = own + 1, high = p.num_points;
  while (end < high) {
    const int64_t middle = (end + high) / 2;
    if (inside(middle))
      end = middle + 1;
    else
      high = middle;
  }
  // Where a point is outside its own ball, all are.
  const int64_t count = inside(own) ? end - first : 0;
  p.counts[job * p.num_points + row] = count - too_near_in_time(p, item, row, radii);
}

// ---- Several columns
// ---------------------------------------------------------------------------------------------------

template <typename T, bool kGrouped>
struct CountVisitor {
  static constexpr int kTogether = 4;  // points whose distances are independent work

  const KnnCount& p;
  const ItemView<T>& points;
  const T* query;
  const T* query_box;
  const T* radii;  // of this lane, groups num_points apart
  bool active;
  bool euclidean;
  T largest_radius;  // of the warp
  int64_t count = 0;

  __device__ __forceinline__ T radius(int c) const { return radii[kGrouped ? p.groups[c] * p.num_points : 0]; }

  __device__ __forceinline__ unsigned candidates(int level, int64_t first) const {
    const int64_t node = first + threadIdx.x % kWarp;
    bool may = node < points.tree.nodes_at(level);
    if (may) {
      const T* box = points.box(level, node);
      T distance = 0;
      for (int c = 0; c < points.dim; ++c)
        distance = extend(euclidean, distance,
                          nearest_gap(query_box[c], query_box[points.dim + c], box[c], box[points.dim + c]));
      may = is_within(p.inclusive, distance, largest_radius);
    }
    return __ballot_sync(kFullWarp, may);
  }

  // Counts a node whole for the lanes whose balls hold it, if no ball reaches just a part of it.
  __device__ __forceinline__ bool enters(int level, int64_t node) {
    const T* box = points.box(level, node);
    bool reaches = active, holds = active;
    T near = 0, far = 0;
    for (int c = 0; c < points.dim; ++c) {
      const T q = query[c * kWarp];
      const T near_here = nearest_gap(q, q, box[c], box[points.dim + c]);
      const T far_here = farthest_gap(q, q, box[c], box[points.dim + c]);
      if (kGrouped) {
        reaches &= is_within(p.inclusive, near_here, radius(c));
        holds &= is_within(p.inclusive, far_here, radius(c));
      } else {
        near = extend(euclidean, near, near_here);
        far = extend(euclidean, far, far_here);
      }
    }
    if (!kGrouped) {
      reaches &= is_within(p.inclusive, near, radius(0));
      holds &= is_within(p.inclusive, far, radius(0));
    }
    if (__any_sync(kFullWarp, reaches && !holds)) return true;
    if (holds) count += points.points_under(level, node);
    return false;
  }

  __device__ __forceinline__ void scan(int64_t tile) {
    const T* coordinates = points.tile(tile);
    const int64_t size = active ? points.points_under(0, tile) : 0;
    for (int first = 0; first < size; first += kTogether) {
      bool inside[kTogether];
      if (kGrouped) {
#pragma unroll
        for (int e = 0; e < kTogether; ++e) inside[e] = true;
        for (int c = 0; c < points.dim; ++c) {
          const T q = query[c * kWarp], r = radius(c);
#pragma unroll
          for (int e = 0; e < kTogether; ++e) {
            const T difference = coordinates[c * kWarp + first + e] - q;
            inside[e] &= is_within(p.inclusive, extend_distance<Metric::chebyshev>(T(0), difference), r);
          }
        }
      } else {
        T distance[kTogether];
        distances_to(euclidean, points.dim, coordinates + first, query, distance);
#pragma unroll
        for (int e = 0; e < kTogether; ++e) inside[e] = is_within(p.inclusive, distance[e], radius(0));
      }
#pragma unroll
      for (int e = 0; e < kTogether; ++e) count += inside[e] && first + e < size;
    }
  }
};

template <typename T, bool kGrouped>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock, 1)
    count_kernel(const __grid_constant__ KnnCount p, const __grid_constant__ TreeView<T> all) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  if (warp >= p.num_radii * p.batch * all.num_tiles) return;
  const int64_t job = warp / all.num_tiles, tile = warp % all.num_tiles, item = job % p.batch;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const ItemView<T> view(all, item);
  const int64_t row = view.order[tile * kWarp + lane];
  const T* radii = static_cast<const T*>(p.radii) + job * p.num_groups * p.num_points;
  T largest = 0;
  for (int g = 0; g < p.num_groups; ++g) largest = larger(largest, radii[g * p.num_points + row]);
  CountVisitor<T, kGrouped> visitor{p,
                                    view,
                                    view.tile(tile) + lane,
                                    view.box(0, tile),
                                    radii + row,
                                    tile * kWarp + lane < p.num_points,
                                    p.metric == Metric::euclidean,
                                    warp_max(largest)};
  walk(visitor, all.num_levels - 1, 0);
  if (visitor.active) p.counts[job * p.num_points + row] = visitor.count - too_near_in_time(p, item, row, radii);
}

}  // namespace

template <typename T>
const char* knn_cuda_count(const KnnCount& p, const KnnTree& points, int device, void* stream_) {
  if (p.num_radii * p.batch * p.num_points == 0) return nullptr;
  const DeviceGuard guard(device);
  ECHO_EXT_CUDA_CHECK(guard.status());
  const auto stream = static_cast<cudaStream_t>(stream_);
  const TreeView<T> view = view_of<T>(points);
  const int64_t jobs = p.num_radii * p.batch;
  if (p.dim == 1) {
    const auto blocks = static_cast<unsigned>(ceil_div(jobs * p.num_points, kThreads));
    ECHO_EXT_CUDA_CHECK(launch(line_kernel<T>, dim3(blocks), kThreads, 0, stream, p, view));
  } else {
    const auto blocks = static_cast<unsigned>(ceil_div(jobs * view.num_tiles, kWarpsPerBlock));
    const auto kernel = p.num_groups > 1 ? count_kernel<T, true> : count_kernel<T, false>;
    ECHO_EXT_CUDA_CHECK(launch(kernel, dim3(blocks), kWarp * kWarpsPerBlock, 0, stream, p, view));
  }
  return nullptr;
}

template const char* knn_cuda_count<float>(const KnnCount&, const KnnTree&, int, void*);
template const char* knn_cuda_count<double>(const KnnCount&, const KnnTree&, int, void*);

}  // namespace echo_ext
