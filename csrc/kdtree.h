// A balanced k-d tree whose leaves are runs of consecutive points, for kernels that take a vector of queries to a leaf.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "parallel.h"
#include "isa.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {

// Points are put in the order of the leaves, column by column; the last leaf is filled up with points at infinity.
// Nodes are stored in preorder: a node over m leaves and its descendants take 2m - 1 places, so that a traversal needs
// no stack and no pointers: the next node is the first child (node + 1), or what follows the whole subtree.
template <typename T>
class KdTree {
 public:
  static constexpr int kLeafSize = 16;

  // points: (num_points, dim), num_points < 2^31.
  KdTree(const T* points, int64_t num_points, int dim, int num_threads)
      : num_points_(num_points), dim_(dim), num_leaves_((num_points + kLeafSize - 1) / kLeafSize) {
    order_.resize(static_cast<size_t>(stride()));
    for (int64_t i = 0; i < stride(); ++i) order_[i] = static_cast<int32_t>(i);
    first_leaf_.resize(static_cast<size_t>(num_nodes()));
    leaf_count_.resize(static_cast<size_t>(num_nodes()));
    boxes_.resize(static_cast<size_t>(num_nodes() * 2 * dim));
    coordinates_.resize(static_cast<size_t>(stride() * dim));
    split_all(points, num_threads);
  }

  int64_t num_points() const { return num_points_; }
  int dim() const { return dim_; }
  int64_t num_leaves() const { return num_leaves_; }
  int64_t num_nodes() const { return 2 * num_leaves_ - 1; }
  int64_t stride() const { return num_leaves_ * kLeafSize; }

  const T* column(int c) const { return coordinates_.data() + c * stride(); }
  const int32_t* order() const { return order_.data(); }  // the row of each place; num_points and above: filling
  const T* low(int64_t node) const { return boxes_.data() + node * 2 * dim_; }
  const T* high(int64_t node) const { return low(node) + dim_; }
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
  static int64_t first_half(int64_t leaves) { return (leaves + 1) / 2; }

  void split_all(const T* points, int num_threads);
  void split(const T* points, int64_t node);
  void fill_leaf(const T* points, int64_t node);
  void enclose_children(int64_t node);

  int64_t num_points_;
  int dim_;
  int64_t num_leaves_;
  std::vector<int32_t> order_;
  std::vector<int32_t> first_leaf_;
  std::vector<int32_t> leaf_count_;
  std::vector<T> boxes_;
  std::vector<T> coordinates_;
};

template <typename T>
void KdTree<T>::split_all(const T* points, int num_threads) {
  (void)num_threads;
  first_leaf_[0] = 0;
  leaf_count_[0] = static_cast<int32_t>(num_leaves_);
  for (int64_t node = 0; node < num_nodes(); ++node) {
    if (is_leaf(node)) fill_leaf(points, node);
    else split(points, node);
  }
  for (int64_t node = num_nodes() - 1; node >= 0; --node)
    if (!is_leaf(node)) enclose_children(node);
}

// Puts the lower half of a node's points, along its widest column, before the upper half.
template <typename T>
void KdTree<T>::split(const T* points, int64_t node) {
  const int64_t begin = first_leaf_[node] * kLeafSize;
  const int64_t end = begin + points_under(node);
  const int64_t step = std::max<int64_t>(1, (end - begin) / 64);
  int widest = 0;
  T spread = -1;
  for (int c = 0; c < dim_; ++c) {
    T low = std::numeric_limits<T>::infinity();
    T high = -low;
    for (int64_t i = begin; i < end; i += step) {
      const T value = points[order_[i] * static_cast<int64_t>(dim_) + c];
      low = std::min(low, value);
      high = std::max(high, value);
    }
    if (high - low > spread) {
      spread = high - low;
      widest = c;
    }
  }
  const int64_t half = first_half(leaf_count_[node]);
  const auto first = order_.begin();
  std::nth_element(first + begin, first + begin + half * kLeafSize, first + end, [&](int32_t a, int32_t b) {
    return points[a * static_cast<int64_t>(dim_) + widest] < points[b * static_cast<int64_t>(dim_) + widest];
  });
  const int64_t left = node + 1;
  const int64_t right = node + 2 * half;
  first_leaf_[left] = first_leaf_[node];
  leaf_count_[left] = static_cast<int32_t>(half);
  first_leaf_[right] = static_cast<int32_t>(first_leaf_[node] + half);
  leaf_count_[right] = static_cast<int32_t>(leaf_count_[node] - half);
}

template <typename T>
void KdTree<T>::fill_leaf(const T* points, int64_t node) {
  const int64_t begin = first_leaf_[node] * kLeafSize;
  const int64_t end = begin + points_under(node);
  for (int c = 0; c < dim_; ++c) {
    T* column = coordinates_.data() + c * stride();
    T low = std::numeric_limits<T>::infinity();
    T high = -low;
    for (int64_t i = begin; i < end; ++i) {
      const T value = points[order_[i] * static_cast<int64_t>(dim_) + c];
      column[i] = value;
      low = std::min(low, value);
      high = std::max(high, value);
    }
    for (int64_t i = end; i < begin + kLeafSize; ++i) column[i] = std::numeric_limits<T>::infinity();
    boxes_[node * 2 * dim_ + c] = low;
    boxes_[node * 2 * dim_ + dim_ + c] = high;
  }
}

template <typename T>
void KdTree<T>::enclose_children(int64_t node) {
  T* low = boxes_.data() + node * 2 * dim_;
  T* high = low + dim_;
  const int64_t left = node + 1;
  const int64_t right = second_child(node);
  for (int c = 0; c < dim_; ++c) {
    low[c] = std::min(this->low(left)[c], this->low(right)[c]);
    high[c] = std::max(this->high(left)[c], this->high(right)[c]);
  }
}

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
