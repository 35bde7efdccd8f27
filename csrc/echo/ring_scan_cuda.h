// A block that scans one segment of a circle (ring_cuda.cu). It goes through the segment in tiles. Each group of lanes
// holds a few consecutive positions of a tile in registers, and composes them to a map. The groups exchange these maps,
// from which each computes the value that enters its own positions. A lane has one column or two adjacent ones.
#pragma once

#include "echo/ring_cuda.h"

namespace echo_ext {

constexpr int kScanThreads = 512;
constexpr int kMinScanLanes = 4;  // limits the number of rows that a warp draws

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

// The type by which adjacent columns are loaded and stored in one instruction.
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

// The map of a group's positions that it shares with the other groups, for each column of a lane.
template <typename T, int kColumns, int kNumbers>
struct alignas(sizeof(T) * kColumns * kNumbers % 16 == 0 ? 16 : sizeof(T) * kColumns) GroupMaps {
  AdjacentColumns<T, kColumns> numbers[kNumbers];
};

// Each group has kPositions positions, and exchanges maps of kNumbers numbers.
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
  int32_t* rows;  // of this warp: two sets of its groups' positions, each preceded by the row before
  // own_row is the offset from a position's row to the row that its window belongs to.
  int set_stride, own_row;
  Exchanged* exchanged;  // two sets of the maps of all groups
  int exchange_set = 0;  // the set that the next exchange uses
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

  // Lanes after the last column repeat it and write nothing.
  __device__ __forceinline__ void start(int64_t circle_, int64_t column_block) {
    circle = circle_;
    key = circle_key(seed, circle_);
    column = (column_block * lanes + lane) * kColumns;
    is_column = column < problem.width;
    if (!is_column) column = problem.width - kColumns;
  }

  // Draws the rows of `count` positions of a tile into set 0 or 1.
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
  // The first row of this group's positions.
  __device__ __forceinline__ const int32_t* drawn(int set) const {
    return rows + set * set_stride + 1 + group % (kWarp / lanes) * kPositions;
  }
  // How many of the `count` positions of a tile belong to this group. May be negative or exceed kPositions.
  __device__ __forceinline__ int share(int count) const { return count - group * kPositions; }

  // Rows have fewer than 2^31 elements, so one 32-bit multiplication is enough.
  __device__ __forceinline__ int64_t offset(int32_t row) const {
    return static_cast<int64_t>(uint64_t{static_cast<uint32_t>(row)} * static_cast<uint32_t>(problem.width)) + column;
  }

  // The offset of the element of the row whose window starts at position q, given a pointer to the row at q, or -1 if
  // there is no such row.
  __device__ __forceinline__ int64_t owner(int64_t q, const int32_t* row) const {
    if (problem.exclude_self) return offset(row[own_row]);
    const int64_t of_circle = circle * problem.bank_rows + wrap(q, problem.bank_rows);
    return of_circle < problem.rows ? of_circle * problem.width + column : -1;
  }

  // Publishes the map of this group. Returns those of all groups for the lane's columns, in order.
  __device__ __forceinline__ const Exchanged* exchange_maps(const Exchanged& own) {
    Exchanged* all = exchanged + exchange_set * kScanThreads;
    exchange_set ^= 1;
    all[threadIdx.x] = own;
    __syncthreads();
    return all + lane;
  }

  // Whether the weights of all columns have vanished. The result is the same for all threads, because every warp holds
  // all columns.
  __device__ __forceinline__ bool all_vanished(const Value& weight) const {
    return __all_sync(kFullWarp, has_vanished(weight));
  }
};

}  // namespace echo_ext
