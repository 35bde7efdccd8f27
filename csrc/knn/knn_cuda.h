// k-nearest-neighbor searches and counts on CUDA. The caller sorts the points spatially, by keys that knn_cuda_keys
// computes. Tiles of 32 consecutive points then have small bounding boxes, and so have groups of 32 tiles, and so on.
#pragma once

#include <cstdint>

#include "knn/knn.h"

namespace echo_ext {

// Functions launch on the given cudaStream_t of the given device and do not synchronize with the host. They return
// null, or the text of an error.

// The position of each point on a space-filling curve: each coordinate is replaced by its rank in a sorted sample of
// its column, and the bits of all ranks are interleaved. Points with similar keys are close together. Any keys give
// correct results; good keys make searches fast.
struct KnnKeys {
  const void* points;  // (batch, num_points, dim)
  const void* sample;  // (batch, dim, sample_size), ascending
  int64_t batch;
  int64_t num_points;
  int64_t sample_size;
  int dim;
  int64_t* keys;  // (batch, num_points)
};

// Points in spatial order and their bounding boxes, in memory of knn_cuda_tree_bytes that the caller provides. A part
// of a tree's items is a tree as well.
struct KnnTree {
  DType dtype;           // float64 or float32
  const void* points;    // (batch, num_points, dim)
  const int64_t* order;  // (batch, num_points): the row at each place
  int64_t batch;
  int64_t num_points;
  int dim;
  void* memory;
  int64_t first = 0;            // the first item, of those in the memory
  int64_t items_in_memory = 0;  // number of items in the memory; 0: `batch`

  KnnTree part(int64_t first_item, int64_t count) const {
    const int64_t skipped = first_item * num_points;
    const int64_t element_bytes = dtype == DType::float64 ? sizeof(double) : sizeof(float);
    KnnTree items = *this;
    items.points = static_cast<const char*>(points) + skipped * dim * element_bytes;
    items.order += skipped;
    items.batch = count;
    items.first += first_item;
    items.items_in_memory = items_in_memory != 0 ? items_in_memory : batch;
    return items;
  }
};

template <typename T>
int64_t knn_cuda_tree_bytes(const KnnTree& tree);
template <typename T>
const char* knn_cuda_keys(const KnnKeys& p, int device, void* stream);
template <typename T>
const char* knn_cuda_build(const KnnTree& tree, int device, void* stream);

// The largest k that a search supports, or -1 if the device cannot be used.
int64_t knn_cuda_max_neighbors(int device);

// `queries` is `points` itself if the points search among themselves. `start` (batch, number of query tiles) is the
// tile of points where each tile of queries begins its search; null: the tile with the same number.
template <typename T>
const char* knn_cuda_search(const KnnSearch& p, const KnnTree& points, const KnnTree& queries, const int64_t* start,
                            int device, void* stream);
template <typename T>
const char* knn_cuda_count(const KnnCount& p, const KnnTree& points, int device, void* stream);
template <typename T>
const char* knn_cuda_boundary(const KnnBoundary& p, const KnnTree& points, int device, void* stream);

// The columns of one side of all pairs.
struct KnnColumns {
  const void* values;    // (batch, count, num_points)
  const void* sorted;    // the same, each column ascending
  const int64_t* order;  // the row of each sorted value
  const void* gaps;      // (batch, count, num_points): the approximate spacing of the values around each row's
  int64_t count;
};

// Estimates by "ksg1" the mutual information of each column of x with each column of y. A point searches its neighbors
// along the column of the pair in which its gap is larger. The gaps affect speed only: the estimates are the same up to
// rounding.
struct KnnPairs {
  KnnColumns x, y;
  bool symmetric;  // compute only pairs on and above the diagonal
  int64_t batch;
  int64_t num_points;
  int k;
  const double* psi;  // (num_points,): digamma(1), digamma(2), ...
  double* estimates;  // (batch, x.count, y.count)
};

constexpr int kKnnPairsMaxNeighbors = 32;

// The maximum number of points of a pair, or -1 if the device cannot be used.
template <typename T>
int64_t knn_cuda_pairs_max_points(int device);
template <typename T>
const char* knn_cuda_pairs(const KnnPairs& p, int device, void* stream);

}  // namespace echo_ext
