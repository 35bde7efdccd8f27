// The tree as kernels see it, and its traversal. A warp serves the 32 queries of a tile, one per lane. It also tests 32
// boxes at once, one per lane, against the bounding box of its queries.
#pragma once

#include <type_traits>

#include "common/cuda_support.h"
#include "knn/knn_cuda.h"

namespace echo_ext {

constexpr int kMaxLevels = 7;
// Kernels also state a minimum number of blocks: without it, the compiler would spill registers to fit more blocks.
constexpr int kWarpsPerBlock = 4;

template <typename T>
struct TreeView {
  T* tiles;         // [item][tile][column][32]
  T* boxes;         // [item][node][low, high][column]
  int32_t* order;   // [item][place]: rows, padded to whole tiles
  int32_t* lowest;  // [item][node]: the lowest row under the node
  int num_points;   // at most 2^30, which callers check
  int num_tiles;
  int num_nodes;
  int dim;
  int num_levels;
  int first_node[kMaxLevels + 1];  // of each level; level 0 holds the tiles, the last level the root

  ECHO_EXT_HD int nodes_at(int level) const { return first_node[level + 1] - first_node[level]; }
};

// The part of one item. What all items share stays in the kernel's parameters, where the levels can be indexed.
template <typename T>
struct ItemView {
  const TreeView<T>& tree;
  T* tiles;
  T* boxes;
  int32_t* order;
  int32_t* lowest;
  int dim;

  __device__ __forceinline__ ItemView(const TreeView<T>& all, int64_t item)
      : tree(all),
        tiles(all.tiles + item * all.num_tiles * all.dim * kWarp),
        boxes(all.boxes + item * all.num_nodes * 2 * all.dim),
        order(all.order + item * all.num_tiles * kWarp),
        lowest(all.lowest + item * all.num_nodes),
        dim(all.dim) {}

  __device__ __forceinline__ T* box(int level, int node) const {
    return boxes + int64_t{tree.first_node[level] + node} * 2 * dim;
  }
  __device__ __forceinline__ int32_t* lowest_of(int level, int node) const {
    return lowest + tree.first_node[level] + node;
  }
  __device__ __forceinline__ T* tile(int index) const { return tiles + int64_t{index} * dim * kWarp; }
  __device__ __forceinline__ int points_under(int level, int node) const {
    const int64_t size = int64_t{kWarp} << (5 * level);
    const int64_t left = tree.num_points - node * size;
    return static_cast<int>(left < size ? left : size);
  }
};

template <typename T>
TreeView<T> view_of(const KnnTree& tree, int64_t* bytes = nullptr) {
  TreeView<T> view{};
  view.num_points = static_cast<int>(tree.num_points);
  view.num_tiles = static_cast<int>(ceil_div(tree.num_points, kWarp));
  view.dim = tree.dim;
  int nodes = view.num_tiles;
  for (;;) {
    view.first_node[view.num_levels + 1] = view.first_node[view.num_levels] + nodes;
    ++view.num_levels;
    if (nodes == 1) break;
    nodes = static_cast<int>(ceil_div(nodes, kWarp));
  }
  view.num_nodes = view.first_node[view.num_levels];
  Workspace workspace(tree.memory);
  const int64_t items = tree.items_in_memory != 0 ? tree.items_in_memory : tree.batch;
  const auto take = [&](auto*& of_first, int64_t per_item) {
    of_first = workspace.take<std::remove_reference_t<decltype(*of_first)>>(items * per_item) + tree.first * per_item;
  };
  take(view.tiles, int64_t{view.num_tiles} * kWarp * tree.dim);
  take(view.boxes, int64_t{view.num_nodes} * 2 * tree.dim);
  take(view.order, int64_t{view.num_tiles} * kWarp);
  take(view.lowest, view.num_nodes);
  if (bytes != nullptr) *bytes = workspace.bytes();
  return view;
}

template <typename T>
__device__ __forceinline__ T warp_max(T value) {
  for (int other = kWarp / 2; other > 0; other /= 2) {
    const T peer = __shfl_xor_sync(kFullWarp, value, other);
    if (peer > value) value = peer;
  }
  return value;
}

template <typename T>
__device__ __forceinline__ T maximum(T a, T b) {
  return a > b ? a : b;
}

// How near and how far, in one column, points in [low, high] and points in [query_low, query_high] can be.
template <typename T>
__device__ __forceinline__ T nearest_gap(T query_low, T query_high, T low, T high) {
  return maximum(maximum(low - query_high, query_low - high), T(0));
}
template <typename T>
__device__ __forceinline__ T farthest_gap(T query_low, T query_high, T low, T high) {
  return maximum(high - query_low, query_high - low);
}

// ---- Queries of a lane ---------------------------------------------------------------------------------------------

// One value for each column. With kColumns > 0 they are in registers, for at most that many columns; with 0 they are
// read from memory.
template <typename T, int kColumns>
struct ColumnValues {
  T values[kColumns];

  __device__ __forceinline__ ColumnValues(const T* from, int dim) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) values[c] = c < dim ? from[c * kWarp] : T(0);
  }
  __device__ __forceinline__ T operator[](int c) const { return values[c]; }
};
template <typename T>
struct ColumnValues<T, 0> {
  const T* from;

  __device__ __forceinline__ ColumnValues(const T* from_, int) : from(from_) {}
  __device__ __forceinline__ T operator[](int c) const { return from[c * kWarp]; }
};

template <int kColumns, typename Step>
__device__ __forceinline__ void for_each_column(int dim, const Step& step) {
  if constexpr (kColumns == 0) {
    for (int c = 0; c < dim; ++c) step(c);
  } else {
    // The index is known at compile time, so that the values it selects can stay in registers.
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      if (c >= dim) break;
      step(c);
    }
  }
}

// A tile of points for comparison. If there are few columns, they are compared in pairs, the last of which may be
// completed by a column of zeros, and the tile is copied to the warp's part of the shared memory.
template <typename T, int kColumns>
struct StagedTile {
  static constexpr int kColumnsAtOnce = kColumns == 0 ? 1 : 2;
  T* memory;

  ECHO_EXT_HD static int elements(int dim) {
    return (dim + kColumnsAtOnce - 1) / kColumnsAtOnce * kColumnsAtOnce * kWarp;
  }
  static size_t bytes_of_block(int dim) {
    return kColumns == 0 ? 0 : kWarpsPerBlock * sizeof(T) * static_cast<size_t>(elements(dim));
  }

  __device__ __forceinline__ explicit StagedTile(int dim)
      : memory(reinterpret_cast<T*>(dynamic_shared_memory) + threadIdx.x / kWarp * elements(dim)) {
    if constexpr (kColumns != 0)
      if (dim % kColumnsAtOnce != 0) memory[dim * kWarp + threadIdx.x % kWarp] = 0;
  }

  // Must be called by all lanes together.
  __device__ __forceinline__ const T* stage(const ItemView<T>& points, int tile) const {
    const T* from = points.tile(tile);
    if constexpr (kColumns == 0) return from;
    constexpr int kCopyElements = sizeof(float4) / sizeof(T);
    __syncwarp();  // other lanes may still read the previous tile
    for (int i = threadIdx.x % kWarp * kCopyElements; i < points.dim * kWarp; i += kWarp * kCopyElements)
      copy_async(memory + i, from + i);
    commit_copies();
    wait_for_copies<0>();
    __syncwarp();
    return memory;
  }
};

// Consecutive values, of which the first is aligned for vector loads.
template <typename T, int kCount>
__device__ __forceinline__ void load_vectorized(const T* from, T (&to)[kCount]) {
  const T* aligned = static_cast<const T*>(__builtin_assume_aligned(from, sizeof(float4)));
#pragma unroll
  for (int e = 0; e < kCount; ++e) to[e] = aligned[e];
}

// Returns a bit for each of kCount points of a tile: whether it is within the radius of this lane's query, in every
// column (Chebyshev) or summed over all columns (Euclidean). The points are independent work. Columns are added until
// no lane of the warp has a point left. With the Chebyshev metric, a column takes two instructions per point: the
// difference and the comparison of its magnitude.
template <Metric M, bool kInclusive, int kCount, int kColumns, typename T, typename Radii>
__device__ __forceinline__ unsigned find_near(int dim, const T* points, const ColumnValues<T, kColumns>& query,
                                              const Radii& radii) {
  constexpr int kBatch = StagedTile<T, kColumns>::kColumnsAtOnce, kFirstVote = 4, kVoteEvery = 2;
  unsigned left = (1u << kCount) - 1;
  T distance[kCount];
#pragma unroll
  for (int e = 0; e < kCount; ++e) distance[e] = 0;
#pragma unroll
  for (int first = 0; first < (kColumns == 0 ? dim : kColumns); first += kBatch) {
    if (kColumns != 0 && first >= dim) break;
    if (first >= kFirstVote && first % kVoteEvery == 0 && !__any_sync(kFullWarp, left != 0)) break;
    bool near[kCount];
#pragma unroll
    for (int e = 0; e < kCount; ++e) near[e] = true;
#pragma unroll
    for (int c = first; c < first + kBatch; ++c) {
      T point[kCount];
      load_vectorized(points + c * kWarp, point);
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        if constexpr (is_largest_of_columns(M))
          near[e] &= within<kInclusive>(std::fabs(point[e] - query[c]), radii[c]);
        else
          distance[e] = extend_distance<M>(distance[e], point[e] - query[c]);
      }
    }
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      if constexpr (!is_largest_of_columns(M)) near[e] = within<kInclusive>(distance[e], radii[0]);
      if (!near[e]) left &= ~(1u << e);
    }
  }
  return left;
}

// The same value for each column.
template <typename T>
struct SameForAll {
  T value;
  __device__ __forceinline__ T operator[](int) const { return value; }
};

template <Metric M, int kColumns, typename T>
__device__ __forceinline__ T distance_to(int dim, const T* point, const ColumnValues<T, kColumns>& query) {
  T distance = 0;
  for_each_column<kColumns>(dim, [&](int c) { distance = extend_distance<M>(distance, point[c * kWarp] - query[c]); });
  return distance;
}

// ---- Traversal -----------------------------------------------------------------------------------------------------

// Visits a node and the nodes under it, depth first, with all lanes together:
//       visitor.should_descend(level, node)  whether to visit the node
//       visitor.candidates(level, first)     a bit for each of 32 siblings that may have to be visited
//       visitor.scan(tile)                   visits a tile
template <typename Visitor>
__device__ __forceinline__ void traverse(Visitor& visitor, int top, int node) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  unsigned pending = 0;  // siblings to visit on this level
  unsigned kept = 0;     // the same for the levels above, each in the lane with its number
  int level = top;
  for (;;) {
    if (visitor.should_descend(level, node)) {
      if (level == 0) {
        visitor.scan(node);
      } else {
        if (lane == level) kept = pending;
        --level;
        node *= kWarp;
        pending = visitor.candidates(level, node);
      }
    }
    while (level < top && pending == 0) {
      ++level;
      node /= kWarp;
      pending = __shfl_sync(kFullWarp, kept, level);
    }
    if (level == top) return;
    node = node / kWarp * kWarp + __ffs(static_cast<int>(pending)) - 1;
    pending &= pending - 1;
  }
}

}  // namespace echo_ext
