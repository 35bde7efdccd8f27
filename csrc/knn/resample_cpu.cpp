// Conditional mutual information with many surrogates of y. For each query, the points that can be among its neighbors
// and their distances from it in (x, z) and in z are found once. A surrogate then takes two passes over them.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "common/parallel.h"
#include "knn/batch.h"
#include "knn/kdtree.h"
#include "knn/knn.h"
#include "knn/select.h"
#include "knn/simd_distance.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {
namespace {

constexpr int64_t kQueriesPerTask = 8;  // they share a surrogate's values while these are in the cache

// The points in the order of a tree, so that those near in z lie near in memory; columns are padded to whole vectors.
template <typename T>
class Columns {
 public:
  Columns(const T* points, int dim, const std::vector<int64_t>& order)
      : stride_(rounded_up(static_cast<int64_t>(order.size()), kLanes<T>)), dim_(dim) {
    values_.assign(static_cast<size_t>(stride_ * dim), T(0));
    for (int c = 0; c < dim; ++c)
      for (size_t i = 0; i < order.size(); ++i)
        values_[static_cast<size_t>(c * stride_) + i] = points[order[i] * dim + c];
  }

  // The distances from point i to the points from `first` on, which fill a vector.
  Vector<T> distances(int64_t i, int64_t first) const {
    Vector<T> distance = Vector<T>{};
    for (int c = 0; c < dim_; ++c) {
      const T* column = values_.data() + c * stride_;
      distance = extend_distance<Metric::chebyshev, T>(distance, load(column + first) - column[i]);
    }
    return distance;
  }

 private:
  int64_t stride_;
  int dim_;
  std::vector<T> values_;
};

template <typename T>
struct ResampleJob {
  const KnnResample& p;
  const Columns<T>& fixed;
  const Columns<T>& given;
  const std::vector<LaneInt<T>>& times;   // the row number of each point, padded to whole vectors
  const std::vector<LaneInt<T>>& places;  // 0, 1, 2, ..., likewise
  const T* moved;                         // (num_surrogates, moved_dim, num_points)
  const std::vector<double>& psi;         // of 1, 2, 3, ...
};

// The points that can be neighbors of one query, and the range of the surrogates' radii so far.
template <typename T>
class Query {
  using V = Vector<T>;
  using I = Mask<T>;
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();

 public:
  // `reach` is a guess of how far the neighbors are.
  Query(const ResampleJob<T>& job, Selection<T>& selection, int64_t place, T reach)
      : job_(job), selection_(selection), place_(place) {
    const auto size = static_cast<size_t>(rounded_up(job.p.num_points, kLanes<T>) + kLanes<T>);
    for (auto* buffer : {&fixed_, &given_, &both_, &candidates_}) buffer->resize(size);
    places_.resize(size);
    keep_within(reach);
  }

  T reach() const { return reach_; }

  // The query's part of the estimate with a surrogate.
  double value(int64_t surrogate) {
    const T* moved = job_.moved + surrogate * job_.p.moved_dim * job_.p.num_points;
    T radius;
    const bool in_range = find_in_range(moved, radius);
    if (!in_range) radius = find(moved);
    I in_fixed = I{}, in_both = I{}, in_given = I{};
    const V limit = broadcast<T>(radius);
    for (int64_t i = 0; i < size_; i += kLanes<T>) {
      in_fixed -= load(fixed_.data() + i) < limit;
      in_both -= load(both_.data() + i) < limit;
      in_given -= load(given_.data() + i) < limit;
    }
    if (!in_range) learn(radius);
    return job_.psi[sum(in_given)] - job_.psi[sum(in_fixed)] - job_.psi[sum(in_both)];
  }

 private:
  static size_t sum(I counts) {
    int64_t total = 0;
    for (int lane = 0; lane < kLanes<T>; ++lane) total += counts[lane];
    return static_cast<size_t>(total);
  }

  // Keeps the points that are at most `reach` away in z. Points beyond it cannot be within a radius up to it.
  void keep_within(T reach) {
    const auto window = static_cast<LaneInt<T>>(job_.p.exclude_within);
    reach_ = reach;
    num_kept_ = 0;
    for (int64_t first = 0; first < job_.p.num_points; first += kLanes<T>) {
      const V given = job_.given.distances(place_, first);
      if (!any<T>(given <= broadcast<T>(reach))) continue;
      const I apart = load_ints<T>(job_.times.data() + first) - job_.times[static_cast<size_t>(place_)];
      const I places = load_ints<T>(job_.places.data() + first);
      const I kept = (given <= broadcast<T>(reach)) & ((apart > window) | (apart < -window)) &
                     (places < static_cast<LaneInt<T>>(job_.p.num_points));
      const uint32_t bits = lane_bits<T>(kept);
      store_selected<T>(fixed_.data() + num_kept_, job_.fixed.distances(place_, first), bits);
      store_selected<T>(places_.data() + num_kept_, places, bits);
      store_selected<T>(given_.data() + num_kept_, given, bits);
      num_kept_ += count_bits(bits);
    }
    size_ = rounded_up(num_kept_, kLanes<T>);
    for (int64_t i = num_kept_; i < size_; ++i) {  // nothing is farther away than the padding
      places_[static_cast<size_t>(i)] = 0;
      fixed_[static_cast<size_t>(i)] = given_[static_cast<size_t>(i)] = kInfinity;
    }
  }

  // The distances in (x, y, z) of a vector of points, of which it also stores those in (y, z).
  V distances(const T* moved, int64_t i) {
    const I places = load_ints<T>(places_.data() + i);
    V both = load(given_.data() + i);
    for (int c = 0; c < job_.p.moved_dim; ++c, moved += job_.p.num_points)
      both = extend_distance<Metric::chebyshev, T>(both, gather<T>(moved, places) - moved[place_]);
    store(both_.data() + i, both);
    return maximum(load(fixed_.data() + i), both);
  }

  // Finds the k-th smallest distance if it lies in the range that the surrogates before suggest: points below the range
  // are only counted, and few are left to select from.
  bool find_in_range(const T* moved, T& radius) {
    if (!(low_ <= high_)) return false;
    const V low = broadcast<T>(low_), high = broadcast<T>(high_);
    I below = I{};
    int64_t num = 0;
    for (int64_t i = 0; i < size_; i += kLanes<T>) {
      const V distance = distances(moved, i);
      below -= distance < low;
      const uint32_t bits = lane_bits<T>((distance >= low) & (distance <= high));
      store_selected<T>(candidates_.data() + num, distance, bits);
      num += count_bits(bits);
    }
    const int64_t rank = job_.p.k - 1 - static_cast<int64_t>(sum(below));
    if (rank < 0 || rank >= num) return false;
    radius = selection_.value_at(candidates_.data(), num, rank);
    return true;
  }

  // Finds the k-th smallest distance wherever it lies.
  T find(const T* moved) {
    for (;;) {
      for (int64_t i = 0; i < size_; i += kLanes<T>) store(candidates_.data() + i, distances(moved, i));
      if (num_kept_ >= job_.p.k) {
        const T radius = selection_.value_at(candidates_.data(), num_kept_, job_.p.k - 1);
        if (radius <= reach_) return radius;
      }
      keep_within(kInfinity);
    }
  }

  // Adapts the range and the kept points to a radius that was out of range.
  void learn(T radius) {
    smallest_ = std::min(smallest_, radius);
    largest_ = std::max(largest_, radius);
    const T margin = std::max((largest_ - smallest_) / 4, largest_ / 32);
    low_ = smallest_ - margin;
    if (largest_ + 4 * margin < reach_) keep_within(largest_ + 2 * margin);
    high_ = std::min(largest_ + margin, reach_);
  }

  const ResampleJob<T>& job_;
  Selection<T>& selection_;
  int64_t place_;
  int64_t num_kept_ = 0;
  int64_t size_ = 0;
  T reach_ = kInfinity;
  T smallest_ = kInfinity;
  T largest_ = 0;
  T low_ = kInfinity;
  T high_ = -kInfinity;
  std::vector<T> fixed_;  // of the kept points: the distances in (x, z), in z, and in (y, z) for one surrogate
  std::vector<T> given_;
  std::vector<T> both_;
  std::vector<LaneInt<T>> places_;
  std::vector<T> candidates_;
};

// The values of y that stand at each place: (num_surrogates, moved_dim, num_points).
template <typename T>
std::vector<T> move(const KnnResample& p, int64_t item, const std::vector<int64_t>& order, int num_threads) {
  const int64_t n = p.num_points;
  const auto* original = static_cast<const T*>(p.moved) + item * n * p.moved_dim;
  std::vector<T> moved(static_cast<size_t>(p.num_surrogates * p.moved_dim * n));
  parallel_for(p.num_surrogates, num_threads, [&](int64_t surrogate, int) {
    const int64_t* source = p.orders + (surrogate * p.batch + item) * n;
    T* to = moved.data() + surrogate * p.moved_dim * n;
    for_each_piece(0, n, [&](int64_t begin, int64_t end) {
      for (int c = 0; c < p.moved_dim; ++c)
        for (int64_t i = begin; i < end; ++i) to[c * n + i] = original[source[order[i]] * p.moved_dim + c];
    });
  });
  return moved;
}

template <typename T>
void resample_item(const KnnResample& p, int64_t item, int num_threads) {
  const int64_t n = p.num_points;
  const auto* all_fixed = static_cast<const T*>(p.fixed) + item * n * p.fixed_dim;
  const auto* all_given = static_cast<const T*>(p.given) + item * n * p.given_dim;
  const KdTree<T> tree(all_given, n, p.given_dim, num_threads);
  const std::vector<int64_t> order(tree.order(), tree.order() + n);
  const Columns<T> fixed(all_fixed, p.fixed_dim, order);
  const Columns<T> given(all_given, p.given_dim, order);
  std::vector<LaneInt<T>> places(static_cast<size_t>(rounded_up(n, kLanes<T>)));
  std::vector<LaneInt<T>> times(places.size());
  std::vector<double> psi(static_cast<size_t>(n));
  for (size_t i = 0; i < places.size(); ++i) places[i] = static_cast<LaneInt<T>>(i);
  for (size_t i = 0; i < order.size(); ++i) {
    times[i] = static_cast<LaneInt<T>>(p.rows == nullptr ? order[i] : p.rows[order[i]]);
    psi[i] = digamma(static_cast<int64_t>(i) + 1);
  }
  const std::vector<T> moved = move<T>(p, item, order, num_threads);
  const ResampleJob<T> job{p, fixed, given, times, places, moved.data(), psi};

  const int64_t num_tasks = (n + kQueriesPerTask - 1) / kQueriesPerTask;
  std::vector<double> sums(static_cast<size_t>(num_tasks * p.num_surrogates));
  parallel_for(num_tasks, num_threads, [&](int64_t task, int) {
    PollCounter polls;
    double* sum = sums.data() + task * p.num_surrogates;
    Selection<T> selection;
    std::vector<Query<T>> queries;
    T reach = std::numeric_limits<T>::infinity();
    for (int64_t place = task * kQueriesPerTask; place < std::min(n, (task + 1) * kQueriesPerTask); ++place) {
      queries.emplace_back(job, selection, place, reach);
      sum[0] += queries.back().value(0);
      reach = queries.back().reach();
      polls.add(n);
    }
    for (int64_t surrogate = 1; surrogate < p.num_surrogates; ++surrogate) {
      for (Query<T>& query : queries) sum[surrogate] += query.value(surrogate);
      polls.add(n);
    }
  });
  for (int64_t surrogate = 0; surrogate < p.num_surrogates; ++surrogate) {
    double total = 0;
    for (int64_t task = 0; task < num_tasks; ++task) total += sums[task * p.num_surrogates + surrogate];
    p.estimates[surrogate * p.batch + item] = digamma(p.k) + total / static_cast<double>(n);
  }
}

}  // namespace

const KnnResampleKernel knn_resample = [](const KnnResample& p) {
  with_real(p.dtype, [&](auto zero) {
    for_each_item(p.batch, p.num_threads,
                  [&](int64_t item, int threads) { resample_item<decltype(zero)>(p, item, threads); });
  });
};

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
