// The values of KSG1 in one call: the k-th neighbors in all columns, and the counts in each margin within them. The
// kernels are those that Python calls one by one for other estimators; for a few hundred samples its calls would take
// longer.
#include <algorithm>
#include <cstddef>
#include <numeric>
#include <vector>

#include "knn/knn.h"

namespace echo_ext {
namespace {

template <typename T>
class Margins {
 public:
  explicit Margins(const KnnMargins& p)
      : p_(p), size_(static_cast<size_t>(p.batch * p.num_points)), num_ks_(static_cast<int>(p.ks.size())) {}

  void run() {
    std::vector<int> all(p_.variables.size());
    std::iota(all.begin(), all.end(), 0);
    radii_.resize(p_.ks.size() * size_);
    search(all);
    std::vector<T>().swap(joined_);
    counts_.resize(radii_.size());
    for (size_t i = 0; i < p_.ks.size() * static_cast<size_t>(p_.batch); ++i) {
      const auto begin = radii_.begin() + static_cast<std::ptrdiff_t>(i) * p_.num_points;
      p_.tied_shares[i] =
          static_cast<double>(std::count(begin, begin + p_.num_points, T(0))) / static_cast<double>(p_.num_points);
    }
    for (const KnnMargins::Margin& margin : p_.margins) {
      count(margin.variables);
      knn_add_digamma(
          {counts_.data(), p_.values, static_cast<int64_t>(counts_.size()), 1, margin.factor, p_.num_threads});
    }
  }

 private:
  void search(const std::vector<int>& variables) {
    const KnnMargins::Variable joint = join(variables);
    knn_search()({p_.dtype, joint.points, nullptr, p_.rows, p_.batch, p_.num_points, p_.num_points, joint.dim,
                  *std::max_element(p_.ks.begin(), p_.ks.end()), Metric::chebyshev, p_.exclude_within, p_.ks.data(),
                  num_ks_, nullptr, 0, radii_.data(), nullptr, nullptr, p_.num_threads});
  }

  void count(const std::vector<int>& variables) {
    const KnnMargins::Variable margin = join(variables);
    const std::vector<int32_t> groups(static_cast<size_t>(margin.dim), 0);
    knn_count()({p_.dtype, margin.points, radii_.data(), groups.data(), p_.rows, p_.batch, p_.num_points, num_ks_, 1,
                 margin.dim, Metric::chebyshev, false, p_.exclude_within, counts_.data(), p_.num_threads});
  }

  // Returns the columns of some variables side by side.
  KnnMargins::Variable join(const std::vector<int>& variables) {
    if (variables.size() == 1) return p_.variables[static_cast<size_t>(variables[0])];
    int dim = 0;
    for (const int v : variables) dim += p_.variables[static_cast<size_t>(v)].dim;
    joined_.resize(size_ * static_cast<size_t>(dim));
    T* to = joined_.data();
    for (const int v : variables) {
      const KnnMargins::Variable& variable = p_.variables[static_cast<size_t>(v)];
      const auto width = static_cast<size_t>(variable.dim);
      const T* from = static_cast<const T*>(variable.points);
      for (size_t i = 0; i < size_; ++i) std::copy_n(from + i * width, width, to + i * static_cast<size_t>(dim));
      to += width;
    }
    return {joined_.data(), dim};
  }

  const KnnMargins& p_;
  const size_t size_;
  const int num_ks_;
  std::vector<T> joined_;
  std::vector<T> radii_;         // (num_ks, batch, num_points)
  std::vector<int64_t> counts_;  // (num_ks, batch, num_points)
};

}  // namespace

void knn_add_margins(const KnnMargins& p) {
  if (p.batch * p.num_points == 0) return;
  with_real(p.dtype, [&](auto zero) { Margins<decltype(zero)>(p).run(); });
}

}  // namespace echo_ext
