// Common to the CUDA files of the ring: windows, the distribution of work, and a group of lanes that works on one block
// of columns.
#pragma once

#include "common/cuda_support.h"
#include "echo/echo.h"

namespace echo_ext {

// ---- Traits --------------------------------------------------------------------------------------------------------

// The number of positions whose loads are in flight together, and the number of positions that an exact step keeps in
// registers.
template <typename T>
constexpr int kLoadsInFlight = 32 / static_cast<int>(sizeof(T));
template <typename T>
constexpr int kStepPositions = 64 / static_cast<int>(sizeof(T));

// The windows of one call. If the batch is its own bank, f + s * eps is itself a window: it starts at the row itself
// and is one term longer.
struct Windows {
  int64_t num_terms;
  // The window from q belongs to the row at q (at_own_row), to the row at q - 1 (after_own_row), or else to row q of
  // the circle.
  bool at_own_row, after_own_row;
};

__host__ __device__ __forceinline__ Windows windows_of(const EchoProblem& problem, bool has_rows) {
  const bool is_longer = problem.exclude_self && has_rows;
  return {problem.num_terms + (is_longer ? 1 : 0), is_longer, problem.exclude_self && !has_rows};
}

// Whether the call is about f + s * eps rather than eps.
__host__ __device__ __forceinline__ bool has_rows(const EchoForward& io) { return io.f != nullptr; }
__host__ __device__ __forceinline__ bool has_rows(const EchoBackward& io) { return io.s != nullptr; }

// Whether the rows have an s of their own, separate from the bank's.
__device__ __forceinline__ bool has_grad_s(const EchoBackward& io, const Windows& windows) {
  return has_rows(io) && !windows.at_own_row;
}

// The number of windows of a circle.
__host__ __device__ __forceinline__ int64_t num_windows(const EchoProblem& problem, int64_t circle) {
  return num_windows(draws_of(problem, 0), problem.rows, circle);
}

// ---- Distribution of work ------------------------------------------------------------------------------------------

// Composed maps of consecutive positions, on levels of increasing size. Level 0 is the positions themselves.
struct RingLevels {
  static constexpr int kMaxLevels = 16;
  int count;                  // number of levels above the positions
  int log_size[kMaxLevels];   // positions per map; the last map of a level may have fewer
  int64_t first[kMaxLevels];  // index of a level's first map among those of a circle
  int64_t num_maps;           // per circle
};

struct RingPlan {
  // For the scan: segments of the positions of each circle, in blocks of columns. Without segments, everything is
  // computed by the exact method.
  int64_t segment, num_segments, max_ahead;
  int scan_lanes, scan_columns;
  int64_t num_scan_column_blocks;
  // resident_scan_blocks is the number of blocks that run at once.
  int64_t resident_scan_blocks, tiles_of_segment;
  // For the exact method: steps of a few positions, again in blocks of columns.
  int step;
  int64_t num_steps;
  int lanes;
  int64_t num_column_blocks;
  RingLevels levels;
  // All circles add to the same gradients of the bank. Therefore each circle gets its own launch, or else each block
  // has a copy of the gradients and processes several circles one after another.
  int64_t num_circles, num_copies;
  bool blocks_own_copies;
  __host__ __device__ int64_t num_flags() const { return num_segments * num_scan_column_blocks; }  // per circle
};

// Distributes the circles [begin, end) over teams of `blocks` blocks each. A team processes one circle after another.
struct RingTeams {
  int64_t begin, end;
  unsigned blocks;
};

// Calls body(circle, item) for the items of each circle that belong to one of the num_workers workers of a block. The
// blocks of a team finish a circle before they begin the next.
template <typename Body>
__device__ __forceinline__ void for_each_item(const RingTeams& teams, int64_t num_items, int worker, int num_workers,
                                              const Body& body) {
  const int64_t first = static_cast<int64_t>(blockIdx.x % teams.blocks) * num_workers + worker;
  const int64_t stride = static_cast<int64_t>(teams.blocks) * num_workers;
  for (int64_t circle = teams.begin + blockIdx.x / teams.blocks; circle < teams.end;
       circle += gridDim.x / teams.blocks) {
    for (int64_t item = first; item < num_items; item += stride) body(circle, item);
    __syncthreads();
  }
}

// The destination of the bank's gradients: the results, or sums if several circles contribute.
template <typename T>
struct RingSums {
  T* f;  // of the first copy; null if there is only one circle
  T* s;
  int64_t copy_stride, num_copies;
};

// The first circle of a copy writes all of it, so it need not be cleared.
template <typename Storage>
__device__ __forceinline__ void store_gradients(const EchoBackward& io, const RingSums<Compute<Storage>>& sums,
                                                int64_t circle, int64_t at, Compute<Storage> to_f,
                                                Compute<Storage> to_s) {
  if (sums.f == nullptr) {
    static_cast<Storage*>(io.grad_bank_f)[at] = from_compute<Storage>(to_f);
    static_cast<Storage*>(io.grad_bank_s)[at] = from_compute<Storage>(to_s);
    return;
  }
  at += circle % sums.num_copies * sums.copy_stride;
  const bool is_first = circle < sums.num_copies;
  sums.f[at] = is_first ? to_f : sums.f[at] + to_f;
  sums.s[at] = is_first ? to_s : sums.s[at] + to_s;
}

// ---- A group of lanes ----------------------------------------------------------------------------------------------

// The drawn rows of a group: of its positions, preceded by the row before the first, and of positions after a window or
// step.
template <typename T>
struct GroupRows {
  int32_t here[kStepPositions<T> + 1], following[kStepPositions<T>];
};

__device__ __forceinline__ int64_t wrap(int64_t position, int64_t bank_rows) {
  if (position < 0) position += bank_rows;
  while (position >= bank_rows) position -= bank_rows;
  return position;
}

// A group of lanes, each with one column. Lanes after the last column repeat it and write nothing.
template <typename Storage>
struct RingGroup {
  using T = Compute<Storage>;

  const EchoProblem& problem;
  const Storage* f;
  const Storage* s;
  Windows windows;
  uint64_t seed;
  Bijection order;
  GroupRows<T>* rows;
  int lanes, lane, width;
  unsigned mask;
  int column = 0;
  bool is_column = false;
  int64_t circle = 0;
  DrawKey key = {};

  __device__ RingGroup(const EchoProblem& problem_, const int64_t* seed_, const void* f_, const void* s_,
                       const Windows& windows_, int lanes_)
      : problem(problem_),
        f(static_cast<const Storage*>(f_)),
        s(static_cast<const Storage*>(s_)),
        windows(windows_),
        seed(static_cast<uint64_t>(*seed_)),
        order(static_cast<uint32_t>(problem_.bank_rows)),
        lanes(lanes_),
        lane(static_cast<int>(threadIdx.x) % lanes_),
        width(static_cast<int>(problem_.width)) {
    rows = reinterpret_cast<GroupRows<T>*>(dynamic_shared_memory) + static_cast<int>(threadIdx.x) / lanes;
    const unsigned first_lane = threadIdx.x % kWarp / static_cast<unsigned>(lanes) * static_cast<unsigned>(lanes);
    mask = (kFullWarp >> (kWarp - lanes)) << first_lane;
  }

  __device__ __forceinline__ void start(int64_t circle_, int64_t column_block) {
    if (circle_ != circle || key.step == 0) key = circle_key(seed, circle_);  // the step of a valid key is odd
    circle = circle_;
    column = static_cast<int>(column_block) * lanes + lane;
    is_column = column < width;
    if (!is_column) column = width - 1;
  }

  __device__ __forceinline__ void draw_rows(int32_t* to, int64_t first, int count) {
    __syncwarp(mask);
    for (int t = lane; t < count; t += lanes)
      to[t] = static_cast<int32_t>(order(key, static_cast<uint32_t>(wrap(first + t, problem.bank_rows))));
    __syncwarp(mask);
  }
  // Windows that belong to the row before their start need that row as well.
  __device__ __forceinline__ void draw_here(int64_t first, int count) {
    if (windows.after_own_row)
      draw_rows(rows->here, first - 1, count + 1);
    else
      draw_rows(rows->here + 1, first, count);
  }
  __device__ __forceinline__ int32_t row_here(int slot) const { return rows->here[slot + 1]; }

  // The offset of a bank row's element in this lane's column.
  __device__ __forceinline__ int64_t offset(int32_t row) const { return static_cast<int64_t>(row) * width + column; }
  __device__ __forceinline__ T load(const void* from, int64_t at) const {
    return to_compute(static_cast<const Storage*>(from)[at]);
  }

  __device__ __forceinline__ void load_terms(const int32_t* drawn, int count, T (&term_f)[kLoadsInFlight<T>],
                                             T (&term_s)[kLoadsInFlight<T>]) const {
#pragma unroll
    for (int k = 0; k < kLoadsInFlight<T>; ++k) {
      if (k >= count) continue;
      const int64_t at = offset(drawn[k]);
      term_f[k] = load(f, at);
      term_s[k] = load(s, at);
    }
  }

  // The offset of the element of the row whose window starts at position q, which was drawn at `slot`, or -1 if there
  // is no such row.
  __device__ __forceinline__ int64_t owner(int64_t q, int slot) const {
    if (windows.at_own_row) return offset(rows->here[slot + 1]);
    if (windows.after_own_row) return offset(rows->here[slot]);
    const int64_t row = circle * problem.bank_rows + wrap(q, problem.bank_rows);
    return row < problem.rows ? row * width + column : -1;
  }
};

// ---- Launches ------------------------------------------------------------------------------------------------------

inline int lanes_for(int64_t columns, int minimum) {
  int lanes = minimum;
  while (lanes < kWarp && lanes < columns) lanes *= 2;
  return lanes;
}

// Launches at most as many blocks as run at once, in teams of no more blocks than a circle has work for.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_teams(void (*kernel)(Parameters...), int threads, size_t shared_bytes, const RingPlan& plan,
                         RingTeams teams, int64_t blocks_of_circle, const DeviceLimits& limits, cudaStream_t stream,
                         const Arguments&... arguments) {
  int resident = 0;
  const cudaError_t status = resident_blocks(kernel, threads, shared_bytes, &resident);
  if (status != cudaSuccess) return status;
  const int64_t slots = static_cast<int64_t>(resident > 0 ? resident : 1) * limits.multiprocessors;
  if (blocks_of_circle > slots) blocks_of_circle = slots;
  int64_t num_teams = teams.end - teams.begin;
  if (num_teams > slots / blocks_of_circle) num_teams = slots / blocks_of_circle;
  if (plan.blocks_own_copies) {
    blocks_of_circle = 1;
    num_teams = plan.num_copies;
  }
  teams.blocks = static_cast<unsigned>(blocks_of_circle);
  return launch(kernel, dim3(static_cast<unsigned>(blocks_of_circle * num_teams)), threads, shared_bytes, stream,
                arguments..., teams);
}

// The exact method (ring_exact_cuda.cu). `needs_exact` has a flag for each circle, segment and column block; null:
// compute everything. `maps` has space for every circle of the launch.
int64_t ring_maps_bytes(const EchoProblem& problem, const RingPlan& plan, bool backward, int64_t num_circles);
void plan_ring_exact(const EchoProblem& problem, const Windows& windows, bool backward, RingPlan* plan);
template <typename Storage>
cudaError_t ring_forward_exact(const EchoProblem& problem, const EchoForward& io, const RingPlan& plan,
                               const RingTeams& circles, const bool* needs_exact, void* maps,
                               const DeviceLimits& limits, cudaStream_t stream);
template <typename Storage>
cudaError_t ring_backward_exact(const EchoProblem& problem, const EchoBackward& io, const RingPlan& plan,
                                const RingTeams& circles, const bool* needs_exact, void* maps,
                                const RingSums<Compute<Storage>>& sums, const DeviceLimits& limits,
                                cudaStream_t stream);

}  // namespace echo_ext
