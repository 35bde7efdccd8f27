// What the searches on the CPU share: the trees, and where results go.
#pragma once

#include <cstdint>
#include <vector>

#include "knn/kdtree.h"
#include "knn/knn.h"
#include "knn/simd_distance.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {

// One item of a batch. Results are written to its part of the arrays of KnnSearch.
template <typename T>
struct SearchJob {
  const KdTree<T>& points;
  const KdTree<T>& queries;  // the same object if the points search among themselves
  const LaneInt<T>* rows;    // of the points, in the order of the tree
  const KnnSearch& search;
  int64_t item;
  std::vector<int> by_k;  // places in search.ks, the largest k first

  bool among_themselves() const { return &points == &queries; }
  int k() const { return search.k; }
  // Whether the neighbors themselves are needed, and not only how far the k-th ones are.
  bool keeps_rows() const { return search.num_ks == 0 || search.reaches != nullptr; }
  int64_t exclude_within() const { return among_themselves() ? search.exclude_within : -1; }

  T& kth_distance(int which, int64_t row) const {
    return static_cast<T*>(search.distances)[(which * search.batch + item) * search.num_queries + row];
  }
  T* distances(int64_t row) const {
    return static_cast<T*>(search.distances) + (item * search.num_queries + row) * search.k;
  }
  int64_t* indices(int64_t row) const {
    return search.indices == nullptr ? nullptr : search.indices + (item * search.num_queries + row) * search.k;
  }
  // The reaches of one k, for each group of columns at a distance of reach_stride().
  T* reach(int which, int64_t row) const {
    return static_cast<T*>(search.reaches) + (which * search.num_groups * search.batch + item) * search.num_queries +
           row;
  }
  int64_t reach_stride() const { return search.batch * search.num_queries; }
};

// For each group of columns, writes the largest distance in it from a point to `num` others, which row(i) names.
template <typename T, typename RowOf>
void write_reaches(const SearchJob<T>& job, int which, int64_t own, int64_t num, const RowOf& row) {
  const int dim = job.points.dim();
  const T* const points = static_cast<const T*>(job.search.points) + job.item * job.search.num_points * dim;
  T* const reach = job.reach(which, own);
  const int64_t stride = job.reach_stride();
  for (int group = 0; group < job.search.num_groups; ++group) reach[group * stride] = 0;
  for (int64_t i = 0; i < num; ++i) {
    const T* const other = points + row(i) * dim;
    for (int c = 0; c < dim; ++c) {
      T& of_group = reach[job.search.groups[c] * stride];
      of_group = extend_distance<Metric::chebyshev>(of_group, other[c] - points[own * dim + c]);
    }
  }
}

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
