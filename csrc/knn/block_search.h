// The k nearest neighbors of the queries of a leaf, where k is too large for a list that is kept in order. A leaf of
// points is compared with one query at a time, in vectors of points. Points nearer than a bound are collected, and when
// there are more than enough of them, the k nearest are selected, which tightens the bound.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "common/parallel.h"
#include "knn/search_job.h"
#include "knn/select.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {

// kDim is the number of columns, or 0 if it is known only at run time. kRows: the neighbors' rows are kept, too. One
// instance serves one task.
template <typename T, Metric M, int kDim, bool kRows>
class BlockSearch {
  using V = Vector<T>;
  using I = Mask<T>;
  using Place = LaneInt<T>;
  static constexpr int kLeafSize = KdTree<T>::kLeafSize;
  static constexpr int kParts = kLeafSize / kLanes<T>;
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();
  // Leaves that one query after another is compared with, all of them before the next query's turn, in bytes: they
  // should stay in the second cache; and if there are more of them, how many at a time, for the first cache.
  static constexpr int64_t kAllAtOnce = 1 << 18;
  static constexpr int64_t kAtATime = 1 << 14;

 public:
  explicit BlockSearch(const SearchJob<T>& job)
      : job_(job), tree_(job.points), limit_(std::min<int64_t>(2 * int64_t{job.k()} + 64, tree_.num_places())) {}

  // Searches for the queries of a leaf of their tree.
  void run(int64_t leaf) {
    const int64_t begin = leaf * kLeafSize;
    const int num = static_cast<int>(std::min<int64_t>(kLeafSize, job_.queries.num_points() - begin));
    queries_ = job_.queries.leaf(leaf);
    first_query_ = begin;
    own_leaf_ = job_.among_themselves() ? leaf : -1;
    if (leaf % kGroup == 0) group_radius_ = -1;
    low_.resize(static_cast<size_t>(dim()));
    high_.resize(static_cast<size_t>(dim()));
    for (int c = 0; c < dim(); ++c) {
      low_[c] = *std::min_element(queries_ + c * kLeafSize, queries_ + c * kLeafSize + num);
      high_[c] = *std::max_element(queries_ + c * kLeafSize, queries_ + c * kLeafSize + num);
    }
    // A guess of how far the neighbors are. Where it was too short for a query, that one searches again.
    T radius = guess_ < 0 ? first_guess() : guess_;
    guess_ = 0;
    uint32_t waiting = (uint32_t{1} << num) - 1;
    for (int attempt = 0; waiting != 0; ++attempt) {
      list_leaves(radius);
      scan(radius, waiting);
      radius = attempt < 3 && fewest_ > 0 ? radius * widening() : kInfinity;
    }
  }

 private:
  static constexpr int64_t kGroup = 8;                                          // leaves whose queries share a list
  static constexpr T kGroupSpare = is_largest_of_columns(M) ? T(1.2) : T(1.4);  // for the guesses of the others

  // Radii that are guessed are longer by so much.
  static constexpr T kSpare = is_largest_of_columns(M) ? T(1.05) : T(1.1);

  struct Query {
    T bound;
    int64_t count;
  };

  // Leaves of the tree, and their boxes column by column.
  struct Leaves {
    std::vector<Place> leaves;
    std::vector<T> boxes;  // (2 * dim, stride)
    int64_t size = 0;
    int64_t stride = 0;

    // Makes room for some leaves, and for the lanes that the last vector writes in vain.
    void resize(int64_t most, int dim) {
      stride = rounded_up(most, kLanes<T>) + kLanes<T>;
      leaves.resize(static_cast<size_t>(stride));
      boxes.resize(static_cast<size_t>(2 * dim * stride));
    }
    T* low(int c) { return boxes.data() + 2 * c * stride; }
    T* high(int c) { return boxes.data() + (2 * c + 1) * stride; }
  };

  // How much farther k neighbors are, if the density around the query that found the fewest stays the same.
  T widening() const {
    const double ratio = 1.5 * static_cast<double>(job_.k()) / static_cast<double>(fewest_);
    return static_cast<T>(std::pow(ratio, (is_largest_of_columns(M) ? 1.0 : 2.0) / dim()));
  }

  int dim() const { return kDim ? kDim : tree_.dim(); }
  int64_t leaf_bytes() const { return int64_t{kLeafSize} * dim() * static_cast<int64_t>(sizeof(T)); }

  // The k-th distance from the first query among the points of some subtree near it.
  T first_guess() {
    if (!tree_.is_sorted()) return kInfinity;
    const int64_t wanted = std::min(tree_.num_points(), job_.k() + 1 + 2 * std::max<int64_t>(0, job_.exclude_within()));
    int64_t node = 0;
    while (!tree_.is_leaf(node)) {
      const int64_t left = node + 1;
      const int64_t right = tree_.second_child(node);
      const auto distance = [&](int64_t child) { return box_distance(child, low_.data(), high_.data()); };
      const int64_t nearer = distance(left) <= distance(right) ? left : right;
      if (tree_.points_under(nearer) < wanted) break;
      node = nearer;
    }
    std::vector<T> distances;
    for (int64_t leaf = tree_.first_leaf(node); leaf < tree_.first_leaf(node) + tree_.leaf_count(node); ++leaf) {
      for (int i = 0; i < kLeafSize; ++i) {
        T distance = 0;
        for (int c = 0; c < dim(); ++c)
          distance = extend_distance<M>(distance, tree_.leaf(leaf)[c * kLeafSize + i] - queries_[c * kLeafSize]);
        distances.push_back(distance);
      }
    }
    polls_.add(static_cast<int64_t>(distances.size()) * dim());
    return kSpare * selection_.value_at(distances.data(), static_cast<int64_t>(distances.size()), wanted - 1);
  }

  // From a box to the box of a node.
  T box_distance(int64_t node, const T* low, const T* high) const {
    T distance = 0;
    for (int c = 0; c < dim(); ++c) {
      const T outside = std::max(tree_.low(node)[c] - high[c], low[c] - tree_.high(node)[c]);
      distance = extend_distance<M>(distance, std::max(outside, T(0)));
    }
    return distance;
  }

  // Lists the leaves that may have points within the radius of some query. The list starts near the queries: what is
  // found there tightens the bounds.
  void list_leaves(T radius) {
    if (!tree_.is_sorted()) return list_all_leaves();
    if (!(radius <= group_radius_)) list_leaves_of_group(radius);
    listed_.resize(group_.size, dim());
    const int64_t start = start_in_group();
    int64_t count = keep_near(start, group_.size, radius, 0);
    listed_.size = keep_near(0, start, radius, count);
    polls_.add(group_.size * dim());
  }

  // Lists the leaves that may have points within about the radius of some query of the group, which lie close together.
  void list_leaves_of_group(T radius) {
    std::vector<T>& low = group_low_;
    std::vector<T>& high = group_high_;
    low = low_;
    high = high_;
    const int64_t begin = first_query_ / (kGroup * kLeafSize) * (kGroup * kLeafSize);
    const int64_t end = std::min(begin + kGroup * kLeafSize, job_.queries.num_points());
    for (int64_t place = begin; place < end; ++place) {
      const T* query = job_.queries.leaf(place / kLeafSize) + place % kLeafSize;
      for (int c = 0; c < dim(); ++c) {
        low[c] = std::min(low[c], query[c * kLeafSize]);
        high[c] = std::max(high[c], query[c * kLeafSize]);
      }
    }
    group_radius_ = kGroupSpare * radius;
    group_nodes_.clear();
    nearest_in_group_ = 0;
    T nearest = kInfinity;
    for (int64_t node = 0; node < tree_.num_nodes();) {
      const T distance = box_distance(node, low.data(), high.data());
      if (!(distance <= group_radius_)) {
        node = tree_.after_subtree(node);
        continue;
      }
      if (tree_.is_leaf(node)) {
        if (distance < nearest) {
          nearest = distance;
          nearest_in_group_ = static_cast<int64_t>(group_nodes_.size());
        }
        group_nodes_.push_back(static_cast<Place>(node));
      }
      ++node;
    }
    group_.resize(static_cast<int64_t>(group_nodes_.size()), dim());
    group_.size = static_cast<int64_t>(group_nodes_.size());
    for (int64_t i = 0; i < group_.size; ++i) {
      const int64_t node = group_nodes_[static_cast<size_t>(i)];
      for (int c = 0; c < dim(); ++c) {
        group_.low(c)[i] = tree_.low(node)[c];
        group_.high(c)[i] = tree_.high(node)[c];
      }
      group_.leaves[static_cast<size_t>(i)] = static_cast<Place>(tree_.first_leaf(node));
    }
    polls_.add(2 * group_.size * dim());
  }

  // Where in the group's list the leaves near the queries begin.
  int64_t start_in_group() const {
    int64_t nearest = nearest_in_group_;
    if (own_leaf_ >= 0) {
      const auto begin = group_.leaves.begin();
      nearest = std::lower_bound(begin, begin + group_.size, static_cast<Place>(own_leaf_)) - begin;
    }
    const int64_t before = kAtATime / leaf_bytes() / 2;
    return nearest <= before ? 0 : (nearest - before) / kLanes<T> * kLanes<T>;
  }

  // Appends the leaves of the group in [begin, end) that are near enough, and their boxes; returns their new number.
  int64_t keep_near(int64_t begin, int64_t end, T radius, int64_t count) {
    for (int64_t i = begin; i < end; i += kLanes<T>) {
      V distance = V{};
      for (int c = 0; c < dim(); ++c) {
        const V below = load(group_.low(c) + i) - high_[c];
        const V above = low_[c] - load(group_.high(c) + i);
        distance = extend_distance<M, T>(distance, maximum(maximum(below, above), V{}));
      }
      uint32_t bits = lane_bits<T>(distance <= radius);
      if (end - i < kLanes<T>) bits &= (uint32_t{1} << (end - i)) - 1;
      if (bits == 0) continue;
      store_selected<T>(listed_.leaves.data() + count, load_ints<T>(group_.leaves.data() + i), bits);
      for (int c = 0; c < dim(); ++c) {
        store_selected<T>(listed_.low(c) + count, load(group_.low(c) + i), bits);
        store_selected<T>(listed_.high(c) + count, load(group_.high(c) + i), bits);
      }
      count += count_bits(bits);
    }
    return count;
  }

  void list_all_leaves() {
    if (listed_.size > 0) return;
    listed_.size = tree_.num_leaves();
    for (int64_t leaf = 0; leaf < listed_.size; ++leaf) listed_.leaves.push_back(static_cast<Place>(leaf));
    boxes_pay_ = false;
  }

  // Compares the listed leaves with the waiting queries, and writes the results of those that found enough.
  void scan(T radius, uint32_t& waiting) {
    const bool at_once = listed_.size * leaf_bytes() <= kAllAtOnce;
    const int64_t chunk = at_once ? std::max<int64_t>(listed_.size, 1)
                                  : rounded_up(std::max<int64_t>(1, kAtATime / leaf_bytes()), kLanes<T>);
    const size_t room = static_cast<size_t>(limit_ + kLeafSize + kLanes<T>);
    values_.resize(room * (at_once ? 1 : kLeafSize));
    if (kRows) places_.resize(values_.size());
    near_.resize(static_cast<size_t>(chunk + kLanes<T>));
    fewest_ = job_.k();
    const T bound = kRows || radius == kInfinity ? radius : std::nextafter(radius, kInfinity);
    Query states[kLeafSize];
    for (Query& query : states) query = {bound, 0};
    for (int64_t begin = 0; begin < listed_.size; begin += chunk) {
      const int64_t end = std::min(begin + chunk, listed_.size);
      for (uint32_t left = waiting; left != 0; left &= left - 1) {
        const int q = __builtin_ctz(left);
        T* values = values_.data() + (at_once ? 0 : room * static_cast<size_t>(q));
        Place* places = kRows ? places_.data() + (values - values_.data()) : nullptr;
        compare(q, begin, end, states[q], values, places);
        polls_.add((end - begin) * dim());
        if (end == listed_.size && finish(q, states[q].count, values, places, radius == kInfinity))
          waiting &= ~(uint32_t{1} << q);
      }
    }
    if (listed_.size == 0 && radius == kInfinity) waiting = 0;
  }

  // The first query's share of leaves whose boxes are near enough decides whether the boxes are looked at.
  void compare(int q, int64_t begin, int64_t end, Query& state, T* values, Place* places) {
    const T* const own = queries_ + q;
    T bound = state.bound;
    int64_t num_near = 0;
    if (boxes_pay_) {
      for (int64_t i = begin; i < end; i += kLanes<T>) {
        V distance = V{};
        for (int c = 0; c < dim(); ++c) {
          const T value = own[c * kLeafSize];
          const V low = load(listed_.low(c) + i);
          const V high = load(listed_.high(c) + i);
          distance = extend_distance<M, T>(distance, maximum(maximum(low - value, value - high), V{}));
        }
        uint32_t bits = lane_bits<T>(distance <= bound);
        if (end - i < kLanes<T>) bits &= (uint32_t{1} << (end - i)) - 1;
        store_selected<T>(near_.data() + num_near, load_ints<T>(listed_.leaves.data() + i), bits);
        num_near += count_bits(bits);
      }
      tested_ += end - begin;
      passed_ += num_near;
      if (tested_ > 1000) boxes_pay_ = 8 * passed_ < 7 * tested_;
    } else {
      std::copy(listed_.leaves.begin() + begin, listed_.leaves.begin() + end, near_.begin());
      num_near = end - begin;
    }
    int64_t count = state.count;
    const int64_t window = job_.exclude_within();
    const int64_t last_leaf = tree_.num_leaves() - 1;
    for (int64_t i = 0; i < num_near; ++i) {
      const int64_t leaf = near_[static_cast<size_t>(i)];
      const T* points = tree_.leaf(leaf);
      V distances[kParts] = {};
      for (int c = 0; c < dim(); ++c, points += kLeafSize) {
        const V value = broadcast(own[c * kLeafSize]);
        for (int part = 0; part < kParts; ++part)
          distances[part] = extend_distance<M, T>(distances[part], load(points + part * kLanes<T>) - value);
      }
      I near[kParts];
      I some = I{};
      for (int part = 0; part < kParts; ++part) {
        near[part] = within<kRows, T>(distances[part], broadcast(bound));
        some |= near[part];
      }
      if (!any<T>(some)) continue;
      if (window > 0 || leaf == own_leaf_ || (kRows && leaf == last_leaf)) leave_out(q, leaf, window, near);
      for (int part = 0; part < kParts; ++part) {
        const uint32_t bits = lane_bits<T>(near[part]);
        store_selected<T>(values + count, distances[part], bits);
        if constexpr (kRows)
          store_selected<T>(places + count, iota() + static_cast<Place>(leaf * kLeafSize + part * kLanes<T>), bits);
        count += count_bits(bits);
      }
      if (count > limit_) {
        bound = keep_nearest(values, places, count, job_.k());
        count = job_.k();
      }
    }
    state = {bound, count};
  }

  static I iota() {
    I lanes;
    for (int lane = 0; lane < kLanes<T>; ++lane) lanes[lane] = lane;
    return lanes;
  }

  // Clears the points that are no neighbors: those within the window, and those that pad the last leaf.
  void leave_out(int q, int64_t leaf, int64_t window, I* near) const {
    for (int part = 0; part < kParts; ++part) {
      const int64_t place = leaf * kLeafSize + part * kLanes<T>;
      if (window >= 0) {
        const I apart = load_ints<T>(job_.rows + place) - job_.rows[first_query_ + q];
        near[part] &= (apart > static_cast<Place>(window)) | (apart < static_cast<Place>(-window));
      }
      near[part] &= iota() + static_cast<Place>(place) < static_cast<Place>(tree_.num_points());
    }
  }

  // Moves the k nearest of `count` candidates, which are more, to the front, and returns the k-th distance. Among
  // equal distances lower rows are taken.
  T keep_nearest(T* values, Place* places, int64_t count, int64_t k) {
    const T last = selection_.value_at(values, count, k - 1);
    int64_t kept = 0;
    ties_.clear();
    for (int64_t i = 0; i < count; i += kLanes<T>) {
      const V v = load(values + i);
      const uint32_t valid = count - i < kLanes<T> ? (uint32_t{1} << (count - i)) - 1 : kAllLanes<T>;
      const uint32_t nearer = lane_bits<T>(v < last) & valid;
      if constexpr (kRows) {
        const I place = load_ints<T>(places + i);
        for (uint32_t equal = lane_bits<T>(v == last) & valid; equal != 0; equal &= equal - 1)
          ties_.push_back(place[__builtin_ctz(equal)]);
        store_selected<T>(places + kept, place, nearer);
      }
      store_selected<T>(values + kept, v, nearer);
      kept += count_bits(nearer);
    }
    if constexpr (kRows) {
      const auto wanted = ties_.begin() + (k - kept);
      const int32_t* const order = tree_.order();
      if (wanted != ties_.end())
        std::nth_element(ties_.begin(), wanted, ties_.end(), [order](Place a, Place b) { return order[a] < order[b]; });
      std::copy(ties_.begin(), wanted, places + kept);
    }
    std::fill(values + kept, values + k, last);
    return last;
  }

  // Writes the results of a query, if enough neighbors were found or there are no more.
  bool finish(int q, int64_t count, T* values, Place* places, bool has_seen_all) {
    const int64_t k = job_.k();
    if (count < k && !has_seen_all) {
      fewest_ = std::min(fewest_, count);
      return false;
    }
    const int64_t row = job_.queries.order()[first_query_ + q];
    if (job_.search.num_ks > 0) {
      write_each_k(row, count, values, places);
      return true;
    }
    if (count > k) keep_nearest(values, places, count, k);
    const int64_t num = std::min(count, k);
    for (int64_t i = 0; i < num; ++i) places[i] = tree_.order()[places[i]];
    sort_.sort(values, places, num);
    guess_ = num < k ? kInfinity : std::max(guess_, kSpare * values[k - 1]);
    T* const distances = job_.distances(row);
    std::copy(values, values + num, distances);
    std::fill(distances + num, distances + k, kInfinity);
    if (int64_t* const indices = job_.indices(row)) {
      std::copy(places, places + num, indices);
      std::fill(indices + num, indices + k, int64_t{kNoRow});
    }
    return true;
  }

  void write_each_k(int64_t row, int64_t count, T* values, Place* places) {
    bool is_first = true;
    for (const int which : job_.by_k) {
      const int64_t k = job_.search.ks[which];
      T distance = kInfinity;
      if (count >= k) {
        distance = count > k && (kRows || which != job_.by_k.back()) ? keep_nearest(values, places, count, k)
                                                                     : selection_.value_at(values, count, k - 1);
        count = k;
      }
      if (is_first) guess_ = std::max(guess_, kSpare * distance);
      is_first = false;
      job_.kth_distance(which, row) = distance;
      if constexpr (kRows) write_reaches(job_, which, row, count, [&](int64_t i) { return tree_.order()[places[i]]; });
    }
  }

  const SearchJob<T>& job_;
  const KdTree<T>& tree_;
  const int64_t limit_;  // of the number of candidates
  PollCounter polls_;

  // The queries of the current leaf, and their box.
  const T* queries_ = nullptr;
  int64_t first_query_ = 0;
  int64_t own_leaf_ = -1;
  std::vector<T> low_, high_;
  T guess_ = -1;
  int64_t fewest_ = 0;  // neighbors found for one of them, of those that have not found enough

  // The leaves near the queries of some consecutive leaves.
  Leaves group_;
  T group_radius_ = -1;  // negative: not listed yet
  int64_t nearest_in_group_ = 0;
  std::vector<T> group_low_, group_high_;
  std::vector<Place> group_nodes_;

  // The leaves that the queries of the current leaf are compared with, and those that one query is compared with.
  Leaves listed_;
  std::vector<Place> near_;
  bool boxes_pay_ = true;
  int64_t tested_ = 0, passed_ = 0;

  // Candidates of one query, or of each.
  std::vector<T> values_;
  std::vector<Place> places_, ties_;
  Selection<T> selection_;
  PairSort<T> sort_;
};

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
