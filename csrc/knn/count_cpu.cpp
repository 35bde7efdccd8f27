// Counts of neighbors within a radius. With one column, they are found by bisection of sorted values. With several
// columns, they are sums over the nodes of a k-d tree.
#include <cstdint>
#include <limits>
#include <vector>

#include "knn/batch.h"
#include "knn/kdtree.h"
#include "knn/knn.h"
#include "knn/simd_distance.h"
#include "knn/sorted_column.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {
namespace {

constexpr int64_t kLeavesPerTask = 16;
constexpr int64_t kPlacesPerTask = 4096;

// ---- One column ----------------------------------------------------------------------------------------------------

// The number of vectors of bisections that run interleaved, so that the processor can overlap their loads.
constexpr int kInterleaved = 2;

template <typename T>
struct LineQueries {
  static constexpr int kSize = kInterleaved * kLanes<T>;
  LaneInt<T> place[kSize];
  T value[kSize];
  T radius[kSize];
};

// For each query, counts the places beyond its own, in one direction, that lie within its radius. The difference to a
// place is computed exactly as in a search, and increases monotonically with the place.
template <typename T, Metric M, bool kInclusive, int kDirection>
void count_beyond(const SortedColumn<T>& column, const LineQueries<T>& queries, LaneInt<T>* counts) {
  using I = Mask<T>;
  const I end = I{} + static_cast<LaneInt<T>>(kDirection > 0 ? column.size() : -1);
  const auto inside = [&](int v, I steps) {
    I place = load_ints<T>(queries.place + v * kLanes<T>) + kDirection * steps;
    place = (kDirection > 0 ? place < end : place > end) ? place : end;
    const Vector<T> difference = gather<T>(column.values(), place) - load(queries.value + v * kLanes<T>);
    return within<kInclusive, T>(distance_in_one_column<M, T>(difference), load(queries.radius + v * kLanes<T>));
  };
  LaneInt<T> stride = 16;
  for (I some = ~I{}; any<T>(some);) {
    stride *= 2;
    some = I{};
    for (int v = 0; v < kInterleaved; ++v) some |= inside(v, I{} + stride);
  }
  I found[kInterleaved] = {};
  for (stride /= 2; stride > 0; stride /= 2)
    for (int v = 0; v < kInterleaved; ++v) found[v] += inside(v, found[v] + stride) & stride;
  std::memcpy(counts, found, sizeof(found));
}

template <typename T, Metric M, bool kInclusive>
void count_on_line(const SortedColumn<T>& column, const T* radii, int64_t* counts, int num_threads) {
  const int64_t n = column.size();
  parallel_for((n + kPlacesPerTask - 1) / kPlacesPerTask, num_threads, [&](int64_t task, int) {
    const int64_t task_end = std::min(n, (task + 1) * kPlacesPerTask);
    for (int64_t first = task * kPlacesPerTask; first < task_end; first += LineQueries<T>::kSize) {
      LineQueries<T> queries;
      for (int i = 0; i < LineQueries<T>::kSize; ++i) {
        const int64_t place = std::min(first + i, n - 1);
        queries.place[i] = static_cast<LaneInt<T>>(place);
        queries.value[i] = column.values()[place];
        queries.radius[i] = radii[column.order()[place]];
      }
      LaneInt<T> below[LineQueries<T>::kSize];
      LaneInt<T> above[LineQueries<T>::kSize];
      count_beyond<T, M, kInclusive, -1>(column, queries, below);
      count_beyond<T, M, kInclusive, +1>(column, queries, above);
      for (int i = 0; i < LineQueries<T>::kSize && first + i < task_end; ++i)
        counts[column.order()[first + i]] = below[i] + above[i];
    }
  });
}

// ---- Several columns -----------------------------------------------------------------------------------------------

template <typename T>
struct CountJob {
  const KdTree<T>& tree;
  const int32_t* groups;
  int num_groups;
  const T* radii;  // (num_groups, num_points)
  int64_t* counts;
};

// kGrouped: there are several groups of columns, each with its own radius.
template <typename T, Metric M, bool kInclusive, bool kGrouped>
class GroupCount {
  using V = Vector<T>;
  using I = Mask<T>;
  static constexpr int kLeafSize = KdTree<T>::kLeafSize;

 public:
  // One instance serves one thread.
  explicit GroupCount(const CountJob<T>& job)
      : job_(job),
        tree_(job.tree),
        query_(static_cast<size_t>(tree_.dim() * kLanes<T>)),
        radii_(static_cast<size_t>(job.num_groups * kLanes<T>)) {}

  // Counts for the points at `num` places, where num is at most the number of lanes. Returns the number of leaves
  // visited.
  int64_t run(const int64_t* places, int num) {
    const int64_t n = tree_.num_points();
    for (int lane = 0; lane < kLanes<T>; ++lane) {
      const int64_t place = places[lane < num ? lane : 0];
      const T* own = tree_.leaf(place / kLeafSize) + place % kLeafSize;
      for (int c = 0; c < tree_.dim(); ++c) query_[static_cast<size_t>(c * kLanes<T> + lane)] = own[c * kLeafSize];
      for (int g = 0; g < job_.num_groups; ++g)
        radii_[static_cast<size_t>(g * kLanes<T> + lane)] =
            lane < num ? job_.radii[g * n + tree_.order()[place]] : T(-1);
    }

    int64_t leaves_visited = 0;
    const I counts = count_tree(leaves_visited);
    for (int lane = 0; lane < num; ++lane) {
      bool self = true;  // a point is at distance 0 from itself
      for (int g = 0; g < job_.num_groups; ++g)
        self = self && within<kInclusive>(T(0), radii_[static_cast<size_t>(g * kLanes<T> + lane)]);
      job_.counts[tree_.order()[places[lane]]] = counts[lane] - (self ? 1 : 0);
    }
    return leaves_visited;
  }

 private:
  V query(int c) const { return load(query_.data() + c * kLanes<T>); }
  V radius(int group) const { return load(radii_.data() + group * kLanes<T>); }

  // For each lane, sets whether its ball intersects the box between `low` and `high`, and whether it contains the box.
  void compare_with_box(const T* low, const T* high, I& reaches, I& contains) const {
    reaches = ~I{};
    contains = ~I{};
    V nearest = V{};
    V farthest = V{};
    for (int c = 0; c < tree_.dim(); ++c) {
      const V q = query(c);
      const V near = maximum(maximum(low[c] - q, q - high[c]), V{});
      const V far = maximum(high[c] - q, q - low[c]);
      if constexpr (kGrouped) {
        reaches &= within<kInclusive, T>(near, radius(job_.groups[c]));
        contains &= within<kInclusive, T>(far, radius(job_.groups[c]));
      } else {
        nearest = extend_distance<M, T>(nearest, near);
        farthest = extend_distance<M, T>(farthest, far);
      }
    }
    if constexpr (!kGrouped) {
      reaches = within<kInclusive, T>(nearest, radius(0));
      contains = within<kInclusive, T>(farthest, radius(0));
    }
  }

  I count_tree(int64_t& leaves_visited) {
    I counts = I{};
    if (!pruning_pays_) {
      leaves_visited = tree_.num_leaves();
      for (int64_t leaf = 0; leaf < leaves_visited; ++leaf) counts += count_leaf(leaf);
      return kInclusive ? counts - padding_counted() : counts;
    }
    int64_t last_visited = -1;
    for (int64_t node = 0; node < tree_.num_nodes();) {
      I reaches, contains;
      compare_with_box(tree_.low(node), tree_.high(node), reaches, contains);
      if (any<T>(reaches & ~contains)) {
        if (tree_.is_leaf(node)) {
          last_visited = tree_.first_leaf(node);
          counts += count_leaf(last_visited);
          ++leaves_visited;
        }
        ++node;
      } else {
        counts += contains & static_cast<LaneInt<T>>(tree_.points_under(node));
        node = tree_.after_subtree(node);
      }
    }
    pruning_pays_ = tree_.pruning_pays(leaves_visited);
    return kInclusive && last_visited + 1 == tree_.num_leaves() ? counts - padding_counted() : counts;
  }

  I count_leaf(int64_t leaf) const {
    constexpr int kPointsAtOnce = 4;
    I counts = I{};
    const T* points = tree_.leaf(leaf);
    for (int first = 0; first < kLeafSize; first += kPointsAtOnce, points += kPointsAtOnce) {
      V distances[kPointsAtOnce] = {};
      I inside[kPointsAtOnce];
      for (int e = 0; e < kPointsAtOnce; ++e) inside[e] = ~I{};
      for (int c = 0; c < tree_.dim(); ++c) {
        for (int e = 0; e < kPointsAtOnce; ++e) {
          const V difference = points[c * kLeafSize + e] - query(c);
          if constexpr (kGrouped)
            inside[e] &= within<kInclusive, T>(absolute(difference), radius(job_.groups[c]));
          else
            distances[e] = extend_distance<M, T>(distances[e], difference);
        }
      }
      for (int e = 0; e < kPointsAtOnce; ++e)
        counts -= kGrouped ? inside[e] : within<kInclusive, T>(distances[e], radius(0));
    }
    return counts;
  }

  // The last leaf is padded with points at infinity, which an infinite radius includes. Returns how many of them each
  // lane has counted; the caller subtracts them if it visited the last leaf.
  I padding_counted() const {
    I counted = I{} + static_cast<LaneInt<T>>(tree_.num_padding());
    for (int g = 0; g < job_.num_groups; ++g) counted &= radius(g) == broadcast<T>(std::numeric_limits<T>::infinity());
    return counted;
  }

  const CountJob<T>& job_;
  const KdTree<T>& tree_;
  std::vector<T> query_;
  std::vector<T> radii_;
  bool pruning_pays_ = true;  // determined by the first group of a task, see search_cpu.cpp
};

template <typename T, Metric M, bool kInclusive, bool kGrouped>
void count_in_tree(const CountJob<T>& job, int num_threads) {
  const int64_t leaves = job.tree.num_leaves();
  parallel_for((leaves + kLeavesPerTask - 1) / kLeavesPerTask, num_threads, [&](int64_t task, int) {
    GroupCount<T, M, kInclusive, kGrouped> group(job);
    const int64_t begin = task * kLeavesPerTask * KdTree<T>::kLeafSize;
    const int64_t end = std::min(begin + kLeavesPerTask * KdTree<T>::kLeafSize, job.tree.num_points());
    PollCounter polls;
    int64_t places[kLanes<T>];
    int num = 0;
    for (int64_t place = begin; place < end; ++place) {
      const int64_t row = job.tree.order()[place];
      if (job.radii[row] < 0)
        job.counts[row] = 0;
      else
        places[num++] = place;
      if (num == 0 || (num < kLanes<T> && place + 1 < end)) continue;
      polls.add(group.run(places, num) * job.tree.dim());
      num = 0;
    }
  });
}

// ---- One item ------------------------------------------------------------------------------------------------------

// Subtracts the neighbors that exclude_within excludes.
template <typename T, Metric M, bool kInclusive>
void subtract_excluded(const KnnCount& p, const T* points, const T* radii, int64_t* counts, int num_threads) {
  constexpr int64_t kPairsPerTask = 1 << 16;
  const auto row = [&](int64_t i) { return p.rows == nullptr ? i : p.rows[i]; };
  const auto counted = [&](int64_t i, int64_t j) {
    if constexpr (is_largest_of_columns(M)) {
      for (int c = 0; c < p.dim; ++c) {
        const T distance = extend_distance<M>(T(0), points[j * p.dim + c] - points[i * p.dim + c]);
        if (!within<kInclusive>(distance, radii[p.groups[c] * p.num_points + i])) return false;
      }
      return true;
    } else {
      T distance = 0;
      for (int c = 0; c < p.dim; ++c)
        distance = extend_distance<M>(distance, points[j * p.dim + c] - points[i * p.dim + c]);
      return within<kInclusive>(distance, radii[i]);
    }
  };
  const int64_t rows_per_task = std::max<int64_t>(1, kPairsPerTask / std::min(p.exclude_within, kPairsPerTask));
  parallel_for((p.num_points + rows_per_task - 1) / rows_per_task, num_threads, [&](int64_t task, int) {
    for (int64_t i = task * rows_per_task; i < std::min(p.num_points, (task + 1) * rows_per_task); ++i) {
      for (int64_t j = i - 1; j >= 0 && row(i) - row(j) <= p.exclude_within; --j) counts[i] -= counted(i, j);
      for (int64_t j = i + 1; j < p.num_points && row(j) - row(i) <= p.exclude_within; ++j) counts[i] -= counted(i, j);
    }
  });
}

template <typename T, Metric M, bool kInclusive>
void count_item(const KnnCount& p, int64_t item, int num_threads) {
  const int64_t n = p.num_points;
  const auto* points = static_cast<const T*>(p.points) + item * n * p.dim;
  const auto for_each_radius = [&](const auto& count) {
    for (int64_t r = 0; r < p.num_radii; ++r) {
      if (r > 0) poll_interrupt();
      const auto* radii = static_cast<const T*>(p.radii) + (r * p.batch + item) * p.num_groups * n;
      int64_t* counts = p.counts + (r * p.batch + item) * n;
      count(radii, counts);
      if (p.exclude_within > 0) subtract_excluded<T, M, kInclusive>(p, points, radii, counts, num_threads);
    }
  };
  if (p.dim == 1) {
    const SortedColumn<T> column(points, n, num_threads);
    for_each_radius(
        [&](const T* radii, int64_t* counts) { count_on_line<T, M, kInclusive>(column, radii, counts, num_threads); });
  } else {
    const KdTree<T> tree(points, n, p.dim, num_threads);
    for_each_radius([&](const T* radii, int64_t* counts) {
      const CountJob<T> job{tree, p.groups, p.num_groups, radii, counts};
      if constexpr (is_largest_of_columns(M)) {
        if (p.num_groups > 1) return count_in_tree<T, M, kInclusive, true>(job, num_threads);
      }
      count_in_tree<T, M, kInclusive, false>(job, num_threads);
    });
  }
}

template <typename T>
void run_count(const KnnCount& p) {
  for_each_item(p.batch, p.num_threads, [&](int64_t item, int threads) {
    with_metric(p.metric, [&](auto metric) {
      if (p.inclusive)
        count_item<T, metric(), true>(p, item, threads);
      else
        count_item<T, metric(), false>(p, item, threads);
    });
  });
}

}  // namespace

const KnnCountKernel knn_count = [](const KnnCount& p) {
  with_real(p.dtype, [&](auto zero) { run_count<decltype(zero)>(p); });
};

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
