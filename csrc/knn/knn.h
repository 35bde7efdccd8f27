// k-nearest-neighbor searches and neighbor counts in terms of raw memory.
//
// The distance of two points is the largest |x_c - y_c| (Chebyshev) or the sum of (x_c - y_c)^2 (squared Euclidean). It
// is computed in the points' own precision and in the order of the columns. Searches and counts compute exactly the
// same numbers, so a count within a distance that a search returned equals that of a loop over all pairs, ties
// included.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "common/dtype.h"
#include "common/kernel_table.h"
#include "knn/distance.h"

namespace echo_ext {

// The row of a neighbor that does not exist. It is larger than every row.
constexpr int32_t kNoRow = std::numeric_limits<int32_t>::max();

// With `exclude_within` = w >= 0, points whose rows are at most w apart are not neighbors. With w = 0, only the point
// itself is excluded. `rows` (num_points, ascending) are the row numbers of the points; null stands for 0, 1, 2, ...

// Where there are fewer than k neighbors, the distances of the others are infinite.
struct KnnSearch {
  DType dtype;          // float64 or float32
  const void* points;   // (batch, num_points, dim)
  const void* queries;  // (batch, num_queries, dim); null: the points themselves, subject to exclude_within
  const int64_t* rows;
  int64_t batch;
  int64_t num_points;
  int64_t num_queries;
  int dim;
  int k;
  Metric metric;
  int64_t exclude_within;
  const int32_t* ks;  // (num_ks,), of which k is the largest: only these neighbors are asked for; null: all k of them
  int num_ks;
  const int32_t* groups;  // (dim,): with `reaches`, the group of each column
  int num_groups;
  void* distances;   // (batch, num_queries, k), ascending; with `ks`, (num_ks, batch, num_queries)
  int64_t* indices;  // (batch, num_queries, k); among equal distances the lower index comes first; may be null
  void* reaches;  // (num_ks, num_groups, batch, num_queries): with `ks`, the largest Chebyshev distance in a group of
                  // columns to any of the k nearest; may be null
  int num_threads;
};

// Counts neighbors within a radius. If the columns form several groups, each group has its own radius, and a neighbor
// must be within all of them.
struct KnnCount {
  DType dtype;            // float64 or float32
  const void* points;     // (batch, num_points, dim)
  const void* radii;      // (num_radii, batch, num_groups, num_points), squared if Euclidean; negative radii contain
                          // nothing and skip the tree
  const int32_t* groups;  // (dim,): the group of each column; with the Euclidean metric there is only one group
  const int64_t* rows;
  int64_t batch;
  int64_t num_points;
  int64_t num_radii;  // sets of radii that share one sort of the points
  int num_groups;
  int dim;
  Metric metric;
  bool inclusive;  // distance <= radius instead of distance < radius
  int64_t exclude_within;
  int64_t* counts;  // (num_radii, batch, num_points)
  int num_threads;
};

// Finds the neighbors around the boundary of a ball, to estimate the flux of points through it: the `width` farthest
// neighbors inside the ball and the width + 1 nearest outside. Each point's own `skip` is ignored. Among neighbors at
// the same distance, those with lower indices are chosen.
struct KnnBoundary {
  DType dtype;          // float64 or float32
  const void* points;   // (batch, num_points, dim)
  const void* radii;    // (batch, num_points)
  const int64_t* skip;  // (batch, num_points)
  const int64_t* rows;
  int64_t batch;
  int64_t num_points;
  int dim;
  int width;
  int64_t exclude_within;
  int64_t* indices;  // (batch, num_points, 2 * width + 1); -1 where there is no such neighbor
  int num_threads;
};

// Adds factor * digamma(n + 1) for each margin, where n is the number of points that are strictly nearer in the
// margin's columns than the k-th neighbor in all columns: the samples' values of KSG1 and of its relatives, up to a
// constant.
struct KnnMargins {
  // Some of the variables, whose columns are counted in together.
  struct Margin {
    std::vector<int> variables;
    double factor;
  };
  struct Variable {
    const void* points;  // (batch, num_points, dim)
    int dim;
  };
  DType dtype;  // float64 or float32
  std::vector<Variable> variables;
  std::vector<Margin> margins;
  std::vector<int32_t> ks;
  const int64_t* rows;
  int64_t batch;
  int64_t num_points;
  int64_t exclude_within;
  double* values;       // (num_ks, batch, num_points), which is added to
  double* tied_shares;  // (num_ks, batch): which share of the points has its k-th neighbor at distance 0
  int num_threads;
};

// Estimates I(x; y | z) for many surrogates of y, by the formula of Frenzel and Pompe 2007 with Chebyshev distances.
// What does not depend on the surrogate is computed once.
struct KnnResample {
  DType dtype;            // float64 or float32
  const void* fixed;      // (batch, num_points, fixed_dim): the columns of x and z
  const void* given;      // (batch, num_points, given_dim): the columns of z
  const void* moved;      // (batch, num_points, moved_dim): the columns of y
  const int64_t* orders;  // (num_surrogates, batch, num_points): whose y stands at each row
  const int64_t* rows;
  int64_t batch;
  int64_t num_points;
  int64_t num_surrogates;
  int fixed_dim;
  int given_dim;
  int moved_dim;
  int k;
  int64_t exclude_within;
  double* estimates;  // (num_surrogates, batch)
  int num_threads;
};

// values += factor * digamma(counts + shift), where counts + shift must not be negative.
struct KnnDigamma {
  const int64_t* counts;
  double* values;
  int64_t size;
  int64_t shift;
  double factor;
  int num_threads;
};

void knn_add_digamma(const KnnDigamma& p);
void knn_add_margins(const KnnMargins& p);
double digamma(int64_t n);  // n >= 1

using KnnSearchKernel = void (*)(const KnnSearch&);
using KnnCountKernel = void (*)(const KnnCount&);
using KnnBoundaryKernel = void (*)(const KnnBoundary&);
using KnnResampleKernel = void (*)(const KnnResample&);
ECHO_EXT_KERNEL_TABLE(KnnSearchKernel, knn_search)
ECHO_EXT_KERNEL_TABLE(KnnCountKernel, knn_count)
ECHO_EXT_KERNEL_TABLE(KnnBoundaryKernel, knn_boundary)
ECHO_EXT_KERNEL_TABLE(KnnResampleKernel, knn_resample)

}  // namespace echo_ext
