// Rows of tensors as packs of columns, and dispatch over element types and row widths.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/dtype.h"
#include "common/simd.h"
#include "common/workspace.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {

// Columns [first, first + count) of a row-major matrix, as packs padded with zeros.
template <typename Storage, typename P>
struct Columns {
  using T = Compute<Storage>;
  int64_t width, first;
  int count;

  Columns(int64_t width_, int64_t tile)
      : width(width_),
        first(tile * P::kColumns),
        count(static_cast<int>(std::min<int64_t>(P::kColumns, width_ - tile * P::kColumns))) {}

  __attribute__((always_inline)) P read(const void* matrix, int64_t row) const {
    const Storage* from = static_cast<const Storage*>(matrix) + row * width + first;
    alignas(64) T values[P::kColumns];
    if (count == P::kColumns) {
      for (int c = 0; c < P::kColumns; ++c) values[c] = to_compute(from[c]);
    } else {
      for (int c = 0; c < P::kColumns; ++c) values[c] = c < count ? to_compute(from[c]) : T(0);
    }
    return P::loaded(values);
  }

  // Must be inlined: GCC considers a function that only prefetches to have no effect, and removes calls of it.
  __attribute__((always_inline)) void prefetch(const void* matrix, int64_t row) const {
    const Storage* from = static_cast<const Storage*>(matrix) + row * width + first;
    for (int c = 0; c < count; c += 64 / static_cast<int>(sizeof(Storage))) __builtin_prefetch(from + c);
  }

  __attribute__((always_inline)) void write(void* matrix, int64_t row, const P& pack) const {
    Storage* to = static_cast<Storage*>(matrix) + row * width + first;
    alignas(64) T values[P::kColumns];
    pack.store_to(values);
    if (count == P::kColumns) {
      for (int c = 0; c < P::kColumns; ++c) to[c] = from_compute<Storage>(values[c]);
    } else {
      for (int c = 0; c < count; ++c) to[c] = from_compute<Storage>(values[c]);
    }
  }
};

// A tile of columns is 1, 2 or 4 cache lines wide, depending on the width of a row and on the number of registers. Wide
// tiles share the cost of each draw among more columns; narrow tiles give more tiles to distribute over threads.
constexpr int kMaxTileLines = kVectorBytes == 64 ? 4 : kVectorBytes == 32 ? 2 : 1;
// Backward passes mainly distribute tiles over threads, so their tiles are narrower.
constexpr int kMaxBackwardTileLines = kMaxTileLines < 2 ? kMaxTileLines : 2;

template <typename T>
constexpr int kLineColumns = 64 / static_cast<int>(sizeof(T));

template <typename T, int kLines>
using TilePack = Pack<T, kLines * 64 / kVectorBytes>;

template <int kMaxLines, typename Storage, typename Body>
void dispatch_tile(int64_t width, const Body& body) {
  using T = Compute<Storage>;
  if constexpr (kMaxLines >= 4)
    if (width > 2 * kLineColumns<T>) return body.template run<Storage, TilePack<T, 4>>();
  if constexpr (kMaxLines >= 2)
    if (width > kLineColumns<T>) return body.template run<Storage, TilePack<T, 2>>();
  return body.template run<Storage, TilePack<T, 1>>();
}

// Calls body.template run<Storage, Pack>() for an element type and a row width.
template <int kMaxLines, typename Body>
void dispatch(DType dtype, int64_t width, const Body& body) {
  switch (dtype) {
    case DType::float64: return dispatch_tile<kMaxLines, double>(width, body);
    case DType::float32: return dispatch_tile<kMaxLines, float>(width, body);
    case DType::bfloat16: return dispatch_tile<kMaxLines, BFloat16>(width, body);
    case DType::float16: return dispatch_tile<kMaxLines, Float16>(width, body);
  }
}

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
