// The distance of two points, as CPU and CUDA kernels both compute it.
#pragma once

#include <cmath>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "common/host_device.h"

namespace echo_ext {

// The metrics, by the names that Python knows them by. A new metric is one more name here, its step in metric_step(),
// and its class in echo_ext/estimators/_metric.py.
#define ECHO_EXT_FOR_EACH_METRIC(apply) apply(chebyshev) apply(euclidean)

#define ECHO_EXT_ENUMERATOR(name) name,
enum class Metric : int { ECHO_EXT_FOR_EACH_METRIC(ECHO_EXT_ENUMERATOR) };
#undef ECHO_EXT_ENUMERATOR

// Extends a distance by the difference in one more coordinate. Every step is monotone in |difference|, in
// floating-point arithmetic too. Therefore the same steps, applied to the sides of a box, give exact bounds on the
// computed distances to all points in the box. `Number` is a scalar or a vector, and `Arithmetic` has the operations on
// it that have no operator.
template <Metric M, typename Arithmetic, typename Number>
ECHO_EXT_HD Number metric_step(Number so_far, Number difference) {
  if constexpr (M == Metric::chebyshev) {
    return Arithmetic::larger_magnitude(so_far, difference);
  } else {
    static_assert(M == Metric::euclidean, "every metric needs its step");
    return so_far + difference * difference;
  }
}

// Whether the distance is the largest of the distances in single coordinates. Only then can a ball have a different
// radius in each column.
ECHO_EXT_HD constexpr bool is_largest_of_columns(Metric metric) { return metric == Metric::chebyshev; }

struct ScalarArithmetic {
  template <typename T>
  ECHO_EXT_HD static T magnitude(T number) {
    return std::fabs(number);  // free where the processor has an absolute-value operand modifier
  }
  // The first number must not be negative, and neither may be NaN.
  template <typename T>
  ECHO_EXT_HD static T larger_magnitude(T a, T b) {
    return a > magnitude(b) ? a : magnitude(b);
  }
};

template <Metric M, typename T>
ECHO_EXT_HD T extend_distance(T so_far, T difference) {
  return metric_step<M, ScalarArithmetic>(so_far, difference);
}

// For a metric that is known only at run time.
template <typename T>
ECHO_EXT_HD T extend_distance(Metric metric, T so_far, T difference) {
#define ECHO_EXT_CASE(name) \
  case Metric::name: return extend_distance<Metric::name>(so_far, difference);
  switch (metric) { ECHO_EXT_FOR_EACH_METRIC(ECHO_EXT_CASE) }
#undef ECHO_EXT_CASE
  return so_far;
}

// Calls body(std::integral_constant<Metric, M>()) for the metric M that is given at run time.
template <typename Body>
auto with_metric(Metric metric, const Body& body) {
#define ECHO_EXT_CASE(name) \
  case Metric::name: return body(std::integral_constant<Metric, Metric::name>());
  switch (metric) { ECHO_EXT_FOR_EACH_METRIC(ECHO_EXT_CASE) }
#undef ECHO_EXT_CASE
  throw std::invalid_argument("unknown metric");
}

inline Metric metric_of(const std::string& name) {
#define ECHO_EXT_COMPARE(each) \
  if (name == #each) return Metric::each;
  ECHO_EXT_FOR_EACH_METRIC(ECHO_EXT_COMPARE)
#undef ECHO_EXT_COMPARE
  throw std::invalid_argument("there is no metric " + name);
}

template <bool kInclusive, typename T>
ECHO_EXT_HD bool within(T distance, T radius) {
  return kInclusive ? distance <= radius : distance < radius;
}

}  // namespace echo_ext
