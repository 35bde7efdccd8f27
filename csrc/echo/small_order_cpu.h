// Orderings of at most 256 candidates, for many draws of a row at once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common/simd.h"
#include "echo/draws.h"
#include "echo/words_cpu.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {

// An ordering of at most 256 candidates. Each half of its Feistel network has at most 16 values. All hashes of a row's
// key are therefore computed once, and each round is a lookup in a table of 16 bytes.
class SmallOrder {
 public:
  static bool fits(const Bijection& order) { return order.size <= 256; }

  explicit SmallOrder(const Bijection& order) : order_(order) {}

  // Writes `count` draws of one row, starting with term `first`. `count` is a multiple of kLanes<uint32_t>.
  void draw(DrawKey key, uint32_t first, int count, int32_t* to) const {
    if (order_.is_small())
      draw_in_rounds<Bijection::kHalfRoundsWhenSmall>(key, first, count, to);
    else
      draw_in_rounds<Bijection::kHalfRounds>(key, first, count, to);
  }

 private:
  using Bytes = Vector<uint8_t>;
  static constexpr int kValues = 16;  // of one half

  // The value that each round adds to one half, indexed by the value of the other half.
  template <int kRounds>
  struct Tables {
    static constexpr int kEntries = kRounds / 2 * kValues;
    static_assert(kEntries % kWordLanes == 0, "hashes come in whole words");
    alignas(64) uint8_t to_high[kEntries], to_low[kEntries];

    Tables(const Bijection& order, DrawKey key) {
      const uint32_t low_mask = (1u << order.low_bits) - 1;
      for (int first = 0; first < kEntries; first += kWordLanes) {
        const Words entry = Words::each(
            [&](int v) { return ascending<uint32_t>(static_cast<uint32_t>(first + v * kLanes<uint32_t>)); });
        const Words value = Words::each([&](int v) {
          return (entry.part[v] & (kValues - 1)) + key.start + (entry.part[v] / kValues) * (2 * key.step);
        });
        const Words next = Words::each([&](int v) { return value.part[v] + key.step; });
        scale_hash(mix32(value), order.high_size).store_bytes_to(to_high + first);
        (mix32(next) & low_mask).store_bytes_to(to_low + first);
      }
    }
  };

  template <int kRounds>
  void draw_in_rounds(DrawKey key, uint32_t first, int count, int32_t* to) const {
    const Tables<kRounds> tables(order_, key);
    const Bytes last = broadcast(static_cast<uint8_t>(order_.size - 1));
    for (int done = 0; done < count; done += kLanes<uint8_t>) {
      // Terms after the last one are drawn as well, and ignored.
      Bytes value = step(tables, minimum(ascending(static_cast<uint8_t>(first + static_cast<uint32_t>(done))), last));
      while (any_above(value, last)) value = value > last ? step(tables, value) : value;
      uint8_t drawn[kLanes<uint8_t>];
      store(drawn, value);
      for (int i = 0; i < std::min(kLanes<uint8_t>, count - done); i += kLanes<uint32_t>)
        widen(drawn + i, to + done + i);
    }
  }

  template <int kRounds>
  Bytes step(const Tables<kRounds>& tables, Bytes x) const {
    const uint8_t low_mask = static_cast<uint8_t>((1u << order_.low_bits) - 1);
    const uint8_t high_size = static_cast<uint8_t>(order_.high_size);
    Bytes high = x >> static_cast<uint8_t>(order_.low_bits), low = x & low_mask;
    for (int round = 0; round < kRounds / 2; ++round) {
      high = high + look_up(tables.to_high + round * kValues, low);
      high = minimum(high, high - high_size);  // a negative difference wraps around to a large value
      low = (low + look_up(tables.to_low + round * kValues, high)) & low_mask;
    }
    return (high << static_cast<uint8_t>(order_.low_bits)) | low;
  }

  static Bytes look_up(const uint8_t* table, Bytes index) {
#if defined(__AVX512BW__)
    const __m512i entries = _mm512_maskz_broadcast_i32x4(0xffff, load_entries(table));
    return reinterpret_cast<Bytes>(_mm512_shuffle_epi8(entries, reinterpret_cast<__m512i>(index)));
#elif defined(__AVX2__)
    const __m256i entries = _mm256_broadcastsi128_si256(load_entries(table));
    return reinterpret_cast<Bytes>(_mm256_shuffle_epi8(entries, reinterpret_cast<__m256i>(index)));
#else
    for (int lane = 0; lane < kLanes<uint8_t>; ++lane) index[lane] = table[index[lane]];
    return index;
#endif
  }

#if defined(__AVX2__)
  static __m128i load_entries(const uint8_t* table) { return _mm_load_si128(reinterpret_cast<const __m128i*>(table)); }
#endif

  static Bytes minimum(Bytes a, Bytes b) { return a < b ? a : b; }

  static bool any_above(Bytes a, Bytes b) {
#if defined(__AVX512BW__)
    return _mm512_cmpgt_epu8_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)) != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_epi8(reinterpret_cast<__m256i>(a > b)) != 0;
#else
    const auto above = a > b;
    int64_t parts[sizeof(Bytes) / sizeof(int64_t)], any = 0;
    std::memcpy(parts, &above, sizeof(parts));
    for (const int64_t part : parts) any |= part;
    return any != 0;
#endif
  }

  static void widen(const uint8_t* from, int32_t* to) { std::copy_n(from, kLanes<uint32_t>, to); }

  const Bijection order_;
};

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
