// Sums of the digamma function of counts. torch.digamma would need PyTorch, which the core does not link, and would not
// look up repeated small counts in a table.
#include <algorithm>
#include <cmath>
#include <vector>

#include "common/parallel.h"
#include "knn/knn.h"

namespace echo_ext {
namespace {

constexpr int64_t kTableSize = 1 << 14;
constexpr int64_t kCountsPerTask = 1 << 14;

}  // namespace

// From 16 on, the asymptotic series is exact to rounding.
double digamma(int64_t n) {
  double shift = 0;
  for (; n < 16; ++n) shift -= 1.0 / static_cast<double>(n);
  const double x = static_cast<double>(n);
  const double r = 1.0 / (x * x);
  const double series = r * (1.0 / 12 - r * (1.0 / 120 - r * (1.0 / 252 - r * (1.0 / 240 - r * (1.0 / 132)))));
  return shift + std::log(x) - 0.5 / x - series;
}

namespace {

const std::vector<double>& table() {
  static const std::vector<double> values = [] {
    std::vector<double> t(static_cast<size_t>(kTableSize));
    t[0] = -HUGE_VAL;
    for (int64_t n = 1; n < kTableSize; ++n) t[static_cast<size_t>(n)] = digamma(n);
    return t;
  }();
  return values;
}

}  // namespace

void knn_add_digamma(const KnnDigamma& p) {
  const double* small = table().data();
  parallel_for((p.size + kCountsPerTask - 1) / kCountsPerTask, p.num_threads, [&](int64_t task, int) {
    for (int64_t i = task * kCountsPerTask; i < std::min(p.size, (task + 1) * kCountsPerTask); ++i) {
      const int64_t n = p.counts[i] + p.shift;
      p.values[i] += p.factor * (n < kTableSize ? small[n] : digamma(n));
    }
  });
}

}  // namespace echo_ext
