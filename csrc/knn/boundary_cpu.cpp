// The neighbors nearest to the boundary of a ball, on either side of it. With one column, they are found by walking
// from the two ends of an interval of sorted values. With several columns, each point searches a k-d tree, and is
// compared with a vector of points of a leaf at a time.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "knn/batch.h"
#include "knn/kdtree.h"
#include "knn/knn.h"
#include "knn/simd_distance.h"
#include "knn/sorted_column.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {
namespace {

constexpr int64_t kPointsPerTask = 256;

// One item of a batch.
template <typename T>
struct BoundaryJob {
  const T* points;
  const T* radii;
  const int64_t* skip;
  const int64_t* rows;
  int64_t num_points;
  int dim;
  int width;
  int64_t exclude_within;
  int64_t* indices;

  bool usable(int64_t row, int64_t other) const {
    const int64_t apart = rows == nullptr ? row - other : rows[row] - rows[other];
    return std::max(apart, -apart) > exclude_within && other != skip[row];
  }
  int64_t* results(int64_t row) const { return indices + row * (2 * width + 1); }
};

// ---- One column ----------------------------------------------------------------------------------------------------

// How many of the steps 0, 1, 2, ..., limit - 1 satisfy `holds`, provided that those that do come first. Takes
// logarithmic time.
template <typename Holds>
int64_t run_length(int64_t limit, const Holds& holds) {
  int64_t length = 0;
  int64_t stride = 1;
  for (; length + stride <= limit && holds(length + stride - 1); stride *= 2) length += stride;
  for (stride /= 2; stride > 0; stride /= 2)
    if (length + stride <= limit && holds(length + stride - 1)) length += stride;
  return length;
}

template <typename T>
class LineBoundary {
 public:
  // One instance serves one thread.
  LineBoundary(const BoundaryJob<T>& job, const SortedColumn<T>& column)
      : job_(job), values_(column.values()), order_(column.order()), n_(column.size()) {}

  void run(int64_t own) {
    own_ = own;
    row_ = order_[own];
    out_ = job_.results(row_);
    int64_t* const end = out_ + 2 * job_.width + 1;
    const T radius = job_.radii[row_];
    const int64_t below = own - run_length(own, [&](int64_t s) { return distance(own - 1 - s) < radius; });
    const int64_t above = own + 1 + run_length(n_ - own - 1, [&](int64_t s) { return distance(own + 1 + s) < radius; });
    search_inwards(below, above);
    search_outwards(below, above);
    std::fill(out_, end, int64_t{-1});
  }

 private:
  T distance(int64_t place) const { return extend_distance<Metric::chebyshev>(T(0), values_[place] - values_[own_]); }
  // The number of consecutive places, starting at `place` and going in `direction`, that are at distance tied_distance.
  int64_t num_tied(int64_t place, int direction, int64_t limit, T tied_distance) const {
    if (limit < 2 || distance(place + direction) != tied_distance) return limit < 1 ? 0 : 1;
    return run_length(limit, [&](int64_t s) { return distance(place + direction * s) == tied_distance; });
  }

  // Appends neighbors from the places [left, right), the farthest first.
  void search_inwards(int64_t left, int64_t right) {
    for (remaining_ = job_.width; remaining_ > 0 && left < right;) {
      const int64_t on_left = std::max<int64_t>(0, own_ + 1 - left);
      const int64_t on_right = right - left - on_left;
      const T at_left = on_left > 0 ? distance(left) : T(-1);
      const T at_right = on_right > 0 ? distance(right - 1) : T(-1);
      const int64_t left_end = left + (at_left < at_right ? 0 : num_tied(left, +1, on_left, at_left));
      const int64_t right_begin = right - (at_right < at_left ? 0 : num_tied(right - 1, -1, on_right, at_right));
      append_nearest(left, left_end, right_begin, right);
      left = left_end;
      right = right_begin;
    }
  }

  // Appends neighbors from outside the places [left, right), the nearest first.
  void search_outwards(int64_t left, int64_t right) {
    for (remaining_ = job_.width + 1; remaining_ > 0 && (left > 0 || right < n_);) {
      // Beyond either end the distance is NaN, so that neither comparison holds.
      const T at_left = distance(left - 1);
      const T at_right = distance(right);
      const int64_t left_begin = left - (at_right < at_left ? 0 : num_tied(left - 1, -1, left, at_left));
      const int64_t right_end = right + (at_left < at_right ? 0 : num_tied(right, +1, n_ - right, at_right));
      append_nearest(left_begin, left, right, right_end);
      left = left_begin;
      right = right_end;
    }
  }

  // All places in [first, first_end) and [second, second_end) are at the same distance. Appends as many of them as are
  // still missing, those with the lowest rows.
  void append_nearest(int64_t first, int64_t first_end, int64_t second, int64_t second_end) {
    if (first_end - first + second_end - second == 1) {
      const int64_t row = order_[first < first_end ? first : second];
      if (!job_.usable(row_, row)) return;
      *out_++ = row;
      --remaining_;
      return;
    }
    tied_.clear();
    collect_usable(first, first_end);
    collect_usable(second, second_end);
    if (static_cast<int64_t>(tied_.size()) > remaining_)
      std::nth_element(tied_.begin(), tied_.begin() + remaining_, tied_.end());
    const int64_t taken = std::min(remaining_, static_cast<int64_t>(tied_.size()));
    out_ = std::copy_n(tied_.begin(), taken, out_);
    remaining_ -= taken;
  }

  // Equal values are sorted by row, so that only the first few of each run of equal values can be needed.
  void collect_usable(int64_t begin, int64_t end) {
    while (begin < end) {
      const T value = values_[begin];
      const int64_t run_end = begin + run_length(end - begin, [&](int64_t s) { return values_[begin + s] == value; });
      const int64_t run_begin = begin;
      for (int64_t taken = 0; begin < run_end && taken < remaining_; ++begin) {
        if (!job_.usable(row_, order_[begin])) continue;
        tied_.push_back(order_[begin]);
        ++taken;
      }
      polls_.add(begin - run_begin);
      begin = run_end;
    }
  }

  const BoundaryJob<T>& job_;
  const T* values_;
  const int32_t* order_;
  int64_t n_;
  int64_t own_ = 0;
  int64_t row_ = 0;
  int64_t remaining_ = 0;
  int64_t* out_ = nullptr;
  std::vector<int32_t> tied_;
  PollCounter polls_;
};

// ---- Several columns -----------------------------------------------------------------------------------------------

// The smallest keys so far in ascending order. Of equal keys, those with lower rows come first.
template <typename T>
class Smallest {
 public:
  explicit Smallest(int size) : keys_(static_cast<size_t>(size)), rows_(static_cast<size_t>(size)) {}

  void clear() {
    std::fill(keys_.begin(), keys_.end(), std::numeric_limits<T>::infinity());
    std::fill(rows_.begin(), rows_.end(), kNoRow);
  }
  T bound() const { return keys_.back(); }
  // Whether an element with this key, and with this row or a higher one, could be among the smallest.
  bool accepts(T key, int32_t row) const { return key < keys_.back() || (key == keys_.back() && row < rows_.back()); }
  void insert(T key, int32_t row) {
    size_t r = keys_.size() - 1;
    for (; r > 0 && (key < keys_[r - 1] || (key == keys_[r - 1] && row < rows_[r - 1])); --r) {
      keys_[r] = keys_[r - 1];
      rows_[r] = rows_[r - 1];
    }
    keys_[r] = key;
    rows_[r] = row;
  }
  int64_t* write(int64_t* out) const {
    for (const int32_t row : rows_) *out++ = row == kNoRow ? -1 : row;
    return out;
  }

 private:
  std::vector<T> keys_;
  std::vector<int32_t> rows_;
};

template <typename T>
class TreeBoundary {
  using V = Vector<T>;
  static constexpr int kLeafSize = KdTree<T>::kLeafSize;

 public:
  // One instance serves one thread.
  TreeBoundary(const BoundaryJob<T>& job, const KdTree<T>& tree)
      : job_(job), tree_(tree), inside_(job.width), outside_(job.width + 1) {}

  void run(int64_t place) {
    const int64_t row = tree_.order()[place];
    row_ = row;
    query_ = job_.points + row * tree_.dim();
    radius_ = job_.radii[row];
    inside_.clear();
    outside_.clear();
    // Visit nodes that the boundary intersects first: the bounds become tight early, and prune nodes far inside or
    // outside.
    Span open[KdTree<T>::kMaxDepth];
    int depth = 0;
    open[depth++] = span(0);
    while (depth > 0) {
      const Span next = open[--depth];
      if (!may_contribute(next)) continue;
      if (tree_.is_leaf(next.node)) {
        scan(tree_.first_leaf(next.node));
        continue;
      }
      Span first = span(next.node + 1);
      Span second = span(tree_.second_child(next.node));
      if (distance_to_boundary(second) < distance_to_boundary(first)) std::swap(first, second);
      open[depth++] = second;
      open[depth++] = first;
    }
    outside_.write(inside_.write(job_.results(row)));
  }

 private:
  // Bounds on the distances from the query to the points under a node.
  struct Span {
    int64_t node;
    T near;
    T far;
  };

  Span span(int64_t node) const {
    const T* low = tree_.low(node);
    const T* high = tree_.high(node);
    Span s{node, 0, 0};
    for (int c = 0; c < tree_.dim(); ++c) {
      const T below = low[c] - query_[c];
      const T above = query_[c] - high[c];
      s.near = std::max(s.near, std::max(below, above));
      s.far = std::max(s.far, std::max(-below, -above));
    }
    return s;
  }

  T distance_to_boundary(const Span& s) const { return std::max(T(0), std::max(s.near - radius_, radius_ - s.far)); }

  bool may_contribute(const Span& s) const {
    const int32_t lowest = tree_.lowest_row(s.node);
    return (s.near < radius_ && inside_.accepts(-s.far, lowest)) ||
           (s.far >= radius_ && outside_.accepts(s.near, lowest));
  }

  void scan(int64_t leaf) {
    polls_.add(tree_.dim());
    const T* points = tree_.leaf(leaf);
    const int32_t* rows = tree_.order() + leaf * kLeafSize;
    for (int first = 0; first < kLeafSize; first += kLanes<T>) {
      V distance = V{};
      for (int c = 0; c < tree_.dim(); ++c)
        distance = extend_distance<Metric::chebyshev, T>(distance, load(points + c * kLeafSize + first) - query_[c]);
      const Mask<T> inside = distance < radius_;
      const Mask<T> may = (inside & (-distance <= inside_.bound())) | (~inside & (distance <= outside_.bound()));
      if (!any<T>(may)) continue;
      for (int lane = 0; lane < kLanes<T>; ++lane)
        if (may[lane]) consider(distance[lane], rows[first + lane]);
    }
  }

  void consider(T distance, int32_t row) {
    const bool is_inside = distance < radius_;
    Smallest<T>& side = is_inside ? inside_ : outside_;
    const T key = is_inside ? -distance : distance;
    if (!side.accepts(key, row) || row >= tree_.num_points()) return;  // rows from num_points on are padding
    if (job_.usable(row_, row)) side.insert(key, row);
  }

  const BoundaryJob<T>& job_;
  const KdTree<T>& tree_;
  Smallest<T> inside_;   // by negative distance
  Smallest<T> outside_;  // by distance
  PollCounter polls_;
  int64_t row_ = 0;
  const T* query_ = nullptr;
  T radius_ = 0;
};

// Points are processed in the order of the column or the tree, so that consecutive searches find the same data in the
// cache.
template <typename Search, typename T, typename Order>
void run_all(const BoundaryJob<T>& job, const Order& order, int num_threads) {
  const int64_t n = job.num_points;
  parallel_for((n + kPointsPerTask - 1) / kPointsPerTask, num_threads, [&](int64_t task, int) {
    Search search(job, order);
    for (int64_t place = task * kPointsPerTask; place < std::min(n, (task + 1) * kPointsPerTask); ++place)
      search.run(place);
  });
}

template <typename T>
void run_boundary(const KnnBoundary& p) {
  for_each_item(p.batch, p.num_threads, [&](int64_t item, int threads) {
    const int64_t first = item * p.num_points;
    const BoundaryJob<T> job{static_cast<const T*>(p.points) + first * p.dim,
                             static_cast<const T*>(p.radii) + first,
                             p.skip + first,
                             p.rows,
                             p.num_points,
                             p.dim,
                             p.width,
                             p.exclude_within,
                             p.indices + first * (2 * p.width + 1)};
    if (p.dim == 1)
      run_all<LineBoundary<T>>(job, SortedColumn<T>(job.points, p.num_points, threads), threads);
    else
      run_all<TreeBoundary<T>>(job, KdTree<T>(job.points, p.num_points, p.dim, threads), threads);
  });
}

}  // namespace

const KnnBoundaryKernel knn_boundary = [](const KnnBoundary& p) {
  with_real(p.dtype, [&](auto zero) { run_boundary<decltype(zero)>(p); });
};

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
