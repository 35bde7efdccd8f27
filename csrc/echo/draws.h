// Which bank rows make up each row's noise: keyed functions of (seed, row, term) that need no table, the same on every
// device and in the forward and the backward pass.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace echo_ext {

enum class Sampling : int { permutation, replacement, ring };

ECHO_EXT_HD uint64_t mix64(uint64_t x) {  // the finaliser of SplitMix64
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// A Word is an uint32_t, or many of them in vector registers.
template <typename Word>
ECHO_EXT_HD Word mix32(Word x) {
  x = (x ^ (x >> 16)) * 0x21f0aaadu;
  x = (x ^ (x >> 15)) * 0x735a2d97u;
  return x ^ (x >> 15);
}

// floor(hash * size / 2^32) for size <= 2^16, in 32-bit operations, so that it vectorises.
ECHO_EXT_HD uint32_t scale_hash(uint32_t hash, uint32_t size) {
#if defined(__CUDA_ARCH__)
  return __umulhi(hash, size);
#else
  return ((hash >> 16) * size + (((hash & 0xffffu) * size) >> 16)) >> 16;
#endif
}

// Of a value less than twice the size.
ECHO_EXT_HD uint32_t modulo_size(uint32_t value, uint32_t size) { return value >= size ? value - size : value; }

// The key of one row's draws.
struct DrawKey {
  uint32_t start, step;
};

ECHO_EXT_HD DrawKey draw_key(uint64_t seed, uint64_t row) {
  const uint64_t key = mix64(mix64(seed + 0x9e3779b97f4a7c15ull) + 0x9e3779b97f4a7c15ull * (row + 1));
  return {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32) | 1u};
}

// A keyed bijection of [0, size), 1 <= size <= 2^31: a Feistel network on (high, low) with addition modulo the halves'
// sizes. Its domain, high_size * 2^low_bits, is barely larger than size; values outside walk on along their cycle.
struct Bijection {
  uint32_t size, high_size, low_bits;

  // With fewer rounds the orderings are measurably not uniform; tiny halves mix slowly.
  static constexpr int kHalfRounds = 8, kHalfRoundsWhenSmall = 24;
  static constexpr uint32_t kSmall = 64;

  ECHO_EXT_HD explicit Bijection(uint32_t size_) : size(size_) {
    uint32_t bits = 0;
    while (bits < 31 && (1u << bits) < size_) ++bits;
    low_bits = bits / 2 > 0 ? bits / 2 : 1;
    high_size = (size_ + (1u << low_bits) - 1) >> low_bits;
  }

  ECHO_EXT_HD bool is_small() const { return size <= kSmall; }

  // `round_key` and `key_step` are the start and the step of the key.
  template <int kRounds, typename Word>
  ECHO_EXT_HD Word step(Word round_key, Word key_step, Word x) const {
    const uint32_t low_mask = (1u << low_bits) - 1;
    Word high = x >> low_bits, low = x & low_mask;
#if defined(__CUDA_ARCH__)
#pragma unroll 2  // kernels hold many copies, and have better use for registers
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

// One problem's draws. Without a bank of its own, a batch is its own bank and a row never draws itself.
struct Draws {
  uint64_t seed;
  int64_t bank_rows;
  bool exclude_self;
  Sampling sampling;
};

// The number of bank rows that one row can draw.
ECHO_EXT_HD uint32_t num_candidates(const Draws& draws) {
  return static_cast<uint32_t>(draws.bank_rows - (draws.exclude_self && draws.sampling != Sampling::ring ? 1 : 0));
}

// The term-th draw of the row whose key is given; permutation and replacement.
ECHO_EXT_HD int32_t draw(const Draws& draws, const Bijection& order, DrawKey key, int64_t row, uint32_t term) {
  uint32_t index;
  if (draws.sampling == Sampling::permutation) {
    index = order(key, term);
  } else {
    const uint64_t hash = mix32(mix32(key.start + key.step * term) ^ key.step);
    index = static_cast<uint32_t>((hash * order.size) >> 32);
  }
  return static_cast<int32_t>(index + (draws.exclude_self && index >= static_cast<uint64_t>(row) ? 1u : 0u));
}

// ---- Ring ----------------------------------------------------------------------------------------------------------
// The bank lies on a circle in a keyed order; a noise is a window of consecutive positions. A batch that is its own
// bank has the row at position p start at p + 1; with a bank of its own, row i starts at position i, and every further
// `bank_rows` rows get a circle of another order.

ECHO_EXT_HD DrawKey circle_key(uint64_t seed, int64_t circle) { return draw_key(~seed, static_cast<uint64_t>(circle)); }

ECHO_EXT_HD int64_t num_circles(const Draws& draws, int64_t rows) {
  return draws.exclude_self ? 1 : (rows + draws.bank_rows - 1) / draws.bank_rows;
}

// A circle's windows, which start at positions [0, num_windows).
ECHO_EXT_HD int64_t num_windows(const Draws& draws, int64_t rows, int64_t circle) {
  const int64_t left = rows - circle * draws.bank_rows;
  return left < draws.bank_rows ? left : draws.bank_rows;
}

struct RingPlace {
  int64_t circle, start;
};

ECHO_EXT_HD RingPlace ring_place(const Draws& draws, int64_t row) {
  if (!draws.exclude_self) return {row / draws.bank_rows, row % draws.bank_rows};
  const Bijection order(static_cast<uint32_t>(draws.bank_rows));
  const int64_t position = order.inverse(circle_key(draws.seed, 0), static_cast<uint32_t>(row));
  return {0, position + 1 == draws.bank_rows ? 0 : position + 1};
}

ECHO_EXT_HD int64_t ring_draw(const Draws& draws, RingPlace place, int64_t term) {
  const Bijection order(static_cast<uint32_t>(draws.bank_rows));
  return order(circle_key(draws.seed, place.circle), static_cast<uint32_t>((place.start + term) % draws.bank_rows));
}

}  // namespace echo_ext
