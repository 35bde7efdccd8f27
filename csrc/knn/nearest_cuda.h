// The list of the k nearest neighbors of one query, while it searches.
#pragma once

#include "common/cuda_support.h"
#include "knn/knn.h"

namespace echo_ext {

// In registers. The list is right-aligned: unused slots come first and hold keys that nothing displaces, so that the
// k-th neighbor is always in the last slot.
template <typename T, int kSlots, bool kIndices>
struct Nearest {
  T key[kSlots];
  int32_t row[kIndices ? kSlots : 1];
  int unused;

  __device__ __forceinline__ explicit Nearest(int k) : unused(kSlots - k) {
    row[0] = 0;
#pragma unroll
    for (int r = 0; r < kSlots; ++r) {
      key[r] = r < unused ? -static_cast<T>(INFINITY) : static_cast<T>(INFINITY);
      if constexpr (kIndices) row[r] = r < unused ? -1 : kNoRow;
    }
  }
  __device__ __forceinline__ T bound() const { return key[kSlots - 1]; }
  __device__ __forceinline__ int32_t bound_row() const { return kIndices ? row[kIndices ? kSlots - 1 : 0] : -1; }
  __device__ __forceinline__ void insert(T new_key, int32_t new_row) {
#pragma unroll
    for (int r = 0; r < kSlots; ++r) {
      const T kept = key[r];
      if constexpr (kIndices) {
        const int32_t kept_row = row[r];
        const bool first = new_key < kept || (new_key == kept && new_row < kept_row);
        key[r] = first ? new_key : kept;
        row[r] = first ? new_row : kept_row;
        new_key = first ? kept : new_key;
        new_row = first ? kept_row : new_row;
      } else {
        key[r] = kept < new_key ? kept : new_key;
        new_key = kept < new_key ? new_key : kept;
      }
    }
  }
  template <typename Write>
  __device__ __forceinline__ void for_each(const Write& write) const {
#pragma unroll
    for (int r = 0; r < kSlots; ++r)
      if (r >= unused) write(r - unused, key[r], row[kIndices ? r : 0]);
  }
};

// In shared memory, for every k that fits, with one warp per block. The size is the same for both precisions.
inline int64_t nearest_bytes(int64_t k) { return k * kWarp * static_cast<int64_t>(sizeof(double) + sizeof(int32_t)); }
template <typename T>
struct Nearest<T, 0, true> {
  T* key;
  int32_t* row;
  int k;

  __device__ __forceinline__ explicit Nearest(int k_) : k(k_) {
    key = reinterpret_cast<T*>(dynamic_shared_memory) + threadIdx.x;
    row = reinterpret_cast<int32_t*>(reinterpret_cast<T*>(dynamic_shared_memory) + k * kWarp) + threadIdx.x;
    for (int r = 0; r < k; ++r) {
      key[r * kWarp] = static_cast<T>(INFINITY);
      row[r * kWarp] = kNoRow;
    }
  }
  __device__ __forceinline__ T bound() const { return key[(k - 1) * kWarp]; }
  __device__ __forceinline__ int32_t bound_row() const { return row[(k - 1) * kWarp]; }
  __device__ __forceinline__ void insert(T new_key, int32_t new_row) {
    int r = k - 1;
    for (; r > 0; --r) {
      const T before = key[(r - 1) * kWarp];
      const int32_t row_before = row[(r - 1) * kWarp];
      if (before < new_key || (before == new_key && row_before < new_row)) break;
      key[r * kWarp] = before;
      row[r * kWarp] = row_before;
    }
    key[r * kWarp] = new_key;
    row[r * kWarp] = new_row;
  }
  template <typename Write>
  __device__ __forceinline__ void for_each(const Write& write) const {
    for (int r = 0; r < k; ++r) write(r, key[r * kWarp], row[r * kWarp]);
  }
};

}  // namespace echo_ext
