// k-nearest-neighbor searches and neighbor counts: what the kernels compute, in terms of raw memory.
//
// A distance between two points is the largest |x_c - y_c| (Chebyshev) or the sum of (x_c - y_c)^2 (Euclidean,
// squared), in the points' own precision and in the order of the columns. Both kernels evaluate exactly this, so that a
// count within a distance that a search returned is what a loop over all pairs would count, ties included.
#pragma once

#include <cstdint>
#include <limits>

#include "common/dtype.h"
#include "common/kernel_table.h"
#include "knn/distance.h"

namespace echo_ext {

// The row of a neighbor that does not exist; larger than any row.
constexpr int32_t kNoRow = std::numeric_limits<int32_t>::max();

// `exclude_within` = w >= 0: points whose rows are at most w apart are not neighbors (w = 0: a point is not its own).
// `rows` (num_points, ascending) are the points' row numbers; null stands for 0, 1, 2, ...

struct KnnSearch {
  DType dtype;          // float64 or float32
  const void* points;   // (batch, num_points, dim)
  const void* queries;  // (batch, num_queries, dim); null: the points themselves, with neighbors excluded as above
  const int64_t* rows;
  int64_t batch;
  int64_t num_points;
  int64_t num_queries;
  int dim;
  int k;
  Metric metric;
  int64_t exclude_within;
  void* distances;   // (batch, num_queries, k), ascending
  int64_t* indices;  // the same shape, the lower index first among equal distances; may be null
  int num_threads;
};

// Neighbors nearer than a radius, or as near. A radius may bound each of several groups of columns separately:
// then the neighbor has to be near in every group.
struct KnnCount {
  DType dtype;            // float64 or float32
  const void* points;     // (batch, num_points, dim)
  const void* radii;      // (num_radii, batch, num_groups, num_points), of the metric as above (squared if Euclidean);
                          // below 0 they hold nothing, and a tree is not asked
  const int32_t* groups;  // (dim,): the group of each column; Euclidean has one group only
  const int64_t* rows;
  int64_t batch;
  int64_t num_points;
  int64_t num_radii;  // sets of radii that share the sorting of the points
  int num_groups;
  int dim;
  Metric metric;
  bool inclusive;  // distance <= radius instead of distance < radius
  int64_t exclude_within;
  int64_t* counts;  // (num_radii, batch, num_points)
  int num_threads;
};

// For the flux of points through the boundary of a ball: the neighbors whose rank by distance is nearest to the number
// of points inside the ball, `width` on either side and one more outside; each point's own `skip` is passed over. Of
// equally far neighbors on one side, those with the lower indices.
struct KnnBoundary {
  DType dtype;          // float64 or float32
  const void* points;   // (batch, num_points, dim)
  const void* radii;    // (batch, num_points)
  const int64_t* skip;  // (batch, num_points)
  int64_t batch;
  int64_t num_points;
  int dim;
  int width;
  int64_t exclude_within;
  int64_t* indices;  // (batch, num_points, 2 * width + 1), -1 where there is no such neighbor
  int num_threads;
};

// values += factor * digamma(counts + shift); counts + shift must not be negative.
struct KnnDigamma {
  const int64_t* counts;
  double* values;
  int64_t size;
  int64_t shift;
  double factor;
  int num_threads;
};

void knn_add_digamma(const KnnDigamma& p);

using KnnSearchKernel = void (*)(const KnnSearch&);
using KnnCountKernel = void (*)(const KnnCount&);
using KnnBoundaryKernel = void (*)(const KnnBoundary&);
ECHO_EXT_KERNEL_TABLE(KnnSearchKernel, knn_search)
ECHO_EXT_KERNEL_TABLE(KnnCountKernel, knn_count)
ECHO_EXT_KERNEL_TABLE(KnnBoundaryKernel, knn_boundary)

}  // namespace echo_ext
