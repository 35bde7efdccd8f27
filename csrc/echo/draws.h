// The bank rows that make up the noise of each row, as keyed functions of (seed, row, term). They need no table, and
// are the same on every device, and in the forward and the backward pass.
#pragma once

#include <cstdint>

#include "common/keyed.h"

namespace echo_ext {

enum class Sampling : int { permutation, replacement, ring };

// The parameters of the draws of one problem. If the batch is its own bank, a row never draws itself.
struct Draws {
  uint64_t seed;
  int64_t bank_rows;
  bool exclude_self;
  Sampling sampling;
};

// The number of bank rows that a row can draw.
ECHO_EXT_HD uint32_t num_candidates(const Draws& draws) {
  return static_cast<uint32_t>(draws.bank_rows - (draws.exclude_self && draws.sampling != Sampling::ring ? 1 : 0));
}

// The term-th draw of the row with the given key. For permutation and replacement sampling.
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
// The rows of the bank form a circle in a keyed order, and the noise of a row is a window of consecutive positions. If
// the batch is its own bank, the window of the row at position p starts at p + 1. With a separate bank, the window of
// row i starts at position i, and every further `bank_rows` rows use a circle in another order.

ECHO_EXT_HD DrawKey circle_key(uint64_t seed, int64_t circle) { return draw_key(~seed, static_cast<uint64_t>(circle)); }

ECHO_EXT_HD int64_t num_circles(const Draws& draws, int64_t rows) {
  return draws.exclude_self ? 1 : (rows + draws.bank_rows - 1) / draws.bank_rows;
}

// The number of windows of a circle. They start at positions [0, num_windows).
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
