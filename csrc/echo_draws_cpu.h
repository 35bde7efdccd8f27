// The draws of many rows at once in vector registers: the same numbers as draw() makes one by one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "echo_cpu.h"
#include "echo_draws.h"
#include "simd.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {

// Vectors side by side hide how long each takes to multiply.
constexpr int kWordVectors = 4;
constexpr int kWordLanes = kWordVectors * kLanes<uint32_t>;

// The Word of echo_draws.h in vector registers.
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
      const V less = a.part[v] - size;  // above everything where it wraps around
      return less < a.part[v] ? less : a.part[v];
    });
  }
  friend inline Words scale_hash(const Words& hash, uint32_t size) {
    return each([&](int v) { return high_product(hash.part[v], size); });
  }

 private:
  // The upper halves of the products.
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

// Makes one problem's draws, in tables of consecutive rows: the first terms of all rows together, further terms of a
// row when it comes to need them.
class DrawMaker {
 public:
  DrawMaker(const EchoProblem& problem, int64_t seed)
      : draws_(draws_of(problem, seed)), order_(num_candidates(draws_)), num_terms_(problem.num_terms) {}

  int64_t num_terms() const { return num_terms_; }

  // The first draws of `count` rows from the table's `begin` on.
  void start(const DrawTable& table, int64_t begin, int64_t count) const {
    const int64_t terms = std::min(kFirstDraws, whole_vectors(num_terms_));
    constexpr int64_t kRowsAtOnce = kMostAtOnce / kFirstDraws;
    for (int64_t done = 0; done < count; done += kRowsAtOnce)
      make(table, begin + done, std::min(begin + done + kRowsAtOnce, begin + count), 0, terms);
  }

  // More draws of one row.
  void extend(const DrawTable& table, int64_t index) const {
    const int64_t first = table.counts[index];
    make(table, index, index + 1, first, std::min(kMoreDraws, whole_vectors(num_terms_ - first)));
  }

 private:
  using V = Vector<uint32_t>;
  static constexpr int64_t kUnit = kLanes<uint32_t>;
  static constexpr int64_t kMostAtOnce = 512;
  static int64_t whole_vectors(int64_t terms) { return ceil_div(terms, kUnit) * kUnit; }
  static_assert(kFirstDraws % kUnit == 0 && kMoreDraws % kUnit == 0, "draws come in whole vectors");

  // Vectors of draws: whose keys, which terms, and where they go. Where fewer are wanted, the last is repeated.
  struct Group {
    Words start, step, term;
    DrawKey key[kWordVectors];
    int32_t* to[kWordVectors];
  };

  // Values that the bijection has left outside of the candidates walk on along their cycles, all rows' together.
  struct Outside {
    int64_t count = 0;
    uint32_t value[kMostAtOnce + kWordLanes], start[kMostAtOnce + kWordLanes], step[kMostAtOnce + kWordLanes];
    int32_t* to[kMostAtOnce + kWordLanes];

    void add(uint32_t value_, DrawKey key, int32_t* to_) {
      value[count] = value_;
      start[count] = key.start;
      step[count] = key.step;
      to[count++] = to_;
    }
  };

  // `count` draws, from term `first` on, of each of the rows [begin, end).
  void make(const DrawTable& table, int64_t begin, int64_t end, int64_t first, int64_t count) const {
    const int64_t parts_of_row = count / kUnit, parts = (end - begin) * parts_of_row;
    Outside outside;
    for (int64_t part = 0; part < parts; part += kWordVectors) {
      Group group;
      for (int v = 0; v < kWordVectors; ++v) {
        const int64_t at = std::min(part + v, parts - 1), index = begin + at / parts_of_row;
        const int64_t term = first + at % parts_of_row * kUnit;
        group.key[v] = draw_key(draws_.seed, static_cast<uint64_t>(table.first_row + index));
        group.start.part[v] = broadcast<uint32_t>(group.key[v].start);
        group.step.part[v] = broadcast<uint32_t>(group.key[v].step);
        group.term.part[v] = ascending(static_cast<uint32_t>(term));
        group.to[v] = table.row(index) + term;
      }
      const int used = static_cast<int>(std::min<int64_t>(kWordVectors, parts - part));
      if (draws_.sampling == Sampling::replacement)
        hash(group);
      else if (order_.is_small())
        order<Bijection::kHalfRoundsWhenSmall>(group, used, outside);
      else
        order<Bijection::kHalfRounds>(group, used, outside);
    }
    if (order_.is_small())
      bring_inside<Bijection::kHalfRoundsWhenSmall>(outside);
    else
      bring_inside<Bijection::kHalfRounds>(outside);
    for (int64_t index = begin; index < end; ++index) {
      if (draws_.exclude_self) skip_self(table.row(index) + first, count, table.first_row + index);
      table.counts[index] = static_cast<int32_t>(first + count);
    }
  }

  void hash(const Group& group) const {
    Words product;
    for (int v = 0; v < kWordVectors; ++v) product.part[v] = group.step.part[v] * group.term.part[v];
    write(group, scale_hash(mix32(mix32(group.start + product) ^ group.step), order_.size));
  }

  template <int kRounds>
  void order(const Group& group, int used, Outside& outside) const {
    Words value = group.term;
    for (V& part : value.part) part = part < order_.size ? part : broadcast<uint32_t>(order_.size - 1);
    value = order_.step<kRounds>(group.start, group.step, value);
    write(group, value);
    for (int v = 0; v < used; ++v)
      for (uint32_t lanes = lanes_of(value.part[v] >= order_.size); lanes != 0; lanes &= lanes - 1) {
        int32_t* to = group.to[v] + __builtin_ctz(lanes);
        outside.add(static_cast<uint32_t>(*to), group.key[v], to);
      }
  }

  template <int kRounds>
  void bring_inside(Outside& outside) const {
    while (outside.count > 0) {
      const int64_t count = std::exchange(outside.count, 0);
      for (int64_t first = 0; first < count; first += kWordLanes) {
        // Lanes beyond the last hold anything.
        const Words start = Words::loaded(outside.start + first), step = Words::loaded(outside.step + first);
        uint32_t value[kWordLanes];
        order_.step<kRounds>(start, step, Words::loaded(outside.value + first)).store_to(value);
        for (int64_t i = first; i < std::min<int64_t>(first + kWordLanes, count); ++i) {
          *outside.to[i] = static_cast<int32_t>(value[i - first]);
          if (value[i - first] >= order_.size)
            outside.add(value[i - first], {outside.start[i], outside.step[i]}, outside.to[i]);
        }
      }
    }
  }

  static void write(const Group& group, const Words& value) {
    for (int v = 0; v < kWordVectors; ++v)
      store(reinterpret_cast<uint32_t*>(group.to[v]), value.part[v]);
  }

  static void skip_self(int32_t* drawn, int64_t count, int64_t row) {
    for (int64_t t = 0; t < count; ++t) drawn[t] += drawn[t] >= row ? 1 : 0;
  }

  static V ascending(uint32_t first) {
    V v;
    for (uint32_t lane = 0; lane < kUnit; ++lane) v[lane] = first + lane;
    return v;
  }

  // A bit for each lane where the comparison holds.
  template <typename Mask>
  static uint32_t lanes_of(const Mask& mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(mask), reinterpret_cast<__m512i>(mask));
#elif defined(__AVX2__)
    return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
#else
    uint32_t lanes = 0;
    for (uint32_t lane = 0; lane < kUnit; ++lane)
      if (mask[lane] != 0) lanes |= 1u << lane;
    return lanes;
#endif
  }

  const Draws draws_;
  const Bijection order_;
  const int64_t num_terms_;
};

// One row's draws, made as they are needed.
struct RowDraws {
  const DrawMaker& maker;
  const DrawTable& table;
  int64_t index;

  const int32_t* rows() const { return table.row(index); }
  // How many there are; more than `used`, which is less than num_terms.
  int64_t beyond(int64_t used) const {
    if (table.counts[index] <= used) maker.extend(table, index);
    return std::min<int64_t>(table.counts[index], maker.num_terms());
  }
};

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
