// What the ring kernels (echo_ring_cuda.cu) stand on: a plan of segments, and a group of lanes at one of them.
#pragma once

#include "cuda_support.h"
#include "echo.h"

namespace echo_ext {

// ---- Traits ---------------------------------------------------------------------------------------------------------

constexpr int kThreads = 128;
constexpr int kBatch = 32;  // positions whose rows are drawn together

// Positions whose loads are in flight together, and positions whose values an exact step keeps in registers.
template <typename T>
constexpr int kFlight = 32 / static_cast<int>(sizeof(T));
template <typename T>
constexpr int kStep = 64 / static_cast<int>(sizeof(T));

struct RingPlan {
  int64_t num_circles;
  int64_t segment;  // positions; a multiple of the step unless there is one segment only
  int64_t num_segments;
  int64_t steps_of_segment, flights_of_segment;
  int lanes;  // columns of a group
  int64_t num_column_blocks;
  bool blocks_own_columns;  // several circles add to the same rows, one after another
  __host__ __device__ int64_t items_of_circle() const { return num_segments * num_column_blocks; }
};

template <typename T>
struct RingWorkspace {
  bool* is_exact;   // [circle][item]: to be done by the exact kernel
  T* checkpoints;   // windows' sums at the ends of a segment's flights: [segment][flight][column]
  T* accumulators;  // of the bank's gradients where several circles add up, f's and then s's; else null
};

// Rows drawn for a group: of the positions that it scans, from one before them, and of those behind.
struct DrawnRows {
  int32_t here[kBatch + 1], behind[kBatch];
};

// Windows as this file sees them. A batch's own f + s * eps is the window from the row itself, one term longer.
struct Windows {
  int64_t num_terms;
  bool at_own_row,
      behind_own_row;  // the window from q belongs to the row at q, or at q - 1; else to row q of the circle
};

__host__ __device__ __forceinline__ Windows windows_of(const EchoProblem& problem, bool has_rows) {
  const bool is_longer = problem.exclude_self && has_rows;
  return {problem.num_terms + (is_longer ? 1 : 0), is_longer, problem.exclude_self && !has_rows};
}

// Calls body(item) for this group's share of the items. Where blocks own columns, their items are those of one block of
// columns: item % num_column_blocks.
template <typename Body>
__device__ __forceinline__ void for_each_item(const RingPlan& plan, int64_t num_items, const Body& body) {
  const int64_t groups_of_block = blockDim.x / static_cast<unsigned>(plan.lanes);
  const int64_t group = threadIdx.x / static_cast<unsigned>(plan.lanes);
  const int64_t first =
      plan.blocks_own_columns ? group * plan.num_column_blocks + blockIdx.x : blockIdx.x * groups_of_block + group;
  const int64_t stride = groups_of_block * (plan.blocks_own_columns ? plan.num_column_blocks : gridDim.x);
  for (int64_t item = first; item < num_items; item += stride) body(item);
}

// One group of lanes at one block of columns of one circle.
template <typename Storage>
struct RingGroup {
  using T = Compute<Storage>;

  const EchoProblem& problem;
  const Storage* f;
  const Storage* s;
  Windows windows;
  Draws draws;
  Bijection order;
  DrawnRows* rows;
  int lanes, lane, width;
  unsigned mask;
  int column = 0;
  bool is_column = false;
  int64_t circle = 0;
  DrawKey key = {};
  int64_t begin = 0, end = 0;  // the segment

  __device__ RingGroup(const EchoProblem& problem_, const int64_t* seed, const void* f_, const void* s_,
                       const Windows& windows_, const RingPlan& plan)
      : problem(problem_),
        f(static_cast<const Storage*>(f_)),
        s(static_cast<const Storage*>(s_)),
        windows(windows_),
        draws(draws_of(problem_, *seed)),
        order(static_cast<uint32_t>(problem_.bank_rows)),
        lanes(plan.lanes),
        lane(static_cast<int>(threadIdx.x) % plan.lanes),
        width(static_cast<int>(problem_.width)) {
    rows = reinterpret_cast<DrawnRows*>(dynamic_shared_memory) + static_cast<int>(threadIdx.x) / lanes;
    const unsigned first_lane = threadIdx.x % kWarp / static_cast<unsigned>(lanes) * static_cast<unsigned>(lanes);
    mask = (kFullWarp >> (kWarp - lanes)) << first_lane;
  }

  // Lanes beyond the last column repeat it and write nothing.
  __device__ __forceinline__ void start(int64_t circle_, int64_t item, const RingPlan& plan) {
    circle = circle_;
    key = circle_key(draws.seed, circle_);
    column = static_cast<int>(item % plan.num_column_blocks) * lanes + lane;
    is_column = column < width;
    if (!is_column) column = width - 1;
    begin = item / plan.num_column_blocks * plan.segment;
    end = begin + plan.segment < problem.bank_rows ? begin + plan.segment : problem.bank_rows;
  }

  // Leaves the index-th step of the segment; its length.
  __device__ __forceinline__ int clip_to_step(int64_t index) {
    begin += index * kStep<T>;
    if (begin + kStep<T> < end) end = begin + kStep<T>;
    return end > begin ? static_cast<int>(end - begin) : 0;
  }

  __device__ __forceinline__ int64_t wrap(int64_t position) const {
    while (position < 0) position += problem.bank_rows;
    while (position >= problem.bank_rows) position -= problem.bank_rows;
    return position;
  }

  __device__ __forceinline__ void draw_rows(int32_t* to, int64_t first, int count) {
    __syncwarp(mask);
    for (int t = lane; t < count; t += lanes)
      to[t] = static_cast<int32_t>(order(key, static_cast<uint32_t>(wrap(first + t))));
    __syncwarp(mask);
  }
  __device__ __forceinline__ void draw_here(int64_t first, int count) { draw_rows(rows->here, first - 1, count + 1); }
  __device__ __forceinline__ int32_t row_here(int slot) const { return rows->here[slot + 1]; }

  // A bank row's element in this thread's column.
  __device__ __forceinline__ int64_t offset(int32_t row) const { return static_cast<int64_t>(row) * width + column; }
  __device__ __forceinline__ T load(const void* from, int64_t at) const {
    return to_compute(static_cast<const Storage*>(from)[at]);
  }

  __device__ __forceinline__ void load_terms(const int32_t* drawn, int count, T (&term_f)[kFlight<T>],
                                             T (&term_s)[kFlight<T>]) const {
#pragma unroll
    for (int k = 0; k < kFlight<T>; ++k) {
      if (k >= count) continue;
      const int64_t at = offset(drawn[k]);
      term_f[k] = load(f, at);
      term_s[k] = load(s, at);
    }
  }

  // The element of the row whose window starts at position q, drawn at `slot`; -1 where there is none.
  __device__ __forceinline__ int64_t owner(int64_t q, int slot) const {
    if (windows.at_own_row) return offset(rows->here[slot + 1]);
    if (windows.behind_own_row) return offset(rows->here[slot]);
    const int64_t row = circle * problem.bank_rows + wrap(q);
    return row < problem.rows ? row * width + column : -1;
  }

  // Adds the terms from `position` on to sum, until `limit` are in or all columns' weights have vanished; the number of
  // terms that are in, or limit + 1 where the weights have not vanished at the limit.
  __device__ __forceinline__ int64_t add_terms(int64_t position, int64_t limit, T& sum, T& weight) {
    for (int64_t done = 0; done < limit; done += kBatch) {
      const int count = limit - done < kBatch ? static_cast<int>(limit - done) : kBatch;
      draw_rows(rows->behind, position + done, count);
      for (int slot = 0; slot < count; slot += kFlight<T>) {
        T term_f[kFlight<T>], term_s[kFlight<T>];
        load_terms(rows->behind + slot, count - slot, term_f, term_s);
#pragma unroll
        for (int k = 0; k < kFlight<T>; ++k) {
          if (slot + k >= count) continue;
          sum += weight * term_f[k];
          weight *= term_s[k];
        }
        if (__all_sync(mask, has_vanished(weight)))
          return slot + kFlight<T> < count ? done + slot + kFlight<T> : done + count;
      }
    }
    return limit + 1;
  }
};

}  // namespace echo_ext
