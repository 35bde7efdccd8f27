// The spatial order, the tree, and searches in it: nearest neighbours, and neighbours nearest to a ball's boundary.
#include "knn_tree_cuda.h"

namespace echo_ext {
namespace {

// ---- Keys
// --------------------------------------------------------------------------------------------------------------

constexpr int kThreads = 256;
constexpr int kKeyBits = 62;
constexpr int kMaxBits = 20;  // of one column
constexpr int kMaxKeyColumns = 31;

template <typename T>
__global__ void __launch_bounds__(kThreads, 1) keys_kernel(KnnKeys p) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.batch * p.num_points) return;
  const T* point = static_cast<const T*>(p.points) + i * p.dim;
  const T* sample = static_cast<const T*>(p.sample) + i / p.num_points * p.dim * p.sample_size;
  const int columns = p.dim < kMaxKeyColumns ? p.dim : kMaxKeyColumns;
  const int bits = kKeyBits / columns < kMaxBits ? kKeyBits / columns : kMaxBits;
  uint64_t key = 0;
  for (int c = 0; c < columns; ++c, sample += p.sample_size) {
    int64_t low = 0, high = p.sample_size;  // the first of the sample beyond the value
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (sample[middle] <= point[c])
        low = middle + 1;
      else
        high = middle;
    }
    float place = static_cast<float>(low);
    if (low > 0 && low < p.sample_size)
      place += static_cast<float>((point[c] - sample[low - 1]) / (sample[low] - sample[low - 1]));
    const float cells = static_cast<float>(1 << bits);
    const float cell = place * (cells / static_cast<float>(p.sample_size + 2));
    const uint64_t coordinate = cell >= 0 && cell < cells ? static_cast<uint64_t>(cell) : 0;
    for (int b = 0; b < bits; ++b) key |= (coordinate >> b & 1) << (b * columns + c);
  }
  p.keys[i] = static_cast<int64_t>(key);
}

// ---- The tree
// ----------------------------------------------------------------------------------------------------------

template <typename T>
__device__ __forceinline__ void store_box(T* box, int dim, int column, T low, T high) {
  low = -warp_max(-low);
  high = warp_max(high);
  if (threadIdx.x % kWarp == 0) {
    box[column] = low;
    box[dim + column] = high;
  }
}

__device__ __forceinline__ void store_lowest(int32_t* lowest, int32_t row) {
  row = -warp_max(-row);
  if (threadIdx.x % kWarp == 0) *lowest = row;
}

// A warp for each tile. Places past the end repeat the tile's first point; readers pass over them.
template <typename T>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock, 1)
    tiles_kernel(KnnTree tree, const __grid_constant__ TreeView<T> all) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  if (warp >= tree.batch * all.num_tiles) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t item = warp / all.num_tiles, tile = warp % all.num_tiles;
  const ItemView<T> view(all, item);
  const int64_t place = tile * kWarp + lane < all.num_points ? tile * kWarp + lane : tile * kWarp;
  const int64_t row = tree.order[item * all.num_points + place];
  const T* point = static_cast<const T*>(tree.points) + (item * all.num_points + row) * view.dim;
  T* coordinates = view.tiles + tile * view.dim * kWarp + lane;
  T* box = view.boxes + tile * 2 * view.dim;
  for (int c = 0; c < view.dim; ++c) {
    coordinates[c * kWarp] = point[c];
    store_box(box, view.dim, c, point[c], point[c]);
  }
  view.order[tile * kWarp + lane] = static_cast<int32_t>(row);
  store_lowest(view.lowest + tile, static_cast<int32_t>(row));
}

// A warp for each node of a level above the tiles.
template <typename T>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock, 1)
    level_kernel(const __grid_constant__ TreeView<T> all, int64_t batch, int level) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  const int64_t nodes = all.nodes_at(level);
  if (warp >= batch * nodes) return;
  const ItemView<T> view(all, warp / nodes);
  const int64_t node = warp % nodes, lane = threadIdx.x % kWarp;
  const int64_t child = node * kWarp + lane < all.nodes_at(level - 1) ? node * kWarp + lane : node * kWarp;
  const T* from = view.box(level - 1, child);
  T* box = view.box(level, node);
  for (int c = 0; c < view.dim; ++c) store_box(box, view.dim, c, from[c], from[view.dim + c]);
  store_lowest(view.lowest_of(level, node), *view.lowest_of(level - 1, child));
}

// ---- The nearest so far
// ------------------------------------------------------------------------------------------------

constexpr int32_t kNoRow = 0x7fffffff;

// In registers. The k-th is kept in the last slot, behind slots that nothing displaces, so that its place is known.
template <typename T, int kSlots, bool kIndices>
struct Nearest {
  T key[kSlots];
  int32_t row[kIndices ? kSlots : 1];
  int unused;

  __device__ __forceinline__ explicit Nearest(int k) : unused(kSlots - k) {
    row[0] = 0;
#pragma unroll
    for (int r = 0; r < kSlots; ++r) {
      key[r] = r < unused ? -static_cast<T>(INFINITY) : static_cast<T>(INFINITY);
      if constexpr (kIndices) row[r] = r < unused ? -1 : kNoRow;
    }
  }
  __device__ __forceinline__ T bound() const { return key[kSlots - 1]; }
  __device__ __forceinline__ int32_t bound_row() const { return kIndices ? row[kIndices ? kSlots - 1 : 0] : -1; }
  __device__ __forceinline__ void insert(T new_key, int32_t new_row) {
#pragma unroll
    for (int r = 0; r < kSlots; ++r) {
      const T kept = key[r];
      if constexpr (kIndices) {
        const int32_t kept_row = row[r];
        const bool first = new_key < kept || (new_key == kept && new_row < kept_row);
        key[r] = first ? new_key : kept;
        row[r] = first ? new_row : kept_row;
        new_key = first ? kept : new_key;
        new_row = first ? kept_row : new_row;
      } else {
        key[r] = kept < new_key ? kept : new_key;
        new_key = kept < new_key ? new_key : kept;
      }
    }
  }
  template <typename Write>
  __device__ __forceinline__ void for_each(const Write& write) const {
#pragma unroll
    for (int r = 0; r < kSlots; ++r)
      if (r >= unused) write(r - unused, key[r], row[kIndices ? r : 0]);
  }
};

// In shared memory, for any k that fits: a warp to a block.
template <typename T>
struct Nearest<T, 0, true> {
  T* key;
  int32_t* row;
  int k;

  __device__ __forceinline__ explicit Nearest(int k_) : k(k_) {
    key = reinterpret_cast<T*>(dynamic_shared_memory) + threadIdx.x;
    row = reinterpret_cast<int32_t*>(reinterpret_cast<T*>(dynamic_shared_memory) + k * kWarp) + threadIdx.x;
    for (int r = 0; r < k; ++r) {
      key[r * kWarp] = static_cast<T>(INFINITY);
      row[r * kWarp] = kNoRow;
    }
  }
  __device__ __forceinline__ T bound() const { return key[(k - 1) * kWarp]; }
  __device__ __forceinline__ int32_t bound_row() const { return row[(k - 1) * kWarp]; }
  __device__ __forceinline__ void insert(T new_key, int32_t new_row) {
    int r = k - 1;
    for (; r > 0; --r) {
      const T before = key[(r - 1) * kWarp];
      const int32_t row_before = row[(r - 1) * kWarp];
      if (before < new_key || (before == new_key && row_before < new_row)) break;
      key[r * kWarp] = before;
      row[r * kWarp] = row_before;
    }
    key[r * kWarp] = new_key;
    row[r * kWarp] = new_row;
  }
  template <typename Write>
  __device__ __forceinline__ void for_each(const Write& write) const {
    for (int r = 0; r < k; ++r) write(r, key[r * kWarp], row[r * kWarp]);
  }
};

// ---- Search
// ------------------------------------------------------------------------------------------------------------

// Which points are sought: the nearest of all, of those at least a radius away, or the farthest within the radius.
enum class Side { all, outside, inside };

struct SearchJob {
  int k;
  bool euclidean;
  int64_t exclude_within;  // -1: exclude none
  const int64_t* rows;
  const int64_t* start;
  const void* radii;    // with a side: (batch, num_queries)
  const int64_t* skip;  // with a side: (batch, num_queries)
};

// Keys are distances, or for the inside their negatives.
template <typename T, int kSlots, bool kIndices, Side kSide>
struct SearchVisitor {
  // Points whose distances are independent work; fewer where the list leaves few registers.
  static constexpr int kTogether = kIndices && kSlots * sizeof(T) > 128 ? 2 : 4;

  const SearchJob& job;
  const ItemView<T>& points;
  const T* query;      // of this lane, columns kWarp apart
  const T* query_box;  // of the warp
  bool active;
  int64_t own_number = 0;
  T radius = 0;
  int64_t skip = -1;
  Nearest<T, kSlots, kIndices> nearest;

  __device__ __forceinline__ SearchVisitor(const SearchJob& job_, const ItemView<T>& points_)
      : job(job_), points(points_), nearest(job_.k) {}

  __device__ __forceinline__ T bound() const { return active ? nearest.bound() : -static_cast<T>(INFINITY); }

  __device__ __forceinline__ int64_t number(int64_t row) const { return job.rows == nullptr ? row : job.rows[row]; }

  __device__ __forceinline__ unsigned candidates(int level, int64_t first) const {
    const T worst = warp_max(bound());
    const int64_t node = first + threadIdx.x % kWarp;
    bool may = node < points.tree.nodes_at(level);
    if (may) {
      const T* box = points.box(level, node);
      T distance = 0;
      for (int c = 0; c < points.dim; ++c) {
        const T low = query_box[c], high = query_box[points.dim + c];
        const T gap = kSide == Side::inside ? farthest_gap(low, high, box[c], box[points.dim + c])
                                            : nearest_gap(low, high, box[c], box[points.dim + c]);
        distance = extend(job.euclidean, distance, gap);
      }
      may = (kSide == Side::inside ? -distance : distance) <= worst;
    }
    return __ballot_sync(kFullWarp, may);
  }

  __device__ __forceinline__ bool enters(int level, int64_t node) const {
    const T* box = points.box(level, node);
    T near = 0, far = 0;
    for (int c = 0; c < points.dim; ++c) {
      const T q = query[c * kWarp];
      near = extend(job.euclidean, near, nearest_gap(q, q, box[c], box[points.dim + c]));
      if (kSide != Side::all) far = extend(job.euclidean, far, farthest_gap(q, q, box[c], box[points.dim + c]));
    }
    const T key = kSide == Side::inside ? -far : near;
    bool may = key < bound();
    // A point as far as the k-th replaces it if its row is lower.
    if (kIndices) may |= key == bound() && *points.lowest_of(level, node) < nearest.bound_row();
    if (kSide == Side::inside) may &= near < radius;
    if (kSide == Side::outside) may &= !(far < radius);
    return __any_sync(kFullWarp, may && active);
  }

  __device__ __forceinline__ void scan(int64_t tile) {
    const T* coordinates = points.tile(tile);
    const int32_t* order = points.order + tile * kWarp;
    const int64_t size = points.points_under(0, tile);
    for (int first = 0; first < size; first += kTogether) {
      T distance[kTogether];
      distances_to(job.euclidean, points.dim, coordinates + first, query, distance);
#pragma unroll
      for (int e = 0; e < kTogether; ++e) {
        if (first + e >= size) break;
        consider(distance[e], order[first + e]);
      }
    }
  }

  __device__ __forceinline__ void consider(T distance, int32_t row) {
    if (!active || (kSide == Side::inside && !(distance < radius)) || (kSide == Side::outside && distance < radius))
      return;
    const T key = kSide == Side::inside ? -distance : distance;
    if (!(key < nearest.bound() || (kIndices && key == nearest.bound() && row < nearest.bound_row()))) return;
    if (job.exclude_within >= 0) {
      const int64_t apart = number(row) - own_number;
      if ((apart < 0 ? -apart : apart) <= job.exclude_within) return;
    }
    if (kSide != Side::all && row == skip) return;
    nearest.insert(key, row);
  }

  // From the nearest tile outwards: what is near in the tree comes first and shrinks the bound.
  __device__ __forceinline__ void run(int64_t start) {
    bool at_start = true;
    for (int level = 0; at_start || level + 1 < points.tree.num_levels;) {
      const int64_t first = start / kWarp * kWarp;
      const unsigned own = 1u << (start - first);
      unsigned pending = at_start ? own : candidates(level, first) & ~own;
      for (; pending != 0; pending &= pending - 1) walk(*this, level, first + __ffs(static_cast<int>(pending)) - 1);
      if (!at_start) {
        ++level;
        start /= kWarp;
      }
      at_start = false;
    }
  }
};

// Where results go: query i's r-th at i * stride + r.
struct SearchResults {
  void* keys;        // may be null
  int64_t* indices;  // may be null
  int64_t stride;
  int64_t none;  // the index where there is no such neighbour
};

template <typename T, int kSlots, bool kIndices, Side kSide>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock, 1)
    search_kernel(const __grid_constant__ SearchJob job, const __grid_constant__ TreeView<T> all_points,
                  const __grid_constant__ TreeView<T> all_queries, int64_t batch, SearchResults out) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  if (warp >= batch * all_queries.num_tiles) return;
  const int64_t item = warp / all_queries.num_tiles, tile = warp % all_queries.num_tiles;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const ItemView<T> points(all_points, item), queries(all_queries, item);
  SearchVisitor<T, kSlots, kIndices, kSide> visitor(job, points);
  visitor.query = queries.tile(tile) + lane;
  visitor.query_box = queries.box(0, tile);
  visitor.active = tile * kWarp + lane < all_queries.num_points;
  const int32_t row = queries.order[tile * kWarp + lane];
  const int64_t query = item * all_queries.num_points + row;
  if (job.exclude_within >= 0) visitor.own_number = visitor.number(row);
  if (kSide != Side::all) {
    visitor.radius = static_cast<const T*>(job.radii)[query];
    visitor.skip = job.skip[query];
  }
  visitor.run(job.start == nullptr ? tile : job.start[warp]);
  if (!visitor.active) return;
  visitor.nearest.for_each([&](int r, T key, int32_t found) {
    if (out.keys != nullptr) static_cast<T*>(out.keys)[query * out.stride + r] = key;
    if (kIndices && out.indices != nullptr)
      out.indices[query * out.stride + r] = found == kNoRow ? out.none : static_cast<int64_t>(found);
  });
}

// ---- Launches
// ----------------------------------------------------------------------------------------------------------

dim3 blocks_of(int64_t work, int per_block) { return dim3(static_cast<unsigned>(ceil_div(work, per_block))); }

int64_t list_bytes(int64_t k) { return k * kWarp * static_cast<int64_t>(sizeof(double) + sizeof(int32_t)); }

template <typename T, int kSlots, bool kIndices, Side kSide>
cudaError_t launch_search(const SearchJob& job, const KnnTree& points, const KnnTree& queries, const SearchResults& out,
                          cudaStream_t stream) {
  const TreeView<T> queries_view = view_of<T>(queries);
  const int warps = kSlots == 0 ? 1 : kWarpsPerBlock;
  const size_t shared_bytes = kSlots == 0 ? static_cast<size_t>(list_bytes(job.k)) : 0;
  return launch(search_kernel<T, kSlots, kIndices, kSide>, blocks_of(queries.batch * queries_view.num_tiles, warps),
                warps * kWarp, shared_bytes, stream, job, view_of<T>(points), queries_view, queries.batch, out);
}

template <typename T, bool kIndices>
cudaError_t launch_nearest(const SearchJob& job, const KnnTree& points, const KnnTree& queries,
                           const SearchResults& out, cudaStream_t stream) {
  if (job.k <= 4) return launch_search<T, 4, kIndices, Side::all>(job, points, queries, out, stream);
  if (job.k <= 8) return launch_search<T, 8, kIndices, Side::all>(job, points, queries, out, stream);
  if (job.k <= 16) return launch_search<T, 16, kIndices, Side::all>(job, points, queries, out, stream);
  if (job.k <= 32) return launch_search<T, 32, kIndices, Side::all>(job, points, queries, out, stream);
  return launch_search<T, 0, true, Side::all>(job, points, queries, out, stream);
}

}  // namespace

int64_t knn_cuda_max_neighbours(int device) {
  DeviceLimits limits{};
  if (device_limits(device, &limits) != cudaSuccess) return -1;
  return limits.shared_bytes / list_bytes(1);
}

template <typename T>
int64_t knn_cuda_tree_bytes(const KnnTree& tree) {
  int64_t bytes = 0;
  view_of<T>(tree, &bytes);
  return bytes;
}

template <typename T>
const char* knn_cuda_keys(const KnnKeys& p, int device, void* stream) {
  if (p.batch * p.num_points == 0) return nullptr;
  const DeviceGuard guard(device);
  ECHO_EXT_CUDA_CHECK(guard.status());
  ECHO_EXT_CUDA_CHECK(launch(keys_kernel<T>, blocks_of(p.batch * p.num_points, kThreads), kThreads, 0,
                             static_cast<cudaStream_t>(stream), p));
  return nullptr;
}

template <typename T>
const char* knn_cuda_build(const KnnTree& tree, int device, void* stream_) {
  if (tree.batch * tree.num_points == 0) return nullptr;
  const DeviceGuard guard(device);
  ECHO_EXT_CUDA_CHECK(guard.status());
  const auto stream = static_cast<cudaStream_t>(stream_);
  const TreeView<T> view = view_of<T>(tree);
  constexpr int kBlock = kWarp * kWarpsPerBlock;
  ECHO_EXT_CUDA_CHECK(
      launch(tiles_kernel<T>, blocks_of(tree.batch * view.num_tiles, kWarpsPerBlock), kBlock, 0, stream, tree, view));
  for (int level = 1; level < view.num_levels; ++level) {
    const int64_t nodes = tree.batch * (view.first_node[level + 1] - view.first_node[level]);
    ECHO_EXT_CUDA_CHECK(
        launch(level_kernel<T>, blocks_of(nodes, kWarpsPerBlock), kBlock, 0, stream, view, tree.batch, level));
  }
  return nullptr;
}

template <typename T>
const char* knn_cuda_search(const KnnSearch& p, const KnnTree& points, const KnnTree& queries, const int64_t* start,
                            int device, void* stream_) {
  if (p.batch * p.num_queries == 0 || p.k == 0) return nullptr;
  const DeviceGuard guard(device);
  ECHO_EXT_CUDA_CHECK(guard.status());
  const auto stream = static_cast<cudaStream_t>(stream_);
  const bool among_themselves = p.queries == nullptr;
  const SearchJob job{p.k,    p.metric == Metric::euclidean,      among_themselves ? p.exclude_within : -1,
                      p.rows, among_themselves ? nullptr : start, nullptr,
                      nullptr};
  const SearchResults out{p.distances, p.indices, p.k, kNoRow};
  ECHO_EXT_CUDA_CHECK(p.indices != nullptr ? (launch_nearest<T, true>(job, points, queries, out, stream))
                                           : (launch_nearest<T, false>(job, points, queries, out, stream)));
  return nullptr;
}

template <typename T>
const char* knn_cuda_boundary(const KnnBoundary& p, const KnnTree& points, int device, void* stream_) {
  if (p.batch * p.num_points == 0) return nullptr;
  const DeviceGuard guard(device);
  ECHO_EXT_CUDA_CHECK(guard.status());
  const auto stream = static_cast<cudaStream_t>(stream_);
  SearchJob job{p.width, false, p.exclude_within, nullptr, nullptr, p.radii, p.skip};
  SearchResults out{nullptr, p.indices, 2 * p.width + 1, -1};
  ECHO_EXT_CUDA_CHECK((launch_search<T, 0, true, Side::inside>(job, points, points, out, stream)));
  job.k = p.width + 1;
  out.indices += p.width;
  ECHO_EXT_CUDA_CHECK((launch_search<T, 0, true, Side::outside>(job, points, points, out, stream)));
  return nullptr;
}

#define ECHO_EXT_INSTANTIATE(T)                                                                                  \
  template int64_t knn_cuda_tree_bytes<T>(const KnnTree&);                                                       \
  template const char* knn_cuda_keys<T>(const KnnKeys&, int, void*);                                             \
  template const char* knn_cuda_build<T>(const KnnTree&, int, void*);                                            \
  template const char* knn_cuda_search<T>(const KnnSearch&, const KnnTree&, const KnnTree&, const int64_t*, int, \
                                          void*);                                                                \
  template const char* knn_cuda_boundary<T>(const KnnBoundary&, const KnnTree&, int, void*);
ECHO_EXT_INSTANTIATE(float)
ECHO_EXT_INSTANTIATE(double)
#undef ECHO_EXT_INSTANTIATE

}  // namespace echo_ext
