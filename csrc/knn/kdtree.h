// A balanced k-d tree with leaves of kLeafSize consecutive points, for kernels that compare a vector of queries with
// all points of a leaf.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "common/isa.h"
#include "common/parallel.h"
#include "knn/counting_sort.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {

// Points are stored in the order of the leaves, and the last leaf is padded with points at infinity. Nodes are stored
// in preorder: a node with m leaves and its descendants take 2m - 1 places. A traversal therefore needs neither a stack
// nor pointers: the next node is either the first child, node + 1, or the one after the whole subtree.
template <typename T>
class KdTree {
 public:
  static constexpr int kLeafSize = 16;
  static constexpr int kSmallSubtree = 64;  // leaves
  static constexpr int kMaxDepth = 40;

  // Whether a traversal that visited this many leaves saved time by pruning. In many dimensions, it often does not.
  bool pruning_pays(int64_t leaves_visited) const { return 4 * leaves_visited < 3 * num_leaves_; }

  // points: (num_points, dim), num_points < 2^31. Unless `sorted`, the leaves hold the points in
  // the order given, and there are no nodes.
  KdTree(const T* points, int64_t num_points, int dim, int num_threads, bool sorted = true);

  bool is_sorted() const { return sorted_; }
  int64_t num_points() const { return num_points_; }
  int dim() const { return dim_; }
  int64_t num_leaves() const { return num_leaves_; }
  int64_t num_nodes() const { return 2 * num_leaves_ - 1; }
  int64_t num_places() const { return num_leaves_ * kLeafSize; }

  // (dim, kLeafSize): the points of a leaf, column by column.
  const T* leaf(int64_t leaf) const { return leaves_.data() + leaf * kLeafSize * dim_; }
  const int32_t* order() const { return order_.data(); }  // the row at each place; num_points and above: padding
  int64_t num_padding() const { return num_places() - num_points_; }  // all in the last leaf
  const T* low(int64_t node) const { return boxes_.data() + node * 2 * dim_; }
  const T* high(int64_t node) const { return low(node) + dim_; }
  int32_t lowest_row(int64_t node) const { return lowest_row_[node]; }
  int64_t first_leaf(int64_t node) const { return first_leaf_[node]; }
  int64_t leaf_count(int64_t node) const { return leaf_count_[node]; }
  bool is_leaf(int64_t node) const { return leaf_count_[node] == 1; }
  int64_t after_subtree(int64_t node) const { return node + 2 * leaf_count_[node] - 1; }
  int64_t second_child(int64_t node) const { return node + 2 * first_half(leaf_count_[node]); }
  int64_t points_under(int64_t node) const {
    const int64_t begin = first_leaf_[node] * kLeafSize;
    return std::min(begin + leaf_count_[node] * kLeafSize, num_points_) - begin;
  }

 private:
  struct Item {
    T value;
    int32_t from;
  };
  // The buffers that a thread needs to split a node.
  struct Scratch {
    PollCounter polls;
    std::vector<Item> items;
    std::vector<uint16_t> buckets;
    std::vector<uint32_t> ends;
    std::vector<T> column;
    std::vector<int32_t> order;
  };
  struct Range {
    T low;
    T high;
  };

  static int64_t first_half(int64_t leaves) { return (leaves + 1) / 2; }
  T* column(int c) { return columns_.data() + c * num_points_; }
  int64_t first_place(int64_t node) const { return first_leaf_[node] * int64_t{kLeafSize}; }

  void lay_out_nodes();
  void copy_leaves(const T* points, int num_threads);
  void split_all(int num_threads);
  void split_subtree(int64_t node, Scratch& scratch);
  void split(int64_t node, int num_threads, Scratch& scratch, std::vector<int64_t>& parts);
  template <typename Value>
  static void rearrange(Value* values, const std::vector<Item>& items, int64_t n, int num_threads,
                        std::vector<Value>& scratch);
  int widest_column(int64_t begin, int64_t end, Range& range) const;
  void list_parts(int64_t node, int levels, std::vector<int64_t>& parts) const;
  void fill_leaf(int64_t node);
  void merge_child_boxes(int64_t node);
  void merge_boxes_above(int64_t node, const std::vector<int64_t>& parts);

  bool sorted_;
  int64_t num_points_;
  int dim_;
  int64_t num_leaves_;
  std::vector<int32_t> order_;
  std::vector<int32_t> first_leaf_;
  std::vector<int32_t> leaf_count_;
  std::vector<int32_t> lowest_row_;
  std::vector<T> boxes_;
  std::vector<T> columns_;  // only while building: (dim, num_points), in the current order
  std::vector<T> leaves_;
};

template <typename T>
KdTree<T>::KdTree(const T* points, int64_t num_points, int dim, int num_threads, bool sorted)
    : sorted_(sorted),
      num_points_(num_points),
      dim_(dim),
      num_leaves_((num_points + kLeafSize - 1) / kLeafSize),
      order_(static_cast<size_t>(num_places())),
      first_leaf_(static_cast<size_t>(sorted ? num_nodes() : 0)),
      leaf_count_(static_cast<size_t>(sorted ? num_nodes() : 0)),
      lowest_row_(static_cast<size_t>(sorted ? num_nodes() : 0)),
      boxes_(static_cast<size_t>(sorted ? num_nodes() * 2 * dim : 0)),
      columns_(static_cast<size_t>(sorted ? num_points * dim : 0)),
      leaves_(static_cast<size_t>(num_places() * dim), std::numeric_limits<T>::infinity()) {
  for (int64_t i = 0; i < num_places(); ++i) order_[i] = static_cast<int32_t>(i);
  if (!sorted) {
    copy_leaves(points, num_threads);
    return;
  }
  for_each_run(num_points, num_threads, [&](int64_t from, int64_t to, int64_t) {
    for (int c = 0; c < dim_; ++c)
      for (int64_t i = from; i < to; ++i) column(c)[i] = points[i * dim_ + c];
  });
  lay_out_nodes();
  split_all(num_threads);
  std::vector<T>().swap(columns_);
}

template <typename T>
void KdTree<T>::copy_leaves(const T* points, int num_threads) {
  for_each_run(num_leaves_, num_threads, [&](int64_t from, int64_t to, int64_t) {
    for (int64_t leaf = from; leaf < to; ++leaf) {
      T* const columns = leaves_.data() + leaf * kLeafSize * dim_;
      const int64_t num = std::min<int64_t>(kLeafSize, num_points_ - leaf * kLeafSize);
      for (int64_t i = 0; i < num; ++i)
        for (int c = 0; c < dim_; ++c) columns[c * kLeafSize + i] = points[(leaf * kLeafSize + i) * dim_ + c];
    }
  });
}

template <typename T>
void KdTree<T>::lay_out_nodes() {
  first_leaf_[0] = 0;
  leaf_count_[0] = static_cast<int32_t>(num_leaves_);
  for (int64_t node = 0; node < num_nodes(); ++node) {
    if (is_leaf(node)) continue;
    const auto half = static_cast<int32_t>(first_half(leaf_count_[node]));
    first_leaf_[node + 1] = first_leaf_[node];
    leaf_count_[node + 1] = half;
    first_leaf_[second_child(node)] = first_leaf_[node] + half;
    leaf_count_[second_child(node)] = leaf_count_[node] - half;
  }
}

template <typename T>
void KdTree<T>::split_all(int num_threads) {
  std::vector<int64_t> parts{0};
  if (num_threads > 1) {  // split large nodes one after another, until there are enough subtrees for all threads
    Scratch scratch;
    std::vector<int64_t> smaller;
    while (parts.size() < 4 * static_cast<size_t>(num_threads) && leaf_count_[parts.front()] > kSmallSubtree) {
      for (const int64_t node : parts) split(node, num_threads, scratch, smaller);
      parts.swap(smaller);
      smaller.clear();
    }
  }
  parallel_for(static_cast<int64_t>(parts.size()), num_threads, [&](int64_t task, int) {
    Scratch scratch;
    split_subtree(parts[task], scratch);
    const int64_t nodes_end = after_subtree(parts[task]);
    const auto finish_nodes = [&](int64_t begin, int64_t end) {
      for (int64_t node = nodes_end - 1 - begin; node >= nodes_end - end; --node) {
        if (is_leaf(node))
          fill_leaf(node);
        else
          merge_child_boxes(node);
      }
    };
    for_each_piece(0, nodes_end - parts[task], finish_nodes, kLeafSize);
  });
  merge_boxes_above(0, parts);
}

// Sets the boxes of the nodes above `parts`, which must be sorted and have their own boxes already.
template <typename T>
void KdTree<T>::merge_boxes_above(int64_t node, const std::vector<int64_t>& parts) {
  if (std::binary_search(parts.begin(), parts.end(), node)) return;
  merge_boxes_above(node + 1, parts);
  merge_boxes_above(second_child(node), parts);
  merge_child_boxes(node);
}

template <typename T>
void KdTree<T>::split_subtree(int64_t node, Scratch& scratch) {
  std::vector<int64_t> open{node};
  while (!open.empty()) {
    const int64_t next = open.back();
    open.pop_back();
    split(next, 1, scratch, open);
  }
}

// Splits a node's points along their widest column among its descendants a few levels below, which are appended to
// `parts`. A counting sort does most of the work, because a selection by comparisons would mispredict every other
// branch.
template <typename T>
void KdTree<T>::split(int64_t node, int num_threads, Scratch& scratch, std::vector<int64_t>& parts) {
  if (is_leaf(node)) return;
  const int64_t begin = first_place(node);
  const int64_t n = points_under(node);
  scratch.polls.add(n);
  Range range;
  const int widest = widest_column(begin, begin + n, range);
  T* const values = column(widest) + begin;

  int log_leaves = 0;
  while (leaf_count_[node] >> (log_leaves + 1) != 0) ++log_leaves;
  const int levels = std::max(1, std::min(5, log_leaves / dim_));
  const size_t first_part = parts.size();
  list_parts(node, levels, parts);

  const auto num_buckets = static_cast<uint32_t>(std::max<int64_t>(32, std::min<int64_t>(2048, n / 2)));
  scratch.buckets.resize(static_cast<size_t>(n));
  scratch.items.resize(static_cast<size_t>(n));
  const T width = range.high - range.low;
  const T scale = width > 0 ? static_cast<T>(num_buckets) / width : T(0);
  for_each_run(n, num_threads, [&](int64_t from, int64_t to, int64_t) {
    for (int64_t i = from; i < to; ++i) {
      // The range is estimated from a sample, so values outside of it go to the outermost buckets.
      const T scaled = std::max(T(0), std::min((values[i] - range.low) * scale, static_cast<T>(num_buckets - 1)));
      scratch.buckets[i] = static_cast<uint16_t>(static_cast<int>(scaled));
    }
  });
  counting_sort(
      n, num_buckets, num_threads, scratch.ends, [&](int64_t i) { return scratch.buckets[i]; },
      [&](int64_t i, uint32_t place) { scratch.items[place] = {values[i], static_cast<int32_t>(i)}; });
  // Where a cut falls inside a bucket, partition the bucket exactly.
  int64_t settled = 0;
  int bucket = 0;
  for (size_t part = first_part + 1; part < parts.size(); ++part) {
    const int64_t cut = first_place(parts[part]) - begin;
    while (scratch.ends[bucket] <= cut) settled = scratch.ends[bucket++];
    const auto items = scratch.items.begin();
    if (settled < cut)
      std::nth_element(items + settled, items + cut, items + scratch.ends[bucket],
                       [](const Item& a, const Item& b) { return a.value < b.value; });
    scratch.polls.add(scratch.ends[bucket] - settled);
    settled = cut;
  }

  scratch.column.resize(static_cast<size_t>(n));
  scratch.order.resize(static_cast<size_t>(n));
  for (int c = 0; c < dim_; ++c) rearrange(column(c) + begin, scratch.items, n, num_threads, scratch.column);
  rearrange(order_.data() + begin, scratch.items, n, num_threads, scratch.order);
}

template <typename T>
template <typename Value>
void KdTree<T>::rearrange(Value* values, const std::vector<Item>& items, int64_t n, int num_threads,
                          std::vector<Value>& scratch) {
  for_each_run(n, num_threads, [&](int64_t from, int64_t to, int64_t) {
    for (int64_t i = from; i < to; ++i) scratch[i] = values[items[i].from];
  });
  for_each_run(n, num_threads, [&](int64_t from, int64_t to, int64_t) {
    std::copy(scratch.begin() + from, scratch.begin() + to, values + from);
  });
}

template <typename T>
int KdTree<T>::widest_column(int64_t begin, int64_t end, Range& range) const {
  constexpr int64_t kSample = 64;
  const int64_t step = std::max<int64_t>(1, (end - begin) / kSample);
  int widest = 0;
  range = {0, -1};
  for (int c = 0; c < dim_; ++c) {
    const T* column = columns_.data() + c * num_points_;
    T low = column[begin];
    T high = low;
    for (int64_t i = begin; i < end; i += step) {
      low = std::min(low, column[i]);
      high = std::max(high, column[i]);
    }
    if (high - low > range.high - range.low) {
      range = {low, high};
      widest = c;
    }
  }
  return widest;
}

// Lists the descendants `levels` below a node, or leaves where there are fewer levels, in order.
template <typename T>
void KdTree<T>::list_parts(int64_t node, int levels, std::vector<int64_t>& parts) const {
  if (levels == 0 || is_leaf(node)) {
    parts.push_back(node);
    return;
  }
  list_parts(node + 1, levels - 1, parts);
  list_parts(second_child(node), levels - 1, parts);
}

template <typename T>
void KdTree<T>::fill_leaf(int64_t node) {
  const int64_t begin = first_place(node);
  const int64_t n = points_under(node);
  lowest_row_[node] = *std::min_element(order_.begin() + begin, order_.begin() + begin + n);
  T* leaf = leaves_.data() + begin * dim_;
  for (int c = 0; c < dim_; ++c, leaf += kLeafSize) {
    const T* const values = column(c) + begin;
    T low = values[0];
    T high = low;
    for (int64_t i = 0; i < n; ++i) {
      leaf[i] = values[i];
      low = std::min(low, values[i]);
      high = std::max(high, values[i]);
    }
    boxes_[node * 2 * dim_ + c] = low;
    boxes_[node * 2 * dim_ + dim_ + c] = high;
  }
}

template <typename T>
void KdTree<T>::merge_child_boxes(int64_t node) {
  T* low = boxes_.data() + node * 2 * dim_;
  T* high = low + dim_;
  const int64_t left = node + 1;
  const int64_t right = second_child(node);
  lowest_row_[node] = std::min(lowest_row_[left], lowest_row_[right]);
  for (int c = 0; c < dim_; ++c) {
    low[c] = std::min(this->low(left)[c], this->low(right)[c]);
    high[c] = std::max(this->high(left)[c], this->high(right)[c]);
  }
}

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
