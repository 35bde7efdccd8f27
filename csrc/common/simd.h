// Vector registers of the instruction set that the including file is compiled for, as value types with arithmetic.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common/isa.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// GCC and Clang provide vectors as a language extension, which keeps them in registers on every architecture.
template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int mask __attribute__((vector_size(kVectorBytes)));  // the result of a comparison
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef long long mask __attribute__((vector_size(kVectorBytes)));
};

template <>
struct VectorOf<uint8_t> {
  typedef uint8_t type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<uint32_t> {
  typedef uint32_t type __attribute__((vector_size(kVectorBytes)));
};

template <typename T>
using Vector = typename VectorOf<T>::type;

template <typename T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <typename T>
inline Vector<T> load(const T* from) {
  Vector<T> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <typename T>
inline void store(T* to, Vector<T> v) {
  std::memcpy(to, &v, sizeof(v));
}

template <typename T>
inline Vector<T> broadcast(T value) {
  return value - Vector<T>{};
}

// Clears the sign bit, which is one operation, where a comparison and a selection would be two.
template <typename V>
inline V absolute(V v) {
  using Mask = decltype(v < v);
  using Element = std::remove_reference_t<decltype(Mask{}[0])>;
  return reinterpret_cast<V>(reinterpret_cast<Mask>(v) & std::numeric_limits<Element>::max());
}

// The maximum and the minimum of each pair of lanes, or b where either is NaN. They are intrinsics because GCC does not
// always find the single instruction. The AVX-512 versions are masked, with all lanes selected, because GCC warns that
// the unmasked ones use an uninitialized value.
#if defined(__AVX512F__)
inline Vector<float> maximum(Vector<float> a, Vector<float> b) { return _mm512_maskz_max_ps(0xffff, a, b); }
inline Vector<double> maximum(Vector<double> a, Vector<double> b) { return _mm512_maskz_max_pd(0xff, a, b); }
inline Vector<float> minimum(Vector<float> a, Vector<float> b) { return _mm512_maskz_min_ps(0xffff, a, b); }
inline Vector<double> minimum(Vector<double> a, Vector<double> b) { return _mm512_maskz_min_pd(0xff, a, b); }
#elif defined(__AVX2__)
inline Vector<float> maximum(Vector<float> a, Vector<float> b) { return _mm256_max_ps(a, b); }
inline Vector<double> maximum(Vector<double> a, Vector<double> b) { return _mm256_max_pd(a, b); }
inline Vector<float> minimum(Vector<float> a, Vector<float> b) { return _mm256_min_ps(a, b); }
inline Vector<double> minimum(Vector<double> a, Vector<double> b) { return _mm256_min_pd(a, b); }
#elif defined(__SSE2__)
inline Vector<float> maximum(Vector<float> a, Vector<float> b) { return _mm_max_ps(a, b); }
inline Vector<double> maximum(Vector<double> a, Vector<double> b) { return _mm_max_pd(a, b); }
inline Vector<float> minimum(Vector<float> a, Vector<float> b) { return _mm_min_ps(a, b); }
inline Vector<double> minimum(Vector<double> a, Vector<double> b) { return _mm_min_pd(a, b); }
#else
template <typename V>
inline V maximum(V a, V b) {
  return a > b ? a : b;
}
template <typename V>
inline V minimum(V a, V b) {
  return a < b ? a : b;
}
#endif

// Whether a <= b in every lane. False if any lane is NaN.
#if defined(__AVX512F__)
inline bool all_less_equal(Vector<float> a, Vector<float> b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ) == 0xffff; }
inline bool all_less_equal(Vector<double> a, Vector<double> b) { return _mm512_cmp_pd_mask(a, b, _CMP_LE_OQ) == 0xff; }
#elif defined(__AVX2__)
inline bool all_less_equal(Vector<float> a, Vector<float> b) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LE_OQ)) == 0xff;
}
inline bool all_less_equal(Vector<double> a, Vector<double> b) {
  return _mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_LE_OQ)) == 0xf;
}
#elif defined(__SSE2__)
inline bool all_less_equal(Vector<float> a, Vector<float> b) { return _mm_movemask_ps(_mm_cmple_ps(a, b)) == 0xf; }
inline bool all_less_equal(Vector<double> a, Vector<double> b) { return _mm_movemask_pd(_mm_cmple_pd(a, b)) == 0x3; }
#else
template <typename V>
inline bool all_less_equal(V a, V b) {
  const auto compared = a <= b;
  bool every = true;
  for (int lane = 0; lane < static_cast<int>(sizeof(V) / sizeof(a[0])); ++lane) every &= compared[lane] != 0;
  return every;
}
#endif

// kVectors registers: the adjacent columns that one thread works on.
template <typename T, int kVectors>
struct Pack {
  static constexpr int kColumns = kVectors * kLanes<T>;
  Vector<T> part[kVectors];

  static inline Pack filled(T value) {
    Pack p;
    for (int v = 0; v < kVectors; ++v) p.part[v] = broadcast<T>(value);
    return p;
  }
  static inline Pack loaded(const T* from) {
    Pack p;
    for (int v = 0; v < kVectors; ++v) p.part[v] = load(from + v * kLanes<T>);
    return p;
  }
  inline void store_to(T* to) const {
    for (int v = 0; v < kVectors; ++v) store(to + v * kLanes<T>, part[v]);
  }
  friend inline Pack operator+(Pack a, const Pack& b) {
    for (int v = 0; v < kVectors; ++v) a.part[v] += b.part[v];
    return a;
  }
  friend inline Pack operator*(Pack a, const Pack& b) {
    for (int v = 0; v < kVectors; ++v) a.part[v] *= b.part[v];
    return a;
  }
  friend inline Pack absolute(Pack a) {
    for (int v = 0; v < kVectors; ++v) a.part[v] = absolute(a.part[v]);
    return a;
  }
  friend inline Pack maximum(Pack a, const Pack& b) {
    for (int v = 0; v < kVectors; ++v) a.part[v] = maximum(a.part[v], b.part[v]);
    return a;
  }
  friend inline Pack minimum(Pack a, const Pack& b) {
    for (int v = 0; v < kVectors; ++v) a.part[v] = minimum(a.part[v], b.part[v]);
    return a;
  }
  friend inline bool all_less_equal(const Pack& a, const Pack& b) {
    bool every = true;
    for (int v = 0; v < kVectors; ++v) every = every & all_less_equal(a.part[v], b.part[v]);
    return every;
  }
  // Whether the weights of all columns have vanished, see dtype.h.
  friend inline bool has_vanished(const Pack& a) {
    return all_less_equal(absolute(a), Pack::filled(std::numeric_limits<T>::min()));
  }
};

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
