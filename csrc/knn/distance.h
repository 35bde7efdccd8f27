// The distance of two points, as CPU and CUDA kernels both compute it.
#pragma once

#include <cmath>

#include "common/host_device.h"

namespace echo_ext {

enum class Metric : int { chebyshev, euclidean };

inline Metric metric_of(bool euclidean) { return euclidean ? Metric::euclidean : Metric::chebyshev; }

// Extends a distance by the difference in one more coordinate. Every step is monotone in |difference|, in
// floating-point arithmetic too. Therefore the same steps, applied to the sides of a box, give exact bounds on the
// computed distances to all points in the box.
template <Metric M, typename T>
ECHO_EXT_HD T extend_distance(T so_far, T difference) {
  if constexpr (M == Metric::chebyshev) {
    const T magnitude = std::fabs(difference);  // free where the processor has an absolute-value operand modifier
    return so_far > magnitude ? so_far : magnitude;
  } else {
    return so_far + difference * difference;
  }
}

// For a metric that is known only at run time.
template <typename T>
ECHO_EXT_HD T extend_distance(Metric metric, T so_far, T difference) {
  return metric == Metric::euclidean ? extend_distance<Metric::euclidean>(so_far, difference)
                                     : extend_distance<Metric::chebyshev>(so_far, difference);
}

template <bool kInclusive, typename T>
ECHO_EXT_HD bool within(T distance, T radius) {
  return kInclusive ? distance <= radius : distance < radius;
}

}  // namespace echo_ext
