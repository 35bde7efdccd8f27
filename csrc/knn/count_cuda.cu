// Counts of neighbors within radii on CUDA: bisection of sorted values for one column, traversal of the tree for
// several.
#include <type_traits>

#include "knn/tree_cuda.h"

namespace echo_ext {
namespace {

// "Strictly nearer than the radius" is the same as "at most as far as the preceding floating-point number", so kernels
// need only one comparison.
template <typename T>
__device__ __forceinline__ T inclusive_radius(bool inclusive, T radius) {
  return inclusive ? radius : std::nextafter(radius, -static_cast<T>(INFINITY));
}

// The number of points that must not be counted but lie within the radius: the point itself and those that
// exclude_within excludes.
template <typename T>
__device__ __forceinline__ int64_t count_excluded(const KnnCount& p, int64_t item, int64_t row, const T* radii) {
  const T* points = static_cast<const T*>(p.points) + item * p.num_points * p.dim;
  const auto time_of = [&](int64_t i) { return p.rows == nullptr ? i : p.rows[i]; };
  const auto counted = [&](int64_t other) {
    T distance = 0;
    for (int c = 0; c < p.dim; ++c) {
      const T difference = points[other * p.dim + c] - points[row * p.dim + c];
      distance = extend_distance(p.metric, distance, difference);
      if (p.num_groups > 1) {
        if (!(distance <= inclusive_radius(p.inclusive, radii[p.groups[c] * p.num_points + row]))) return false;
        distance = 0;
      }
    }
    return p.num_groups > 1 || distance <= inclusive_radius(p.inclusive, radii[row]);
  };
  int64_t excluded = counted(row);
  for (int64_t other = row - 1; other >= 0 && time_of(row) - time_of(other) <= p.exclude_within; --other)
    excluded += counted(other);
  for (int64_t other = row + 1; other < p.num_points && time_of(other) - time_of(row) <= p.exclude_within; ++other)
    excluded += counted(other);
  return excluded;
}

// ---- One column: the tiles hold the sorted values ------------------------------------------------------------------

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
  const T value = values[own], radius = inclusive_radius(p.inclusive, radii[row]);
  const auto inside = [&](int64_t place) { return extend_distance(p.metric, T(0), values[place] - value) <= radius; };
  int64_t first = own, low = 0;  // the places inside are [first, end)
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
  // A point that is outside its own ball has no neighbors.
  const int64_t count = inside(own) ? end - first : 0;
  p.counts[job * p.num_points + row] = count - count_excluded(p, item, row, radii);
}

// ---- Several columns -----------------------------------------------------------------------------------------------

// The radius of each column, which is that of its group.
template <typename T, int kColumns>
struct GroupRadii {
  T values[kColumns];

  __device__ __forceinline__ GroupRadii(const KnnCount& p, const T* radii) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
      values[c] = c < p.dim ? inclusive_radius(p.inclusive, radii[p.groups[c] * p.num_points]) : T(0);
  }
  __device__ __forceinline__ T operator[](int c) const { return values[c]; }
};
template <typename T>
struct GroupRadii<T, 0> {
  const KnnCount& p;
  const T* radii;

  __device__ __forceinline__ GroupRadii(const KnnCount& p_, const T* radii_) : p(p_), radii(radii_) {}
  __device__ __forceinline__ T operator[](int c) const {
    return inclusive_radius(p.inclusive, radii[p.groups[c] * p.num_points]);
  }
};
template <typename T>
struct OneRadius : SameForAll<T> {
  __device__ __forceinline__ OneRadius(const KnnCount& p, const T* radii)
      : SameForAll<T>{inclusive_radius(p.inclusive, *radii)} {}
};

template <typename T, Metric M, int kColumns, bool kGrouped>
struct CountVisitor {
  static constexpr int kPointsAtOnce = 4;  // points whose distances are independent work
  using Radii = std::conditional_t<kGrouped, GroupRadii<T, kColumns>, OneRadius<T>>;

  const ItemView<T>& points;
  ColumnValues<T, kColumns> query;  // this lane's, as are the radii
  Radii radii;
  const T* query_box;  // the box of the warp's queries
  T largest_radius;
  bool active;
  StagedTile<T, kColumns> staged;
  int count = 0;

  __device__ __forceinline__ unsigned candidates(int level, int first) const {
    const int node = first + static_cast<int>(threadIdx.x) % kWarp;
    bool may = node < points.tree.nodes_at(level);
    if (may) {
      const T* box = points.box(level, node);
      T distance = 0;
      for (int c = 0; c < points.dim; ++c)
        distance = extend_distance<M>(
            distance, nearest_gap(query_box[c], query_box[points.dim + c], box[c], box[points.dim + c]));
      may = distance <= largest_radius;
    }
    return __ballot_sync(kFullWarp, may);
  }

  // If every ball either contains the whole node or misses it, adds its number of points for those that contain it and
  // returns false.
  __device__ __forceinline__ bool should_descend(int level, int node) {
    const T* box = points.box(level, node);
    bool reaches = active, contains = active;
    T near = 0, far = 0;
    for_each_column<kColumns>(points.dim, [&](int c) {
      const T q = query[c];
      near = extend_distance<M>(kGrouped ? T(0) : near, nearest_gap(q, q, box[c], box[points.dim + c]));
      far = extend_distance<M>(kGrouped ? T(0) : far, farthest_gap(q, q, box[c], box[points.dim + c]));
      if (kGrouped) {
        reaches &= near <= radii[c];
        contains &= far <= radii[c];
      }
    });
    if (!kGrouped) {
      reaches &= near <= radii[0];
      contains &= far <= radii[0];
    }
    if (__any_sync(kFullWarp, reaches && !contains)) return true;
    if (contains) count += points.points_under(level, node);
    return false;
  }

  __device__ __forceinline__ void scan(int tile) {
    const T* coordinates = staged.stage(points, tile);
    const int size = points.points_under(0, tile);
    for (int first = 0; first < size; first += kPointsAtOnce) {
      const unsigned near = find_near<M, true, kPointsAtOnce>(points.dim, coordinates + first, query, radii);
      const int there = size - first;
      if (active) count += __popc(near & (there < kPointsAtOnce ? (1u << there) - 1 : ~0u));
    }
  }
};

template <typename T, Metric M, int kColumns, bool kGrouped>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock, kColumns == 16 ? 5 : 1)
    count_kernel(const __grid_constant__ KnnCount p, const __grid_constant__ TreeView<T> all) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  if (warp >= p.num_radii * p.batch * all.num_tiles) return;
  const int64_t job = warp / all.num_tiles, item = job % p.batch;
  const int tile = static_cast<int>(warp % all.num_tiles), lane = static_cast<int>(threadIdx.x) % kWarp;
  const ItemView<T> view(all, item);
  const int32_t row = view.order[tile * kWarp + lane];
  const T* radii = static_cast<const T*>(p.radii) + job * p.num_groups * p.num_points;
  T largest = 0;
  for (int g = 0; g < p.num_groups; ++g)
    largest = maximum(largest, inclusive_radius(p.inclusive, radii[g * p.num_points + row]));
  CountVisitor<T, M, kColumns, kGrouped> visitor{view,
                                                 {view.tile(tile) + lane, p.dim},
                                                 {p, radii + row},
                                                 view.box(0, tile),
                                                 warp_max(largest),
                                                 tile * kWarp + lane < all.num_points,
                                                 StagedTile<T, kColumns>(p.dim)};
  traverse(visitor, all.num_levels - 1, 0);
  if (visitor.active) p.counts[job * p.num_points + row] = visitor.count - count_excluded(p, item, row, radii);
}

template <typename T, Metric M, int kColumns, bool kGrouped>
cudaError_t launch_count(const KnnCount& p, const TreeView<T>& view, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(ceil_div(p.num_radii * p.batch * view.num_tiles, kWarpsPerBlock));
  return launch(count_kernel<T, M, kColumns, kGrouped>, dim3(blocks), kWarp * kWarpsPerBlock,
                StagedTile<T, kColumns>::bytes_of_block(p.dim), stream, p, view);
}

template <typename T, Metric M>
cudaError_t launch_count_in_balls(const KnnCount& p, const TreeView<T>& view, cudaStream_t stream) {
  if (p.dim <= 4) return launch_count<T, M, 4, false>(p, view, stream);
  if (p.dim <= 16) return launch_count<T, M, 16, false>(p, view, stream);
  return launch_count<T, M, 0, false>(p, view, stream);
}

// With a Chebyshev distance for each group.
template <typename T>
cudaError_t launch_count_in_boxes(const KnnCount& p, const TreeView<T>& view, cudaStream_t stream) {
  if (p.dim <= 8) return launch_count<T, Metric::chebyshev, 8, true>(p, view, stream);
  return launch_count<T, Metric::chebyshev, 0, true>(p, view, stream);
}

}  // namespace

template <typename T>
const char* knn_cuda_count(const KnnCount& p, const KnnTree& points, int device, void* stream_) {
  if (p.num_radii * p.batch * p.num_points == 0) return nullptr;
  const DeviceGuard guard(device);
  ECHO_EXT_CUDA_CHECK(guard.status());
  const auto stream = static_cast<cudaStream_t>(stream_);
  const TreeView<T> view = view_of<T>(points);
  if (p.dim == 1) {
    const auto blocks = static_cast<unsigned>(ceil_div(p.num_radii * p.batch * p.num_points, kThreads));
    ECHO_EXT_CUDA_CHECK(launch(line_kernel<T>, dim3(blocks), kThreads, 0, stream, p, view));
  } else if (p.num_groups > 1) {
    ECHO_EXT_CUDA_CHECK(launch_count_in_boxes<T>(p, view, stream));
  } else {
    ECHO_EXT_CUDA_CHECK(
        with_metric(p.metric, [&](auto metric) { return launch_count_in_balls<T, metric()>(p, view, stream); }));
  }
  return nullptr;
}

template const char* knn_cuda_count<float>(const KnnCount&, const KnnTree&, int, void*);
template const char* knn_cuda_count<double>(const KnnCount&, const KnnTree&, int, void*);

}  // namespace echo_ext
