// Random numbers and random orders as keyed functions: the same on every device and for any number of threads, without
// a state or a table.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace echo_ext {

ECHO_EXT_HD uint64_t mix64(uint64_t x) {  // the finalizer of SplitMix64
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// Word is uint32_t, or a number of them in vector registers.
template <typename Word>
ECHO_EXT_HD Word mix32(Word x) {
  x = (x ^ (x >> 16)) * 0x21f0aaadu;
  x = (x ^ (x >> 15)) * 0x735a2d97u;
  return x ^ (x >> 15);
}

// floor(hash * size / 2^32) for size <= 2^16, by 32-bit operations only, so that it vectorizes.
ECHO_EXT_HD uint32_t scale_hash(uint32_t hash, uint32_t size) {
#if defined(__CUDA_ARCH__)
  return __umulhi(hash, size);
#else
  return ((hash >> 16) * size + (((hash & 0xffffu) * size) >> 16)) >> 16;
#endif
}

// value modulo size, for a value less than twice the size.
ECHO_EXT_HD uint32_t modulo_size(uint32_t value, uint32_t size) { return value >= size ? value - size : value; }

// The key of the draws of one row.
struct DrawKey {
  uint32_t start, step;
};

ECHO_EXT_HD DrawKey draw_key(uint64_t seed, uint64_t row) {
  const uint64_t key = mix64(mix64(seed + 0x9e3779b97f4a7c15ull) + 0x9e3779b97f4a7c15ull * (row + 1));
  return {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32) | 1u};
}

// A keyed bijection of [0, size), 1 <= size <= 2^31. It is a Feistel network on a high and a low half, with addition
// modulo the size of each half. Its domain, of size high_size * 2^low_bits, is slightly larger than `size`. If a result
// is outside [0, size), the network is applied again until it is inside (cycle walking).
struct Bijection {
  uint32_t size, high_size, low_bits;

  // With fewer rounds, the orderings are measurably nonuniform. Very small halves mix slowly and need more rounds.
  static constexpr int kHalfRounds = 8, kHalfRoundsWhenSmall = 24;
  static constexpr uint32_t kSmall = 64;

  ECHO_EXT_HD explicit Bijection(uint32_t size_) : size(size_) {
    uint32_t bits = 0;
    while (bits < 31 && (1u << bits) < size_) ++bits;
    low_bits = bits / 2 > 0 ? bits / 2 : 1;
    high_size = (size_ + (1u << low_bits) - 1) >> low_bits;
  }

  ECHO_EXT_HD bool is_small() const { return size <= kSmall; }

  // Applies the network once. `round_key` and `key_step` are the start and the step of the key.
  template <int kRounds, typename Word>
  ECHO_EXT_HD Word step(Word round_key, Word key_step, Word x) const {
    const uint32_t low_mask = (1u << low_bits) - 1;
    Word high = x >> low_bits, low = x & low_mask;
#if defined(__CUDA_ARCH__)
    // Kernels contain many copies of this loop, and need the registers for other things.
#pragma unroll 2
#endif
    for (int round = 0; round < kRounds; round += 2) {
      high = modulo_size(high + scale_hash(mix32(low + round_key), high_size), high_size);
      round_key = round_key + key_step;
      low = (low + mix32(high + round_key)) & low_mask;
      round_key = round_key + key_step;
    }
    return (high << low_bits) | low;
  }

  template <int kRounds>
  ECHO_EXT_HD uint32_t inverse_step(DrawKey key, uint32_t y) const {
    const uint32_t low_mask = (1u << low_bits) - 1;
    uint32_t high = y >> low_bits, low = y & low_mask;
    uint32_t round_key = key.start + key.step * static_cast<uint32_t>(kRounds);
#if defined(__CUDA_ARCH__)
#pragma unroll 2
#endif
    for (int round = 0; round < kRounds; round += 2) {
      round_key -= key.step;
      low = (low - mix32(high + round_key)) & low_mask;
      round_key -= key.step;
      const uint32_t shift = scale_hash(mix32(low + round_key), high_size);
      high = high >= shift ? high - shift : high + high_size - shift;
    }
    return (high << low_bits) | low;
  }

  ECHO_EXT_HD uint32_t operator()(DrawKey key, uint32_t x) const {
    do x = is_small() ? step<kHalfRoundsWhenSmall>(key.start, key.step, x) : step<kHalfRounds>(key.start, key.step, x);
    while (x >= size);
    return x;
  }

  ECHO_EXT_HD uint32_t inverse(DrawKey key, uint32_t y) const {
    do y = is_small() ? inverse_step<kHalfRoundsWhenSmall>(key, y) : inverse_step<kHalfRounds>(key, y);
    while (y >= size);
    return y;
  }
};

}  // namespace echo_ext
