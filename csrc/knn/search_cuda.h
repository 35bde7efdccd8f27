// Searches in the tree on CUDA: the nearest neighbors, and the neighbors nearest to the boundary of a ball. Each
// precision is compiled in its own file, because the many kernels take long to compile.
#pragma once

#include "knn/nearest_cuda.h"
#include "knn/tree_cuda.h"

namespace echo_ext {
namespace {

// Which neighbors are searched: the nearest of all, the nearest of those outside the radius, or the farthest of those
// inside.
enum class Side { all, outside, inside };

struct SearchJob {
  int k;
  int64_t exclude_within;  // -1: exclude nothing
  const int64_t* rows;
  const int64_t* start;
  const void* radii;    // only with a side: (batch, num_queries)
  const int64_t* skip;  // only with a side: (batch, num_queries)
};

// Keys are distances, or negative distances for Side::inside.
template <typename T, Metric M, int kColumns, int kSlots, bool kIndices, Side kSide>
struct SearchVisitor {
  // Points whose distances are independent work. Fewer if the list of neighbors leaves few registers.
  static constexpr int kPointsAtOnce = kIndices && kSlots * sizeof(T) > 128 ? 2 : 4;

  const SearchJob& job;
  const ItemView<T>& points;
  ColumnValues<T, kColumns> query;  // this lane's
  const T* query_box;               // the box of the warp's queries
  StagedTile<T, kColumns> staged;
  bool active;
  int32_t own;  // this lane's row
  T radius = 0;
  int32_t skip = -1;
  Nearest<T, kSlots, kIndices> nearest;

  __device__ __forceinline__ SearchVisitor(const SearchJob& job_, const ItemView<T>& points_,
                                           const ItemView<T>& queries, int tile, int lane)
      : job(job_),
        points(points_),
        query(queries.tile(tile) + lane, queries.dim),
        query_box(queries.box(0, tile)),
        staged(queries.dim),
        active(tile * kWarp + lane < queries.tree.num_points),
        own(queries.order[tile * kWarp + lane]),
        nearest(job_.k) {}

  __device__ __forceinline__ T bound() const { return active ? nearest.bound() : -static_cast<T>(INFINITY); }

  __device__ __forceinline__ int64_t time_of(int32_t row) const { return job.rows == nullptr ? row : job.rows[row]; }

  __device__ __forceinline__ unsigned candidates(int level, int first) const {
    const T worst = warp_max(bound());
    const int node = first + static_cast<int>(threadIdx.x) % kWarp;
    bool may = node < points.tree.nodes_at(level);
    if (may) {
      const T* box = points.box(level, node);
      T distance = 0;
      for (int c = 0; c < points.dim; ++c) {
        const T low = query_box[c], high = query_box[points.dim + c];
        const T gap = kSide == Side::inside ? farthest_gap(low, high, box[c], box[points.dim + c])
                                            : nearest_gap(low, high, box[c], box[points.dim + c]);
        distance = extend_distance<M>(distance, gap);
      }
      may = (kSide == Side::inside ? -distance : distance) <= worst;
    }
    return __ballot_sync(kFullWarp, may);
  }

  __device__ __forceinline__ bool should_descend(int level, int node) const {
    const T* box = points.box(level, node);
    T near = 0, far = 0;
    for_each_column<kColumns>(points.dim, [&](int c) {
      const T q = query[c];
      near = extend_distance<M>(near, nearest_gap(q, q, box[c], box[points.dim + c]));
      if (kSide != Side::all) far = extend_distance<M>(far, farthest_gap(q, q, box[c], box[points.dim + c]));
    });
    const T key = kSide == Side::inside ? -far : near;
    bool may = key < bound();
    // A point at the distance of the k-th neighbor replaces it if its row is lower.
    if (kIndices) may |= key == bound() && *points.lowest_of(level, node) < nearest.bound_row();
    if (kSide == Side::inside) may &= near < radius;
    if (kSide == Side::outside) may &= !(far < radius);
    return __any_sync(kFullWarp, may && active);
  }

  __device__ __forceinline__ void scan(int tile) {
    const T* coordinates = staged.stage(points, tile);
    const int size = points.points_under(0, tile);
    for (int first = 0; first < size; first += kPointsAtOnce) {
      const SameForAll<T> reach{kSide == Side::inside && active ? radius : bound()};
      unsigned near = find_near<M, kIndices, kPointsAtOnce>(points.dim, coordinates + first, query, reach);
      for (; near != 0; near &= near - 1) {
        const int place = first + __ffs(static_cast<int>(near)) - 1;
        if (place < size)
          consider(distance_to<M>(points.dim, coordinates + place, query), points.order[tile * kWarp + place]);
      }
    }
  }

  __device__ __forceinline__ void consider(T distance, int32_t row) {
    if ((kSide == Side::inside && !(distance < radius)) || (kSide == Side::outside && distance < radius)) return;
    const T key = kSide == Side::inside ? -distance : distance;
    if (!(key < nearest.bound() || (kIndices && key == nearest.bound() && row < nearest.bound_row()))) return;
    if (job.exclude_within >= 0) {
      const int64_t apart = time_of(row) - time_of(own);
      if ((apart < 0 ? -apart : apart) <= job.exclude_within) return;
    }
    if (kSide != Side::all && row == skip) return;
    nearest.insert(key, row);
  }

  // Searches the nearest tile first and then outward: near points come first and tighten the bound.
  __device__ __forceinline__ void run(int start) {
    bool at_start = true;
    for (int level = 0; at_start || level + 1 < points.tree.num_levels;) {
      const int first = start / kWarp * kWarp;
      const unsigned own = 1u << (start - first);
      unsigned pending = at_start ? own : candidates(level, first) & ~own;
      for (; pending != 0; pending &= pending - 1) traverse(*this, level, first + __ffs(static_cast<int>(pending)) - 1);
      if (!at_start) {
        ++level;
        start /= kWarp;
      }
      at_start = false;
    }
  }
};

// The destination of the results: the r-th result of query i is at i * stride + r.
struct SearchResults {
  void* keys;        // may be null
  int64_t* indices;  // may be null
  int64_t stride;
  int64_t none;  // the index to store if there is no such neighbor
};

// The number of resident blocks per multiprocessor that registers allow without spilling on any architecture.
constexpr int resident_searches(Metric metric, int columns, int slots, bool indices) {
  if (columns == 0 || slots > 4) return 1;
  if (columns <= 4) return indices ? 5 : 6;
  return indices || !is_largest_of_columns(metric) ? 4 : 5;
}

template <typename T, Metric M, int kColumns, int kSlots, bool kIndices, Side kSide>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock, resident_searches(M, kColumns, kSlots, kIndices))
    search_kernel(const __grid_constant__ SearchJob job, const __grid_constant__ TreeView<T> all_points,
                  const __grid_constant__ TreeView<T> all_queries, int64_t batch, SearchResults out) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  if (warp >= batch * all_queries.num_tiles) return;
  const int64_t item = warp / all_queries.num_tiles;
  const int tile = static_cast<int>(warp % all_queries.num_tiles);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const ItemView<T> points(all_points, item), queries(all_queries, item);
  SearchVisitor<T, M, kColumns, kSlots, kIndices, kSide> visitor(job, points, queries, tile, lane);
  const int64_t query = item * all_queries.num_points + visitor.own;
  if (kSide != Side::all) {
    visitor.radius = static_cast<const T*>(job.radii)[query];
    visitor.skip = static_cast<int32_t>(job.skip[query]);
  }
  visitor.run(job.start == nullptr ? tile : static_cast<int>(job.start[warp]));
  if (!visitor.active) return;
  visitor.nearest.for_each([&](int r, T key, int32_t found) {
    if (out.keys != nullptr) static_cast<T*>(out.keys)[query * out.stride + r] = key;
    if (kIndices && out.indices != nullptr)
      out.indices[query * out.stride + r] = found == kNoRow ? out.none : static_cast<int64_t>(found);
  });
}

// ---- Launches ------------------------------------------------------------------------------------------------------

template <typename T, Metric M, int kColumns, int kSlots, bool kIndices, Side kSide = Side::all>
cudaError_t launch_search(const SearchJob& job, const KnnTree& points, const KnnTree& queries, const SearchResults& out,
                          cudaStream_t stream) {
  const TreeView<T> queries_view = view_of<T>(queries);
  const int warps = kSlots == 0 ? 1 : kWarpsPerBlock;
  const auto blocks = static_cast<unsigned>(ceil_div(queries.batch * queries_view.num_tiles, warps));
  const size_t shared_bytes =
      kSlots == 0 ? static_cast<size_t>(nearest_bytes(job.k)) : StagedTile<T, kColumns>::bytes_of_block(points.dim);
  return launch(search_kernel<T, M, kColumns, kSlots, kIndices, kSide>, dim3(blocks), warps * kWarp, shared_bytes,
                stream, job, view_of<T>(points), queries_view, queries.batch, out);
}

// Estimators mostly ask for few neighbors of points with few columns, so these cases have their own kernels.
template <typename T, Metric M, bool kIndices>
cudaError_t launch_nearest(const SearchJob& job, const KnnTree& points, const KnnTree& queries,
                           const SearchResults& out, cudaStream_t stream) {
  const int k = job.k, dim = points.dim;
  if (k <= 4 && dim <= 4) return launch_search<T, M, 4, 4, kIndices>(job, points, queries, out, stream);
  if (k <= 4 && dim <= 16) return launch_search<T, M, 16, 4, kIndices>(job, points, queries, out, stream);
  if (k <= 8 && dim <= 16) return launch_search<T, M, 16, 8, kIndices>(job, points, queries, out, stream);
  if (k <= 8) return launch_search<T, M, 0, 8, kIndices>(job, points, queries, out, stream);
  if (k <= 16) return launch_search<T, M, 0, 16, kIndices>(job, points, queries, out, stream);
  if (k <= 32) return launch_search<T, M, 0, 32, kIndices>(job, points, queries, out, stream);
  return launch_search<T, M, 0, 0, true>(job, points, queries, out, stream);
}

}  // namespace

template <typename T>
const char* knn_cuda_search(const KnnSearch& p, const KnnTree& points, const KnnTree& queries, const int64_t* start,
                            int device, void* stream_) {
  if (p.batch * p.num_queries == 0 || p.k == 0) return nullptr;
  const DeviceGuard guard(device);
  ECHO_EXT_CUDA_CHECK(guard.status());
  const auto stream = static_cast<cudaStream_t>(stream_);
  const bool among_themselves = p.queries == nullptr;
  const SearchJob job{
      p.k, among_themselves ? p.exclude_within : -1, p.rows, among_themselves ? nullptr : start, nullptr, nullptr};
  const SearchResults out{p.distances, p.indices, p.k, kNoRow};
  ECHO_EXT_CUDA_CHECK(with_metric(p.metric, [&](auto metric) {
    return p.indices != nullptr ? launch_nearest<T, metric(), true>(job, points, queries, out, stream)
                                : launch_nearest<T, metric(), false>(job, points, queries, out, stream);
  }));
  return nullptr;
}

template <typename T>
const char* knn_cuda_boundary(const KnnBoundary& p, const KnnTree& points, int device, void* stream_) {
  if (p.batch * p.num_points == 0) return nullptr;
  const DeviceGuard guard(device);
  ECHO_EXT_CUDA_CHECK(guard.status());
  const auto stream = static_cast<cudaStream_t>(stream_);
  SearchJob job{p.width, p.exclude_within, p.rows, nullptr, p.radii, p.skip};
  SearchResults out{nullptr, p.indices, 2 * p.width + 1, -1};
  ECHO_EXT_CUDA_CHECK(
      (launch_search<T, Metric::chebyshev, 0, 0, true, Side::inside>(job, points, points, out, stream)));
  job.k = p.width + 1;
  out.indices += p.width;
  ECHO_EXT_CUDA_CHECK(
      (launch_search<T, Metric::chebyshev, 0, 0, true, Side::outside>(job, points, points, out, stream)));
  return nullptr;
}

#define ECHO_EXT_INSTANTIATE_SEARCH(T)                                                                           \
  template const char* knn_cuda_search<T>(const KnnSearch&, const KnnTree&, const KnnTree&, const int64_t*, int, \
                                          void*);                                                                \
  template const char* knn_cuda_boundary<T>(const KnnBoundary&, const KnnTree&, int, void*);

}  // namespace echo_ext
