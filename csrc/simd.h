// One vector register of the instruction set that this file is compiled for, as a value type with arithmetic.
#pragma once

#include <cstring>

#include "isa.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// GCC and Clang have vectors as a language extension, which keeps them in registers on every architecture.
template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int mask __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef long long mask __attribute__((vector_size(kVectorBytes)));
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

template <typename T>
inline Vector<T> absolute(Vector<T> v) {
  return v < 0 ? -v : v;
}

template <typename T>
inline Vector<T> maximum(Vector<T> a, Vector<T> b) {
  return a > b ? a : b;
}

// True where every lane of a comparison's result is set.
template <typename T>
inline bool all(typename VectorOf<T>::mask mask) {
  bool every = true;
  for (int lane = 0; lane < kLanes<T>; ++lane) every = every && mask[lane] != 0;
  return every;
}

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
