// The mathematics of a distance that CPU and CUDA kernels share.
#pragma once

#include <cmath>

#include "common/host_device.h"

namespace echo_ext {

enum class Metric : int { chebyshev, euclidean };

inline Metric metric_of(bool euclidean) { return euclidean ? Metric::euclidean : Metric::chebyshev; }

// A distance so far, extended by the difference in one more coordinate. Every step is monotone in |difference|, in
// floating point too: bounds built by the same steps from a box's sides bound the distances to the points in it
// exactly.
template <Metric M, typename T>
ECHO_EXT_HD T extend_distance(T so_far, T difference) {
  if constexpr (M == Metric::chebyshev) {
    const T magnitude = std::fabs(difference);  // no instruction of its own, where it is an operand's modifier
    return so_far > magnitude ? so_far : magnitude;
  } else {
    return so_far + difference * difference;
  }
}

// For a metric known only at run time.
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
