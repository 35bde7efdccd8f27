// Vectors of 32-bit words, for the hashes and the Feistel network of draws.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/simd.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {

// The vector first, first + 1, first + 2, ...
template <typename T>
Vector<T> ascending(T first) {
  Vector<T> v;
  for (int lane = 0; lane < kLanes<T>; ++lane) v[lane] = static_cast<T>(first + lane);
  return v;
}

// Several vectors at a time hide the latency of multiplications.
constexpr int kWordVectors = 4;
constexpr int kWordLanes = kWordVectors * kLanes<uint32_t>;

// A number of words in vector registers, usable as the Word of draws.h.
struct Words {
  using V = Vector<uint32_t>;
  V part[kWordVectors];

  template <typename Operation>
  static inline Words each(const Operation& operation) {
    Words result;
    for (int v = 0; v < kWordVectors; ++v) result.part[v] = operation(v);
    return result;
  }
  static inline Words loaded(const uint32_t* from) {
    return each([&](int v) { return load(from + v * kLanes<uint32_t>); });
  }
  inline void store_to(uint32_t* to) const {
    for (int v = 0; v < kWordVectors; ++v) store(to + v * kLanes<uint32_t>, part[v]);
  }
  // Stores the low byte of each word.
  inline void store_bytes_to(uint8_t* to) const {
    for (int v = 0; v < kWordVectors; ++v, to += kLanes<uint32_t>) {
#if defined(__AVX512F__)
      const __m128i bytes = _mm512_maskz_cvtepi32_epi8(0xffff, reinterpret_cast<__m512i>(part[v]));
      std::memcpy(to, &bytes, sizeof(bytes));
#else
      uint32_t words[kLanes<uint32_t>];
      store(words, part[v]);
      for (int lane = 0; lane < kLanes<uint32_t>; ++lane) to[lane] = static_cast<uint8_t>(words[lane]);
#endif
    }
  }
  friend inline Words operator+(const Words& a, const Words& b) {
    return each([&](int v) { return a.part[v] + b.part[v]; });
  }
  friend inline Words operator^(const Words& a, const Words& b) {
    return each([&](int v) { return a.part[v] ^ b.part[v]; });
  }
  friend inline Words operator|(const Words& a, const Words& b) {
    return each([&](int v) { return a.part[v] | b.part[v]; });
  }
  friend inline Words operator&(const Words& a, uint32_t b) {
    return each([&](int v) { return a.part[v] & b; });
  }
  friend inline Words operator*(const Words& a, uint32_t b) {
    return each([&](int v) { return a.part[v] * b; });
  }
  friend inline Words operator>>(const Words& a, uint32_t bits) {
    return each([&](int v) { return a.part[v] >> bits; });
  }
  friend inline Words operator<<(const Words& a, uint32_t bits) {
    return each([&](int v) { return a.part[v] << bits; });
  }
  friend inline Words modulo_size(const Words& a, uint32_t size) {
    return each([&](int v) {
      const V less = a.part[v] - size;  // a negative difference wraps around to a large value
      return less < a.part[v] ? less : a.part[v];
    });
  }
  friend inline Words scale_hash(const Words& hash, uint32_t size) {
    return each([&](int v) { return high_product(hash.part[v], size); });
  }

 private:
  // The upper halves of the 64-bit products.
  static inline V high_product(V a, uint32_t b) {
#if defined(__AVX512F__)
    const __m512i factor = reinterpret_cast<__m512i>(a), by = _mm512_set1_epi32(static_cast<int>(b));
    const auto odd_lanes = [](__m512i of) { return _mm512_maskz_shuffle_epi32(0xffff, of, _MM_PERM_DDBB); };
    const auto product = [&](__m512i lanes) { return _mm512_maskz_mul_epu32(0xff, lanes, by); };
    const __m512i even = odd_lanes(product(factor)), odd = product(odd_lanes(factor));
    return reinterpret_cast<V>(_mm512_mask_blend_epi32(0xaaaa, even, odd));
#elif defined(__AVX2__)
    const __m256i factor = reinterpret_cast<__m256i>(a), by = _mm256_set1_epi32(static_cast<int>(b));
    const __m256i even = _mm256_shuffle_epi32(_mm256_mul_epu32(factor, by), 0xf5);
    const __m256i odd = _mm256_mul_epu32(_mm256_shuffle_epi32(factor, 0xf5), by);
    return reinterpret_cast<V>(_mm256_blend_epi32(even, odd, 0xaa));
#else
    for (int lane = 0; lane < kLanes<uint32_t>; ++lane) a[lane] = static_cast<uint32_t>(uint64_t{a[lane]} * b >> 32);
    return a;
#endif
  }
};

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
