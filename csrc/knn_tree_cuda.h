// The tree as kernels see it, and how a warp walks it. A warp serves the 32 queries of a tile, one in each lane; it
// tests 32 boxes at once, one in each lane, against the box around its queries.
#pragma once

#include "cuda_support.h"
#include "knn_cuda.h"

namespace echo_ext {

constexpr int kMaxLevels = 7;
constexpr int kWarpsPerBlock = 4;  // kernels name a minimum of blocks: without, the compiler spills for more

template <typename T>
struct TreeView {
  T* tiles;         // [item][tile][column][32]
  T* boxes;         // [item][node][low, high][column]
  int32_t* order;   // [item][place]: rows, padded to whole tiles
  int32_t* lowest;  // [item][node]: the lowest row under it
  int64_t num_points;
  int64_t num_tiles;
  int64_t num_nodes;
  int dim;
  int num_levels;
  int64_t first_node[kMaxLevels + 1];  // of each level; level 0 are the tiles, the last one is the root

  ECHO_EXT_HD int64_t nodes_at(int level) const { return first_node[level + 1] - first_node[level]; }
};

// One item's part. What all items share stays in the kernel's parameters, which levels may index.
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

  __device__ __forceinline__ T* box(int level, int64_t node) const {
    return boxes + (tree.first_node[level] + node) * 2 * dim;
  }
  __device__ __forceinline__ int32_t* lowest_of(int level, int64_t node) const {
    return lowest + tree.first_node[level] + node;
  }
  __device__ __forceinline__ T* tile(int64_t index) const { return tiles + index * dim * kWarp; }
  __device__ __forceinline__ int64_t points_under(int level, int64_t node) const {
    const int64_t size = int64_t{kWarp} << (5 * level);
    const int64_t left = tree.num_points - node * size;
    return left < size ? left : size;
  }
};

template <typename T>
TreeView<T> view_of(const KnnTree& tree, int64_t* bytes = nullptr) {
  TreeView<T> view{};
  view.num_points = tree.num_points;
  view.num_tiles = ceil_div(tree.num_points, kWarp);
  view.dim = tree.dim;
  int64_t nodes = view.num_tiles;
  for (;;) {
    view.first_node[view.num_levels + 1] = view.first_node[view.num_levels] + nodes;
    ++view.num_levels;
    if (nodes == 1) break;
    nodes = ceil_div(nodes, kWarp);
  }
  view.num_nodes = view.first_node[view.num_levels];
  Workspace workspace(tree.memory);
  view.tiles = workspace.take<T>(tree.batch * view.num_tiles * kWarp * tree.dim);
  view.boxes = workspace.take<T>(tree.batch * view.num_nodes * 2 * tree.dim);
  view.order = workspace.take<int32_t>(tree.batch * view.num_tiles * kWarp);
  view.lowest = workspace.take<int32_t>(tree.batch * view.num_nodes);
  if (bytes != nullptr) *bytes = workspace.used();
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
__device__ __forceinline__ T larger(T a, T b) {
  return a > b ? a : b;
}

// The metric is known at run time, the same for all: a branch that does not diverge.
template <typename T>
__device__ __forceinline__ T extend(bool euclidean, T so_far, T difference) {
  return euclidean ? extend_distance<Metric::euclidean>(so_far, difference)
                   : extend_distance<Metric::chebyshev>(so_far, difference);
}

template <typename T>
__device__ __forceinline__ bool is_within(bool inclusive, T distance, T radius) {
  return inclusive ? distance <= radius : distance < radius;
}

// How near and how far in one column points of [low, high] can be to points of [query_low, query_high].
template <typename T>
__device__ __forceinline__ T nearest_gap(T query_low, T query_high, T low, T high) {
  return larger(larger(low - query_high, query_low - high), T(0));
}
template <typename T>
__device__ __forceinline__ T farthest_gap(T query_low, T query_high, T low, T high) {
  return larger(high - query_low, query_high - low);
}

// Distances from this lane's query to some points of a tile.
template <int kCount, typename T>
__device__ __forceinline__ void distances_to(bool euclidean, int dim, const T* tile, const T* query,
                                             T (&distance)[kCount]) {
#pragma unroll
  for (int e = 0; e < kCount; ++e) distance[e] = 0;
  if (euclidean) {
    for (int c = 0; c < dim; ++c) {
      const T q = query[c * kWarp];
#pragma unroll
      for (int e = 0; e < kCount; ++e)
        distance[e] = extend_distance<Metric::euclidean>(distance[e], tile[c * kWarp + e] - q);
    }
  } else {
    for (int c = 0; c < dim; ++c) {
      const T q = query[c * kWarp];
#pragma unroll
      for (int e = 0; e < kCount; ++e)
        distance[e] = extend_distance<Metric::chebyshev>(distance[e], tile[c * kWarp + e] - q);
    }
  }
}

// Visits a node and what is under it, depth first, all lanes together:
//   visitor.enters(level, node)       whether to look into it
//   visitor.candidates(level, first)  which of 32 siblings may be worth it
//   visitor.scan(tile)
template <typename Visitor>
__device__ __forceinline__ void walk(Visitor& visitor, int top, int64_t node) {
  unsigned pending[kMaxLevels];
  int level = top;
  for (;;) {
    if (visitor.enters(level, node)) {
      if (level == 0) {
        visitor.scan(node);
      } else {
        --level;
        node *= kWarp;
        pending[level] = visitor.candidates(level, node);
      }
    }
    while (level < top && pending[level] == 0) {
      ++level;
      node /= kWarp;
    }
    if (level == top) return;
    node = node / kWarp * kWarp + __ffs(static_cast<int>(pending[level])) - 1;
    pending[level] &= pending[level] - 1;
  }
}

}  // namespace echo_ext
