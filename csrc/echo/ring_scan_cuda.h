// A block at one segment of a circle (echo_ring_cuda.cu): it goes through the segment in tiles, of which every group of
// lanes has a few consecutive positions in registers. Groups compose their positions, exchange_set what they have
// composed, and know then what enters their own. A lane has one column or two adjacent ones.
#pragma once

#include "echo/ring_cuda.h"

namespace echo_ext {

constexpr int kScanThreads = 512;
constexpr int kMinScanLanes = 4;  // bounds what is drawn by a warp

// ---- Adjacent columns ----------------------------------------------------------------------------------------------

template <typename T, int kColumns>
struct AdjacentColumns {
  T at[kColumns];
};
template <int kColumns, typename T>
__device__ __forceinline__ AdjacentColumns<T, kColumns> filled(T value) {
  AdjacentColumns<T, kColumns> all;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) all.at[c] = value;
  return all;
}
// a + b * c.
template <typename T, int kColumns>
__device__ __forceinline__ AdjacentColumns<T, kColumns> plus_product(const AdjacentColumns<T, kColumns>& a,
                                                                     const AdjacentColumns<T, kColumns>& b,
                                                                     const AdjacentColumns<T, kColumns>& c) {
  AdjacentColumns<T, kColumns> sum;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) sum.at[i] = a.at[i] + b.at[i] * c.at[i];
  return sum;
}
template <typename T, int kColumns>
__device__ __forceinline__ AdjacentColumns<T, kColumns> product(const AdjacentColumns<T, kColumns>& a,
                                                                const AdjacentColumns<T, kColumns>& b) {
  AdjacentColumns<T, kColumns> result;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) result.at[i] = a.at[i] * b.at[i];
  return result;
}
template <typename T, int kColumns>
__device__ __forceinline__ bool has_vanished(const AdjacentColumns<T, kColumns>& weight) {
  bool all = true;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) all = all && has_vanished(weight.at[i]);
  return all;
}

// What is loaded and stored in one instruction.
template <size_t kBytes>
struct MemoryWordOf;
template <>
struct MemoryWordOf<2> {
  using type = unsigned short;
};
template <>
struct MemoryWordOf<4> {
  using type = unsigned;
};
template <>
struct MemoryWordOf<8> {
  using type = unsigned long long;
};
template <>
struct MemoryWordOf<16> {
  using type = float4;
};
template <typename Storage, int kColumns>
using MemoryWord = typename MemoryWordOf<sizeof(Storage) * kColumns>::type;

template <typename Storage, int kColumns>
__device__ __forceinline__ AdjacentColumns<Compute<Storage>, kColumns> load_columns(const void* from, int64_t at) {
  const auto word =
      __ldg(reinterpret_cast<const MemoryWord<Storage, kColumns>*>(static_cast<const Storage*>(from) + at));
  Storage values[kColumns];
  memcpy(values, &word, sizeof(word));
  AdjacentColumns<Compute<Storage>, kColumns> columns;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) columns.at[i] = to_compute(values[i]);
  return columns;
}
template <typename Storage, int kColumns>
__device__ __forceinline__ void store_columns(void* to, int64_t at,
                                              const AdjacentColumns<Compute<Storage>, kColumns>& columns) {
  Storage values[kColumns];
#pragma unroll
  for (int i = 0; i < kColumns; ++i) values[i] = from_compute<Storage>(columns.at[i]);
  MemoryWord<Storage, kColumns> word;
  memcpy(&word, values, sizeof(word));
  *reinterpret_cast<MemoryWord<Storage, kColumns>*>(static_cast<Storage*>(to) + at) = word;
}

// ---- The block -----------------------------------------------------------------------------------------------------

// What a group tells the others of its positions, for each of a lane's columns.
template <typename T, int kColumns, int kNumbers>
struct alignas(sizeof(T) * kColumns * kNumbers % 16 == 0 ? 16 : sizeof(T) * kColumns) GroupMaps {
  AdjacentColumns<T, kColumns> numbers[kNumbers];
};

// kPositions of a group, kNumbers that groups exchange_set.
template <typename Storage, int kColumns, int kPositions, int kNumbers>
struct ScanBlock {
  using T = Compute<Storage>;
  using Value = AdjacentColumns<T, kColumns>;
  using Exchanged = GroupMaps<T, kColumns, kNumbers>;

  const EchoProblem& problem;
  Windows windows;
  uint64_t seed;
  Bijection order;
  int lanes, lane, group, groups;
  int32_t* rows;            // of this warp: two sets of its groups' positions, each from one before them
  int set_stride, own_row;  // where a position's window belongs, from its own row
  Exchanged* exchanged;     // two sets of all groups'
  int exchange_set = 0;     // the set of the next exchange_set
  int64_t column = 0, circle = 0;
  bool is_column = false;
  DrawKey key = {};

  static size_t shared_bytes(int lanes_) {
    const size_t warps = kScanThreads / kWarp, positions = static_cast<size_t>(kWarp / lanes_ * kPositions + 1);
    return 2 * (kScanThreads * sizeof(Exchanged) + warps * positions * sizeof(int32_t));
  }

  __device__ ScanBlock(const EchoProblem& problem_, const int64_t* seed_, const Windows& windows_, int lanes_)
      : problem(problem_),
        windows(windows_),
        seed(static_cast<uint64_t>(*seed_)),
        order(static_cast<uint32_t>(problem_.bank_rows)),
        lanes(lanes_),
        lane(static_cast<int>(threadIdx.x) % lanes_),
        group(static_cast<int>(threadIdx.x) / lanes_),
        groups(kScanThreads / lanes_),
        set_stride(kWarp / lanes_ * kPositions + 1),
        own_row(windows_.after_own_row ? -1 : 0) {
    exchanged = reinterpret_cast<Exchanged*>(dynamic_shared_memory);
    rows = reinterpret_cast<int32_t*>(exchanged + 2 * kScanThreads) +
           static_cast<int>(threadIdx.x) / kWarp * 2 * set_stride;
  }

  __device__ __forceinline__ int tile() const { return groups * kPositions; }

  // Lanes beyond the last column repeat it and write nothing.
  __device__ __forceinline__ void start(int64_t circle_, int64_t column_block) {
    circle = circle_;
    key = circle_key(seed, circle_);
    column = (column_block * lanes + lane) * kColumns;
    is_column = column < problem.width;
    if (!is_column) column = problem.width - kColumns;
  }

  // The rows of `count` positions of a tile, into set 0 or 1.
  __device__ __forceinline__ void draw(int set, int64_t first, int count) {
    const int of_warp = set_stride - 1, begin = group / (kWarp / lanes) * of_warp;
    int now = count - begin < of_warp ? count - begin : of_warp;
    const int before = windows.after_own_row ? 1 : 0;
    __syncwarp();
    for (int t = static_cast<int>(threadIdx.x) % kWarp - before; t < now; t += kWarp)
      rows[set * set_stride + 1 + t] =
          static_cast<int32_t>(order(key, static_cast<uint32_t>(wrap(first + begin + t, problem.bank_rows))));
    __syncwarp();
  }
  // This group's first.
  __device__ __forceinline__ const int32_t* drawn(int set) const {
    return rows + set * set_stride + 1 + group % (kWarp / lanes) * kPositions;
  }
  // How many of a tile's `count` positions are this group's.
  __device__ __forceinline__ int share(int count) const { return count - group * kPositions; }

  // Rows have fewer than 2^31 elements: one multiplication.
  __device__ __forceinline__ int64_t offset(int32_t row) const {
    return static_cast<int64_t>(uint64_t{static_cast<uint32_t>(row)} * static_cast<uint32_t>(problem.width)) + column;
  }

  // The element of the row whose window starts at a position, given the position's row; -1 where there is none.
  __device__ __forceinline__ int64_t owner(int64_t q, const int32_t* row) const {
    if (problem.exclude_self) return offset(row[own_row]);
    const int64_t of_circle = circle * problem.bank_rows + wrap(q, problem.bank_rows);
    return of_circle < problem.rows ? of_circle * problem.width + column : -1;
  }

  // Makes this group's numbers known; what all groups of the lane's columns have, one after another.
  __device__ __forceinline__ const Exchanged* exchange_maps(const Exchanged& own) {
    Exchanged* all = exchanged + exchange_set * kScanThreads;
    exchange_set ^= 1;
    all[threadIdx.x] = own;
    __syncthreads();
    return all + lane;
  }

  // Whether the weights of all columns have vanished, the same for all threads: every warp sees all of them.
  __device__ __forceinline__ bool all_vanished(const Value& weight) const {
    return __all_sync(kFullWarp, has_vanished(weight));
  }
};

}  // namespace echo_ext
