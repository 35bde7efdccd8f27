// k-nearest-neighbor searches and counts on CUDA. Points are put in spatial order by the caller, who sorts the keys
// made here; tiles of consecutive points then have small bounding boxes, and so have groups of 32 tiles, and so on.
#pragma once

#include <cstdint>

#include "knn/knn.h"

namespace echo_ext {

// Launched on the given cudaStream_t of the given device; no host synchronisation. They return null, or an error's
// text.

// Where a point lies along a curve that fills space: column by column its place among a sorted sample, the bits of all
// columns interleaved. Nearby keys are nearby points; any keys give right results.
struct KnnKeys {
  const void* points;  // (batch, num_points, dim)
  const void* sample;  // (batch, dim, sample_size), ascending
  int64_t batch;
  int64_t num_points;
  int64_t sample_size;
  int dim;
  int64_t* keys;  // (batch, num_points)
};

// Points in spatial order with their boxes, in the caller's memory of knn_cuda_tree_bytes. A part of its items is a
// tree too.
struct KnnTree {
  DType dtype;           // float64 or float32
  const void* points;    // (batch, num_points, dim)
  const int64_t* order;  // (batch, num_points): the place of each in the order
  int64_t batch;
  int64_t num_points;
  int dim;
  void* memory;
  int64_t first = 0;            // of the items in the memory
  int64_t items_in_memory = 0;  // how many lie there; 0: `batch`

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

// The largest k that a search keeps, or -1 where the device is out of reach.
int64_t knn_cuda_max_neighbors(int device);

// `queries` is `points` itself where points search among themselves. `start` (batch, tiles of queries): the tile of
// points where each tile of queries begins to look; null: its own number.
template <typename T>
const char* knn_cuda_search(const KnnSearch& p, const KnnTree& points, const KnnTree& queries, const int64_t* start,
                            int device, void* stream);
template <typename T>
const char* knn_cuda_count(const KnnCount& p, const KnnTree& points, int device, void* stream);
template <typename T>
const char* knn_cuda_boundary(const KnnBoundary& p, const KnnTree& points, int device, void* stream);

// Columns to be paired.
struct KnnColumns {
  const void* values;    // (batch, count, num_points)
  const void* sorted;    // the same, each column ascending
  const int64_t* order;  // the rows of the sorted values
  const void* gaps;      // (batch, count, num_points): about how far apart values near each row's are
  int64_t count;
};

// The estimate "ksg1" of the mutual information of each column of x with each of y. A point's neighbors are looked for
// along that column of the pair in which its gap is larger; whatever the gaps, the estimates are the same to rounding.
struct KnnPairs {
  KnnColumns x, y;
  bool symmetric;  // only of pairs on and above the diagonal
  int64_t batch;
  int64_t num_points;
  int k;
  const double* psi;  // (num_points,): digamma of 1, 2, ...
  double* estimates;  // (batch, x.count, y.count)
};

constexpr int kKnnPairsMaxNeighbors = 32;

// The most points that a pair may have, or -1 where the device is out of reach.
template <typename T>
int64_t knn_cuda_pairs_max_points(int device);
template <typename T>
const char* knn_cuda_pairs(const KnnPairs& p, int device, void* stream);

}  // namespace echo_ext
