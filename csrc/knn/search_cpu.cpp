// The k nearest neighbors of a vector of queries at a time. The lanes hold queries that are close together in the tree,
// and each point of a leaf is broadcast to all lanes. For large k, see block_search.h.
#include <cstdint>
#include <limits>
#include <vector>

#include "common/parallel.h"
#include "knn/batch.h"
#include "knn/block_search.h"
#include "knn/kdtree.h"
#include "knn/knn.h"
#include "knn/search_job.h"
#include "knn/simd_distance.h"
#include "knn/sorted_column.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {
namespace {

constexpr int64_t kLeavesPerTask = 16;
constexpr int kPointsAtOnce = 4;  // points of a leaf whose distances are independent work

// What the groups of one task share: buffers, for sizes that are not known at compile time, and whether pruning pays
// off. The first group measures that. If it visits most leaves anyway, the other groups scan all leaves without looking
// at boxes.
template <typename T>
struct SearchScratch {
  bool pruning_pays = true;
  std::vector<T> query;
  std::vector<T> nearest;
  std::vector<LaneInt<T>> nearest_rows;
};

// An array of `kSize` vectors: in registers if the size is known at compile time, otherwise in a buffer of the thread.
template <typename V, typename Scalar, int kSize>
struct Vectors {
  V values[kSize] = {};
  explicit Vectors(Scalar*) {}
  V get(int i) const { return values[i]; }
  void set(int i, V v) { values[i] = v; }
};
template <typename V, typename Scalar>
struct Vectors<V, Scalar, 0> {
  Scalar* values;
  explicit Vectors(Scalar* memory) : values(memory) {}
  V get(int i) const {
    V v;
    std::memcpy(&v, values + i * static_cast<int>(sizeof(V) / sizeof(Scalar)), sizeof(V));
    return v;
  }
  void set(int i, V v) { std::memcpy(values + i * static_cast<int>(sizeof(V) / sizeof(Scalar)), &v, sizeof(V)); }
};

// kDim and kSlots are the number of columns and of neighbors kept (at least k), or 0 if they are known only at run
// time.
template <typename T, Metric M, int kDim, int kSlots, bool kIndices>
class GroupSearch {
  using V = Vector<T>;
  using I = Mask<T>;
  static constexpr int kLeafSize = KdTree<T>::kLeafSize;

 public:
  GroupSearch(const SearchJob<T>& job, SearchScratch<T>& scratch)
      : job_(job),
        tree_(job.points),
        scratch_(scratch),
        query_(scratch.query.data()),
        nearest_(scratch.nearest.data()),
        rows_(scratch.nearest_rows.data()) {}

  // Searches for the queries at places [place, place + lanes) of the queries' tree, which are all in its leaf `leaf`.
  // Returns the number of leaves of the points' tree that were visited.
  int64_t run(int64_t place, int64_t leaf) {
    const T* own = job_.queries.leaf(leaf) + place % kLeafSize;
    for (int c = 0; c < dim(); ++c) query_.set(c, load(own + c * kLeafSize));
    for (int r = 0; r < slots(); ++r) {
      nearest_.set(r, broadcast<T>(std::numeric_limits<T>::infinity()));
      if constexpr (kIndices) rows_.set(r, I{} + kNoRow);
    }
    const bool self = job_.among_themselves();
    exclude_ = job_.exclude_within();
    if (self) own_rows_ = load_ints<T>(job_.rows + place);

    // Descend from the root to the nearest leaf, then return upward: near points come first and tighten the bound.
    int64_t siblings[KdTree<T>::kMaxDepth];
    int depth = 0;
    int64_t node = 0;
    while (!tree_.is_leaf(node)) {
      const int64_t left = node + 1;
      const int64_t right = tree_.second_child(node);
      const bool go_left = self ? leaf < tree_.first_leaf(right) : nearer(left, right);
      siblings[depth++] = go_left ? right : left;
      node = go_left ? left : right;
    }
    if (self)
      scan<true>(tree_.first_leaf(node));
    else
      scan<false>(tree_.first_leaf(node));
    while (depth > 0) search_subtree(siblings[--depth]);
    scratch_.pruning_pays = tree_.pruning_pays(leaves_visited_);
    write(place);
    return leaves_visited_;
  }

 private:
  int dim() const { return kDim ? kDim : tree_.dim(); }
  int slots() const { return kSlots ? kSlots : job_.k(); }
  V bound() const { return nearest_.get(job_.k() - 1); }

  V box_distance(int64_t node) const {
    const T* low = tree_.low(node);
    const T* high = tree_.high(node);
    V distance = V{};
    for (int c = 0; c < dim(); ++c) {
      const V q = query_.get(c);
      const V outside = maximum(maximum(low[c] - q, q - high[c]), V{});
      distance = extend_distance<M, T>(distance, outside);
    }
    return distance;
  }

  // Which child to search first. The choice does not affect the result.
  bool nearer(int64_t left, int64_t right) const { return box_distance(left)[0] <= box_distance(right)[0]; }

  // If indices are wanted, a point at the distance of the k-th neighbor replaces it if its row is lower.
  bool may_contain_nearer(int64_t node) const {
    const V distance = box_distance(node);
    I is_candidate = distance < bound();
    if constexpr (kIndices)
      is_candidate |= (distance == bound()) & (rows_.get(job_.k() - 1) > LaneInt<T>{tree_.lowest_row(node)});
    return any<T>(is_candidate);
  }

  void search_subtree(int64_t node) {
    const int64_t end = tree_.after_subtree(node);
    while (node < end) {
      if (scratch_.pruning_pays && !may_contain_nearer(node)) {
        node = tree_.after_subtree(node);
      } else {
        if (tree_.is_leaf(node)) {
          ++leaves_visited_;
          if (exclude_ > 0)
            scan<true>(tree_.first_leaf(node));
          else
            scan<false>(tree_.first_leaf(node));
        }
        ++node;
      }
    }
  }

  template <bool kExclude>
  void scan(int64_t leaf) {
    // Local copies let the compiler keep them in registers from point to point.
    const auto query = query_;
    auto nearest = nearest_;
    auto rows = rows_;
    const T* points = tree_.leaf(leaf);
    for (int first = 0; first < kLeafSize; first += kPointsAtOnce, points += kPointsAtOnce) {
      V distances[kPointsAtOnce] = {};
      for (int c = 0; c < dim(); ++c)
        for (int e = 0; e < kPointsAtOnce; ++e)
          distances[e] = extend_distance<M, T>(distances[e], points[c * kLeafSize + e] - query.get(c));
      for (int e = 0; e < kPointsAtOnce; ++e) {
        if (kDim == 0 && !any<T>(within<kIndices, T>(distances[e], nearest.get(job_.k() - 1)))) continue;
        const int64_t place = leaf * kLeafSize + first + e;
        V distance = distances[e];
        I row = I{} + tree_.order()[place];
        if constexpr (kExclude) {
          const I apart = job_.rows[place] - own_rows_;
          const I close = (apart <= static_cast<LaneInt<T>>(exclude_)) & (apart >= static_cast<LaneInt<T>>(-exclude_));
          distance = close ? broadcast<T>(std::numeric_limits<T>::infinity()) : distance;
          row = close ? I{} + kNoRow : row;
        }
        if (!kIndices || tree_.order()[place] < tree_.num_points()) insert(distance, row, nearest, rows);
      }
    }
    nearest_ = nearest;
    rows_ = rows;
  }

  template <typename Nearest, typename Rows>
  void insert(V distance, I row, Nearest& nearest, Rows& rows) const {
    for (int r = 0; r < slots(); ++r) {
      const V kept = nearest.get(r);
      if constexpr (kIndices) {
        const I kept_row = rows.get(r);
        const I first = (distance < kept) | ((distance == kept) & (row < kept_row));
        nearest.set(r, first ? distance : kept);
        rows.set(r, first ? row : kept_row);
        distance = first ? kept : distance;
        row = first ? kept_row : row;
      } else {
        nearest.set(r, minimum(kept, distance));
        distance = maximum(kept, distance);
      }
    }
  }

  void write(int64_t place) const {
    for (int64_t lane = 0; lane < kLanes<T> && place + lane < job_.queries.num_points(); ++lane) {
      const int64_t row = job_.queries.order()[place + lane];
      if (job_.search.num_ks > 0) {
        for (int i = 0; i < job_.search.num_ks; ++i) {
          const int k = job_.search.ks[i];
          job_.kth_distance(i, row) = nearest_.get(k - 1)[lane];
          if constexpr (kIndices) write_reaches(job_, i, row, k, [&](int64_t r) { return rows_.get(r)[lane]; });
        }
        continue;
      }
      T* const distances = job_.distances(row);
      for (int r = 0; r < slots() && r < job_.k(); ++r) distances[r] = nearest_.get(r)[lane];
      if constexpr (kIndices) {
        int64_t* const indices = job_.indices(row);
        for (int r = 0; r < job_.k(); ++r) indices[r] = rows_.get(r)[lane];
      }
    }
  }

  const SearchJob<T>& job_;
  const KdTree<T>& tree_;
  SearchScratch<T>& scratch_;
  int64_t leaves_visited_ = 0;
  Vectors<V, T, kDim> query_;
  Vectors<V, T, kSlots> nearest_;
  Vectors<I, LaneInt<T>, kIndices ? kSlots : 1> rows_;
  I own_rows_ = I{};
  int64_t exclude_ = -1;
};

template <typename T, Metric M, int kDim, int kSlots, bool kIndices>
void search_all(const SearchJob<T>& job, int num_threads) {
  const int64_t leaves = job.queries.num_leaves();
  parallel_for((leaves + kLeavesPerTask - 1) / kLeavesPerTask, num_threads, [&](int64_t task, int) {
    SearchScratch<T> scratch;
    if (kDim == 0) scratch.query.resize(static_cast<size_t>(job.points.dim() * kLanes<T>));
    if (kSlots == 0) scratch.nearest.resize(static_cast<size_t>(job.k() * kLanes<T>));
    if (kSlots == 0 && kIndices) scratch.nearest_rows.resize(static_cast<size_t>(job.k() * kLanes<T>));
    PollCounter polls;
    for (int64_t leaf = task * kLeavesPerTask; leaf < std::min(leaves, (task + 1) * kLeavesPerTask); ++leaf) {
      const int64_t begin = leaf * KdTree<T>::kLeafSize;
      const int64_t end = std::min(begin + KdTree<T>::kLeafSize, job.queries.num_points());
      for (int64_t place = begin; place < end; place += kLanes<T>)
        polls.add(GroupSearch<T, M, kDim, kSlots, kIndices>(job, scratch).run(place, leaf) * job.points.dim());
    }
  });
}

// Longer lists take longer to keep in order than a selection, which is worse at excluding nodes in many columns.
template <typename T>
int longest_list(const SearchJob<T>& job) {
  const bool with_rows = job.search.indices != nullptr || job.search.reaches != nullptr;
  return with_rows ? 4 + 4 * job.points.dim() : 20 + 5 * job.points.dim();
}

template <typename T, Metric M, int kDim>
void search_distances(const SearchJob<T>& job, int num_threads) {
  if (job.k() == 1) return search_all<T, M, kDim, 1, false>(job, num_threads);
  if (job.k() <= 3) return search_all<T, M, kDim, 3, false>(job, num_threads);
  if (job.k() <= 5) return search_all<T, M, kDim, 5, false>(job, num_threads);
  return search_all<T, M, kDim, 0, false>(job, num_threads);
}

template <typename T, Metric M, int kDim, bool kRows>
void search_blocks(const SearchJob<T>& job, int num_threads) {
  const int64_t leaves = job.queries.num_leaves();
  parallel_for((leaves + kLeavesPerTask - 1) / kLeavesPerTask, num_threads, [&](int64_t task, int) {
    BlockSearch<T, M, kDim, kRows> search(job);
    for (int64_t leaf = task * kLeavesPerTask; leaf < std::min(leaves, (task + 1) * kLeavesPerTask); ++leaf)
      search.run(leaf);
  });
}

template <typename T, Metric M, bool kRows>
void search_blocks(const SearchJob<T>& job, int num_threads) {
  switch (job.points.dim()) {
    case 2: return search_blocks<T, M, 2, kRows>(job, num_threads);
    case 3: return search_blocks<T, M, 3, kRows>(job, num_threads);
    default: return search_blocks<T, M, 0, kRows>(job, num_threads);
  }
}

// What estimators mostly ask for has its own code: few distances in the metric of the KSG estimators, in few columns.
template <typename T, Metric M>
void search_any(const SearchJob<T>& job, bool prunes, int num_threads) {
  if (job.k() > longest_list(job) || !prunes) {
    if (job.keeps_rows()) return search_blocks<T, M, true>(job, num_threads);
    return search_blocks<T, M, false>(job, num_threads);
  }
  if (job.search.indices != nullptr || job.search.reaches != nullptr)
    return search_all<T, M, 0, 0, true>(job, num_threads);
  if constexpr (is_largest_of_columns(M)) {
    switch (job.points.dim()) {
      case 1: return search_distances<T, M, 1>(job, num_threads);
      case 2: return search_distances<T, M, 2>(job, num_threads);
      case 3: return search_distances<T, M, 3>(job, num_threads);
      default: return search_distances<T, M, 0>(job, num_threads);
    }
  } else {
    return search_all<T, M, 0, 0, false>(job, num_threads);
  }
}

// Whether it is worthwhile to sort the points into a tree, instead of comparing every query with all of them. Sorting
// takes as long as so many comparisons in any number of points; in many columns, boxes exclude too little.
bool tree_pays(const KnnSearch& p) { return p.queries == nullptr || (p.dim < 12 && p.num_queries > 100 + 50 * p.dim); }

template <typename T>
void search_one(const KnnSearch& p, int64_t item, int num_threads) {
  const bool prunes = tree_pays(p);
  const auto* points = static_cast<const T*>(p.points) + item * p.num_points * p.dim;
  const KdTree<T> tree(points, p.num_points, p.dim, num_threads, prunes);
  std::vector<int> by_k(static_cast<size_t>(p.num_ks));
  for (int i = 0; i < p.num_ks; ++i) by_k[static_cast<size_t>(i)] = i;
  std::sort(by_k.begin(), by_k.end(), [&](int a, int b) { return p.ks[a] > p.ks[b]; });
  const auto search = [&](const KdTree<T>& queries, const LaneInt<T>* rows) {
    const SearchJob<T> job{tree, queries, rows, p, item, by_k};
    with_metric(p.metric, [&](auto metric) { search_any<T, metric()>(job, prunes, num_threads); });
  };
  if (p.queries != nullptr) {
    const auto* queries = static_cast<const T*>(p.queries) + item * p.num_queries * p.dim;
    search(KdTree<T>(queries, p.num_queries, p.dim, num_threads, prunes), nullptr);
    return;
  }
  std::vector<LaneInt<T>> rows(static_cast<size_t>(tree.num_places()));
  for (int64_t place = 0; place < tree.num_places(); ++place) {
    const int64_t row = tree.order()[place];
    rows[place] = static_cast<LaneInt<T>>(p.rows != nullptr && row < p.num_points ? p.rows[row] : row);
  }
  search(tree, rows.data());
}

template <typename T>
void run_search(const KnnSearch& p) {
  for_each_item(p.batch, p.num_threads, [&](int64_t item, int threads) { search_one<T>(p, item, threads); });
}

}  // namespace

const KnnSearchKernel knn_search = [](const KnnSearch& p) {
  with_real(p.dtype, [&](auto zero) { run_search<decltype(zero)>(p); });
};

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
