// The draws of many rows at once in vector registers. They are the same numbers that draw() computes one by one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "common/simd.h"
#include "echo/draws.h"
#include "echo/kernels_cpu.h"
#include "echo/small_order_cpu.h"
#include "echo/words_cpu.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {

// Fills tables with the draws of consecutive rows: the first terms of all rows at once, and further terms of a row when
// it turns out to need them.
class DrawMaker {
 public:
  DrawMaker(const EchoProblem& problem, int64_t seed)
      : draws_(draws_of(problem, seed)), order_(num_candidates(draws_)), num_terms_(problem.num_terms) {}

  int64_t num_terms() const { return num_terms_; }

  // Computes the first draws of `count` rows, starting with row `begin` of the table.
  void start(const DrawTable& table, int64_t begin, int64_t count) const {
    const int64_t terms = std::min(first_draws(num_terms_), round_up_to_vectors(num_terms_));
    const int64_t rows_at_once = kMaxAtOnce / terms;
    for (int64_t done = 0; done < count; done += rows_at_once)
      make(table, begin + done, std::min(begin + done + rows_at_once, begin + count), 0, terms);
  }

  // Computes more draws of one row.
  void extend(const DrawTable& table, int64_t index) const {
    const int64_t first = table.counts[index];
    make(table, index, index + 1, first, std::min(kMoreDraws, round_up_to_vectors(num_terms_ - first)));
  }

 private:
  using V = Vector<uint32_t>;
  static constexpr int64_t kVectorTerms = kLanes<uint32_t>;
  static constexpr int64_t kMaxAtOnce = 1024;
  static int64_t round_up_to_vectors(int64_t terms) { return ceil_div(terms, kVectorTerms) * kVectorTerms; }
  static_assert(kFirstDraws % kVectorTerms == 0 && kMoreDraws % kVectorTerms == 0, "draws come in whole vectors");

  // A number of vectors of draws: their keys, terms and destinations. If fewer vectors are needed, the last one is
  // repeated.
  struct Group {
    Words start, step, term;
    DrawKey key[kWordVectors];
    int32_t* to[kWordVectors];
  };

  // Results of the bijection that are not below the number of candidates. The bijection is applied to them again, for
  // all rows together.
  struct OutOfRange {
    int64_t count = 0;
    uint32_t value[kMaxAtOnce + kWordLanes], start[kMaxAtOnce + kWordLanes], step[kMaxAtOnce + kWordLanes];
    int32_t* to[kMaxAtOnce + kWordLanes];

    void add(uint32_t value_, DrawKey key, int32_t* to_) {
      value[count] = value_;
      start[count] = key.start;
      step[count] = key.step;
      to[count++] = to_;
    }
  };

  // Computes `count` draws, starting with term `first`, of each of the rows [begin, end).
  void make(const DrawTable& table, int64_t begin, int64_t end, int64_t first, int64_t count) const {
    if (draws_.sampling == Sampling::permutation && SmallOrder::fits(order_))
      make_small(table, begin, end, first, count);
    else
      make_large(table, begin, end, first, count);
    for (int64_t index = begin; index < end; ++index) {
      if (draws_.exclude_self) skip_self(table.row(index) + first, count, table.first_row + index);
      table.counts[index] = static_cast<int32_t>(first + count);
    }
  }

  void make_small(const DrawTable& table, int64_t begin, int64_t end, int64_t first, int64_t count) const {
    const SmallOrder order(order_);
    for (int64_t index = begin; index < end; ++index)
      order.draw(key_of(table, index), static_cast<uint32_t>(first), static_cast<int>(count), table.row(index) + first);
  }

  void make_large(const DrawTable& table, int64_t begin, int64_t end, int64_t first, int64_t count) const {
    const int64_t parts = (end - begin) * (count / kVectorTerms);
    OutOfRange out_of_range;
    int64_t index = begin, done = 0;  // `done` counts the terms of row `index`
    DrawKey key = key_of(table, index);
    for (int64_t part = 0; part < parts; part += kWordVectors) {
      Group group;
      for (int v = 0; v < kWordVectors; ++v) {
        group.key[v] = key;
        group.start.part[v] = broadcast<uint32_t>(key.start);
        group.step.part[v] = broadcast<uint32_t>(key.step);
        group.term.part[v] = ascending<uint32_t>(static_cast<uint32_t>(first + done));
        group.to[v] = table.row(index) + first + done;
        if (part + v + 1 >= parts) continue;
        done += kVectorTerms;
        if (done == count) key = key_of(table, ++index), done = 0;
      }
      const int used = static_cast<int>(std::min<int64_t>(kWordVectors, parts - part));
      if (draws_.sampling == Sampling::replacement)
        hash(group);
      else
        order(group, used, out_of_range);
    }
    walk_cycles(out_of_range);
  }

  DrawKey key_of(const DrawTable& table, int64_t index) const {
    return draw_key(draws_.seed, static_cast<uint64_t>(table.first_row + index));
  }

  void hash(const Group& group) const {
    Words product;
    for (int v = 0; v < kWordVectors; ++v) product.part[v] = group.step.part[v] * group.term.part[v];
    write(group, scale_hash(mix32(mix32(group.start + product) ^ group.step), order_.size));
  }

  void order(const Group& group, int used, OutOfRange& out_of_range) const {
    Words value = group.term;
    for (V& part : value.part) part = part < order_.size ? part : broadcast<uint32_t>(order_.size - 1);
    value = order_.step<Bijection::kHalfRounds>(group.start, group.step, value);
    write(group, value);
    for (int v = 0; v < used; ++v)
      for (uint32_t lanes = lane_bits(value.part[v] >= order_.size); lanes != 0; lanes &= lanes - 1) {
        int32_t* to = group.to[v] + __builtin_ctz(lanes);
        out_of_range.add(static_cast<uint32_t>(*to), group.key[v], to);
      }
  }

  void walk_cycles(OutOfRange& out_of_range) const {
    while (out_of_range.count > 0) {
      const int64_t count = std::exchange(out_of_range.count, 0);
      for (int64_t first = 0; first < count; first += kWordLanes) {
        // The lanes after the last value hold arbitrary data.
        const Words start = Words::loaded(out_of_range.start + first), step = Words::loaded(out_of_range.step + first);
        uint32_t value[kWordLanes];
        order_.step<Bijection::kHalfRounds>(start, step, Words::loaded(out_of_range.value + first)).store_to(value);
        for (int64_t i = first; i < std::min<int64_t>(first + kWordLanes, count); ++i) {
          *out_of_range.to[i] = static_cast<int32_t>(value[i - first]);
          if (value[i - first] >= order_.size)
            out_of_range.add(value[i - first], {out_of_range.start[i], out_of_range.step[i]}, out_of_range.to[i]);
        }
      }
    }
  }

  static void write(const Group& group, const Words& value) {
    for (int v = 0; v < kWordVectors; ++v) store(reinterpret_cast<uint32_t*>(group.to[v]), value.part[v]);
  }

  static void skip_self(int32_t* drawn, int64_t count, int64_t row) {
    for (int64_t t = 0; t < count; ++t) drawn[t] += drawn[t] >= row ? 1 : 0;
  }

  // A bit for each lane, set where the comparison holds.
  template <typename Mask>
  static uint32_t lane_bits(const Mask& mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(mask), reinterpret_cast<__m512i>(mask));
#elif defined(__AVX2__)
    return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
#else
    uint32_t lanes = 0;
    for (uint32_t lane = 0; lane < kVectorTerms; ++lane)
      if (mask[lane] != 0) lanes |= 1u << lane;
    return lanes;
#endif
  }

  const Draws draws_;
  const Bijection order_;
  const int64_t num_terms_;
};

// The draws of one row, which are computed as they are needed.
struct RowDraws {
  const DrawMaker& maker;
  const DrawTable& table;
  int64_t index;

  const int32_t* rows() const { return table.row(index); }
  // The number of draws that are available, computing more if there are only `used` of them. used must be less than
  // num_terms.
  int64_t available_after(int64_t used) const {
    if (table.counts[index] <= used) maker.extend(table, index);
    return std::min<int64_t>(table.counts[index], maker.num_terms());
  }
};

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
