// Distances and comparisons of vectors, lane by lane.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/simd.h"
#include "knn/distance.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace echo_ext {
namespace ECHO_EXT_ISA {

// The result of a comparison of vectors of T: one integer per lane, -1 where the comparison holds and 0 elsewhere.
template <typename T>
using Mask = typename VectorOf<T>::mask;
template <typename T>
using LaneInt = std::conditional_t<sizeof(T) == 4, int32_t, long long>;

template <typename T>
inline bool any(Mask<T> mask) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 8)
    return _mm512_movepi64_mask((__m512i)mask) != 0;
  else
    return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_epi8((__m256i)mask) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_epi8((__m128i)mask) != 0;
#else
  LaneInt<T> gathered = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) gathered |= mask[lane];
  return gathered != 0;
#endif
}

// Lane by lane, the functions of distance.h. The differences must not be NaN.
using echo_ext::extend_distance;
using echo_ext::within;

template <typename T>
struct VectorArithmetic {
  static inline Vector<T> magnitude(Vector<T> number) { return absolute(number); }
  static inline Vector<T> larger_magnitude(Vector<T> a, Vector<T> b) {
#if defined(__AVX512DQ__)
    constexpr int kLargerMagnitude = 0b1011;
    if constexpr (sizeof(T) == 8)
      return (Vector<T>)_mm512_maskz_range_pd(0xff, (__m512d)a, (__m512d)b, kLargerMagnitude);
    else
      return (Vector<T>)_mm512_maskz_range_ps(0xffff, (__m512)a, (__m512)b, kLargerMagnitude);
#else
    return maximum(a, absolute(b));
#endif
  }
};

template <Metric M, typename T>
inline Vector<T> extend_distance(Vector<T> so_far, Vector<T> difference) {
  return metric_step<M, VectorArithmetic<T>>(so_far, difference);
}

// The distance of points of one column. For a difference of NaN it is NaN, which larger_magnitude() may drop.
template <Metric M, typename T>
inline Vector<T> distance_in_one_column(Vector<T> difference) {
  if constexpr (is_largest_of_columns(M)) return VectorArithmetic<T>::magnitude(difference);
  return extend_distance<M, T>(Vector<T>{}, difference);
}

template <bool kInclusive, typename T>
inline Mask<T> within(Vector<T> distance, Vector<T> radius) {
  if constexpr (kInclusive)
    return distance <= radius;
  else
    return distance < radius;
}

template <typename T>
inline Mask<T> load_ints(const LaneInt<T>* from) {
  Mask<T> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

// values[places[lane]] for each lane.
template <typename T>
inline Vector<T> gather(const T* values, Mask<T> places) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 8) {
    return (Vector<T>)_mm512_mask_i64gather_pd(_mm512_setzero_pd(), 0xff, (__m512i)places, values, 8);
  } else {
    return (Vector<T>)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xffff, (__m512i)places, values, 4);
  }
#else
  Vector<T> v = Vector<T>{};
  for (int lane = 0; lane < kLanes<T>; ++lane) v[lane] = values[places[lane]];
  return v;
#endif
}

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
