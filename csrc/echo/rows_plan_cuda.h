// How the row kernels (echo_rows_cuda.cu) are laid over a device.
#pragma once

#include "echo/rows_cuda.h"

namespace echo_ext {

struct RowsPlan {
  int lanes;       // of a row: a tile is lanes * kColumns wide
  bool staged;     // the tile lies in shared memory
  int64_t tiles;   // grid.x
  int64_t groups;  // grid.y: rows are dealt out to them
  int threads;
  size_t shared_bytes;
  int64_t copies;  // of the bank's gradients, 0 in a forward pass

  int64_t num_threads() const { return tiles * groups * threads; }
};

constexpr int kMaxThreads = 512;  // leaves a thread 128 registers
constexpr int kWideLanes = kWarp, kStagedLanes = 8, kMinLanes = 2;
constexpr int64_t kMaxGroups = 65535;

// A deterministic backward pass gives each row in flight a copy of the bank's gradients of its own: a power of two of
// them, that the problem and the width of tiles determine, so that the sums are those of any device with as wide tiles.
constexpr int64_t kCopyBytes = int64_t{256} << 20;
constexpr int64_t kMinCopies = 8;     // also where they take more
constexpr int64_t kMaxCopies = 1024;  // which are summed one after another

template <typename T>
int64_t deterministic_copies(const EchoProblem& problem, int lanes) {
  const int64_t copy_bytes = 2 * problem.bank_rows * problem.width * static_cast<int64_t>(sizeof(T));
  int64_t copies = kWarp / lanes;
  const int64_t max_copies = problem.rows < kMaxCopies ? problem.rows : kMaxCopies;
  while (copies < max_copies && (copies < kMinCopies || 2 * copies * copy_bytes <= kCopyBytes)) copies *= 2;
  return copies;
}

// Shared memory serves a bank several times faster than L2 does, also where it holds few columns of it: narrow rows of
// cells in shared memory only meet in its banks. What L2 serves is read best by whole warps, unless max_copies of their
// lanes had no column.
template <typename T>
RowsPlan tiles_of(const EchoProblem& problem, const DeviceLimits& limits) {
  RowsPlan plan{};
  plan.lanes = kStagedLanes;
  while (plan.lanes > kMinLanes && plan.lanes / 2 * kColumns<T> >= problem.width) plan.lanes /= 2;
  while (plan.lanes > kMinLanes && staged_bytes<T>(problem.bank_rows, plan.lanes) > limits.shared_bytes)
    plan.lanes /= 2;
  const int64_t bytes = staged_bytes<T>(problem.bank_rows, plan.lanes);
  plan.staged = bytes <= limits.shared_bytes;
  if (plan.staged) plan.shared_bytes = static_cast<size_t>(bytes);
  if (!plan.staged) plan.lanes = problem.width <= kStagedLanes * kColumns<T> ? kStagedLanes : kWideLanes;
  plan.tiles = ceil_div(problem.width, plan.lanes * kColumns<T>);
  return plan;
}

// Chooses the size of blocks and how many there are: never more than run at once, unless there are more tiles, so that
// each stages its tile once and checkpoints stay few. A pass over the rows in flight takes the time of one warp's
// loads, as long as a few warps keep the multiprocessor busy, and of all threads of the fullest multiprocessor.
template <typename T, typename Kernel>
cudaError_t choose_blocks(const EchoProblem& problem, const DeviceLimits& limits, Kernel kernel, bool deterministic,
                          RowsPlan* plan) {
  constexpr int kLoadThreads = 4 * kWarp, kMinThreads = 4 * kWarp;
  int64_t best_time = 0;
  for (int threads = kMaxThreads; threads >= (deterministic ? kWarp : kMinThreads); threads /= 2) {
    int resident = 0;
    const cudaError_t status = resident_blocks(kernel, threads, plan->shared_bytes, &resident);
    if (status != cudaSuccess) return status;
    const int64_t rows_of_block = threads / plan->lanes, at_once = int64_t{resident} * limits.multiprocessors;
    if (at_once == 0 || (deterministic && rows_of_block > plan->copies)) continue;
    const int64_t wanted = problem.rows > 0 ? ceil_div(problem.rows, rows_of_block) : 1;
    int64_t groups = deterministic ? plan->copies / rows_of_block : at_once / plan->tiles;
    if (!deterministic && groups > wanted) groups = wanted;
    if (groups < 1) groups = 1;
    if (groups > kMaxGroups) groups = kMaxGroups;
    const int64_t blocks = plan->tiles * groups, waves = ceil_div(blocks, at_once);
    const int64_t busy = ceil_div(blocks < at_once ? blocks : at_once, limits.multiprocessors) * threads;
    const int64_t time = ceil_div(wanted, groups) * waves * (kLoadThreads + busy);
    if (best_time != 0 && time >= best_time) continue;
    best_time = time;
    plan->groups = groups;
    plan->threads = threads;
  }
  return best_time != 0 ? cudaSuccess : cudaErrorInvalidConfiguration;
}

}  // namespace echo_ext
