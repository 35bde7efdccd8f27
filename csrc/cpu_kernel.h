// What the CPU kernel files share: rows of tensors as packs of columns, dispatch over element types, workspace layout.
#pragma once

#include <algorithm>
#include <cstdint>

#include "dtype.h"
#include "simd.h"

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

  P read(const void* matrix, int64_t row) const {
    const Storage* from = static_cast<const Storage*>(matrix) + row * width + first;
    alignas(64) T values[P::kColumns];
    if (count == P::kColumns) {
      for (int c = 0; c < P::kColumns; ++c) values[c] = to_compute(from[c]);
    } else {
      for (int c = 0; c < P::kColumns; ++c) values[c] = c < count ? to_compute(from[c]) : T(0);
    }
    return P::loaded(values);
  }

  void write(void* matrix, int64_t row, const P& pack) const {
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

// Two cache lines of columns at a time where a row has them and the registers suffice, else one.
template <typename T>
constexpr int64_t kLineColumns = 64 / static_cast<int64_t>(sizeof(T));
template <typename T>
inline bool use_wide_tiles(int64_t width) {
  return kVectorBytes > 16 && width > kLineColumns<T>;
}
template <typename T>
inline int64_t tile_columns(int64_t width) {
  return use_wide_tiles<T>(width) ? 2 * kLineColumns<T> : kLineColumns<T>;
}
template <typename T>
inline int64_t num_tiles(int64_t width) {
  return (width + tile_columns<T>(width) - 1) / tile_columns<T>(width);
}
template <typename T>
using NarrowPack = Pack<T, 64 / kVectorBytes>;
template <typename T>
using WidePack = Pack<T, 128 / kVectorBytes>;

// Calls body.template run<Storage, Pack>() for a problem's element type and width.
template <typename Body>
void dispatch(DType dtype, int64_t width, const Body& body) {
  switch (dtype) {
    case DType::float64:
      return use_wide_tiles<double>(width) ? body.template run<double, WidePack<double>>()
                                           : body.template run<double, NarrowPack<double>>();
    case DType::float32:
      return use_wide_tiles<float>(width) ? body.template run<float, WidePack<float>>()
                                          : body.template run<float, NarrowPack<float>>();
    case DType::bfloat16:
      return use_wide_tiles<float>(width) ? body.template run<BFloat16, WidePack<float>>()
                                          : body.template run<BFloat16, NarrowPack<float>>();
    case DType::float16:
      return use_wide_tiles<float>(width) ? body.template run<Float16, WidePack<float>>()
                                          : body.template run<Float16, NarrowPack<float>>();
  }
}

// Hands out aligned pieces of a workspace; with a null base it only adds up their sizes.
class Workspace {
 public:
  static constexpr int64_t kAlignment = 64;

  explicit Workspace(void* base) : base_(aligned(reinterpret_cast<uintptr_t>(base))) {}
  template <typename T>
  T* take(int64_t count) {
    T* piece = base_ == 0 ? nullptr : reinterpret_cast<T*>(base_ + static_cast<uintptr_t>(used_));
    used_ += aligned(static_cast<uint64_t>(count) * sizeof(T));
    return piece;
  }
  // A base of any alignment has room for all the pieces in this many bytes.
  int64_t bytes() const { return used_ + kAlignment; }

 private:
  template <typename Integer>
  static Integer aligned(Integer bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }

  uintptr_t base_;
  int64_t used_ = 0;
};

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
