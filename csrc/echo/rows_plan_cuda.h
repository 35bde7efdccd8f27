// The launch plan of the kernels in rows_cuda.cu.
#pragma once

#include "echo/rows_cuda.h"

namespace echo_ext {

struct RowsPlan {
  int lanes;       // per row; a tile is lanes * kColumns columns wide
  bool staged;     // whether the tile is copied to shared memory
  int64_t tiles;   // grid.x
  int64_t groups;  // grid.y: the rows are distributed over the groups
  int threads;
  size_t shared_bytes;
  int64_t copies;  // of the bank's gradients; 0 in a forward pass

  int64_t num_threads() const { return tiles * groups * threads; }
};

constexpr int kMaxThreads = 512;  // leaves 128 registers per thread
constexpr int kWideLanes = kWarp, kStagedLanes = 8, kMinLanes = 2;
constexpr int64_t kMaxGroups = 65535;

// In a deterministic backward pass, each row in flight has its own copy of the bank's gradients. The number of copies
// is a power of two that depends only on the problem and on the width of a tile. The sums are therefore the same on all
// devices that use the same width.
constexpr int64_t kCopyBytes = int64_t{256} << 20;
constexpr int64_t kMinCopies = 8;     // even if they exceed kCopyBytes
constexpr int64_t kMaxCopies = 1024;  // copies are summed one after another

template <typename T>
int64_t deterministic_copies(const EchoProblem& problem, int lanes) {
  const int64_t copy_bytes = 2 * problem.bank_rows * problem.width * static_cast<int64_t>(sizeof(T));
  int64_t copies = kWarp / lanes;
  const int64_t max_copies = problem.rows < kMaxCopies ? problem.rows : kMaxCopies;
  while (copies < max_copies && (copies < kMinCopies || 2 * copies * copy_bytes <= kCopyBytes)) copies *= 2;
  return copies;
}

// Shared memory is several times faster than L2, even if it holds only a few columns of the bank: narrow rows merely
// cause bank conflicts. Reads through L2 are fastest for whole warps, unless most of their lanes have no column.
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

// Chooses the block size and the number of blocks. Unless there are more tiles, no more blocks are launched than run at
// once, so that each block stages its tile only once and few checkpoints are needed. In the cost model, one pass over
// the rows in flight takes the latency of a warp's loads, as long as a few warps keep a multiprocessor busy, plus a
// time proportional to the number of threads on the fullest multiprocessor.
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
