// Ring sampling on CUDA. The noise of a row is a window on a circle of bank rows. Neighboring windows differ by one
// term at either end, so that one scan computes all of them.
//
// The circle is cut into segments, one for each resident block. First a block sums the terms after its segment until
// their weight has vanished. This gives one incoming value for each column. Then it goes backward through the segment,
// where it reads each input once and writes each result once. If the weight does not vanish soon enough, or windows end
// before it does, the segment is flagged, and computed by the exact method (ring_exact_cuda.cu). Every sum is computed
// by one thread, so results are the same in every run.
//
// Memory traffic, in units of one tensor, is 3 + 2a for a forward and 7 + 4a for a backward pass, where the minimum is
// 3 and 5. Here a is the fraction of a segment that is read beyond its end, rounded up to whole tiles. Example: 2^20 x
// 64 float32 on 132 multiprocessors has segments of 7,952 positions and tiles of 256. Then a = 0.03 if weights vanish
// soon, and a = 0.39 with s = 0.97, for which a weight falls below 2^-126 after 2,867 terms.
#include <initializer_list>

#include "echo/kernels_cuda.h"
#include "echo/ring_cuda.h"
#include "echo/ring_passes_cuda.h"

namespace echo_ext {
namespace {

// ---- Launches ------------------------------------------------------------------------------------------------------

constexpr int64_t kMaxLaunchedCircles = 16;  // maximum number of circles of a call that are launched one by one

// The maximum distance that is read after a segment before the segment is flagged.
constexpr int kMaxSegmentsAhead = 2, kMaxTilesAhead = 16;

// Cuts circles into one segment for each resident block. Leaves num_segments at 0, which selects the exact method, if
// windows are too short for that, or if the bank is so small that composed maps are no more expensive. `num_starts` is
// the number of windows that one launch scans, `max_starts` that of one circle.
void plan_segments(int64_t num_starts, int64_t max_starts, int64_t bank_rows, int64_t num_terms, int64_t tile, int step,
                   RingPlan* plan) {
  const int64_t blocks = plan->resident_scan_blocks > plan->num_scan_column_blocks
                             ? plan->resident_scan_blocks / plan->num_scan_column_blocks
                             : 1;
  const int64_t positions = num_starts < bank_rows ? bank_rows : num_starts;
  if (num_terms < 2 * tile || 2 * positions < blocks * tile) return;
  int64_t segment = ceil_div(num_starts, blocks);
  if (segment < tile) segment = tile;
  if (segment > num_terms / 2) segment = num_terms / 2;
  if (segment > max_starts) segment = max_starts;
  plan->segment = ceil_div(segment, step) * step;
  plan->num_segments = ceil_div(max_starts, plan->segment);
  plan->tiles_of_segment = ceil_div(plan->segment, tile);
  // A few segments of a large bank may look further ahead: in total about as far as maps would.
  plan->max_ahead = bank_rows / plan->num_segments;
  if (plan->max_ahead > kMaxTilesAhead * tile) plan->max_ahead = kMaxTilesAhead * tile;
  if (plan->max_ahead < kMaxSegmentsAhead * plan->segment) plan->max_ahead = kMaxSegmentsAhead * plan->segment;
}

// If there are many circles, each too small to fill the device, they are processed side by side, with several copies of
// the gradients.
void plan_copies(const EchoProblem& problem, int64_t tile, const DeviceLimits& limits, RingPlan* plan) {
  if (plan->num_circles == 1) return;
  const bool fills = 2 * problem.bank_rows * plan->num_scan_column_blocks >= plan->resident_scan_blocks * tile;
  plan->blocks_own_copies = plan->num_circles > kMaxLaunchedCircles && !fills;
  plan->num_copies = plan->blocks_own_copies ? ceil_div(plan->num_circles, 2) : 1;
  if (plan->num_copies > limits.multiprocessors) plan->num_copies = limits.multiprocessors;
}

// Plans a call whose lanes have kColumns adjacent columns each.
template <typename Storage, int kColumns>
cudaError_t make_plan(const EchoProblem& problem, bool has_rows, bool backward, const DeviceLimits& limits,
                      RingPlan* plan) {
  using Forward = ScanForward<Storage, kColumns>;
  using Backward = ScanBackward<Storage, kColumns>;
  const Windows windows = windows_of(problem, has_rows);
  *plan = {};
  plan->num_circles = num_circles(draws_of(problem, 0), problem.rows);
  if (plan->num_circles == 0) plan->num_circles = 1;  // the gradients of a bank that nothing is drawn from are zero
  plan_ring_exact(problem, windows, backward, plan);
  plan->scan_lanes = lanes_for(ceil_div(problem.width, kColumns), kMinScanLanes);
  plan->scan_columns = plan->scan_lanes * kColumns;
  plan->num_scan_column_blocks = ceil_div(problem.width, plan->scan_columns);
  const size_t shared_bytes =
      backward ? Backward::shared_bytes(plan->scan_lanes) : Forward::shared_bytes(plan->scan_lanes);
  int resident = 0;
  const cudaError_t status =
      backward ? resident_blocks(ring_backward_kernel<Storage, kColumns>, kScanThreads, shared_bytes, &resident)
               : resident_blocks(ring_forward_kernel<Storage, kColumns>, kScanThreads, shared_bytes, &resident);
  if (status != cudaSuccess) return status;
  plan->resident_scan_blocks = static_cast<int64_t>(resident > 0 ? resident : 1) * limits.multiprocessors;
  const int64_t tile = kScanThreads / plan->scan_lanes * (backward ? Backward::kPositions : Forward::kPositions);
  int64_t max_starts = problem.bank_rows, num_starts = problem.bank_rows;  // per launch
  if (backward) {
    plan_copies(problem, tile, limits, plan);
    if (plan->blocks_own_copies) num_starts *= limits.multiprocessors;
  } else {
    num_starts = problem.rows;
    if (max_starts > num_starts) max_starts = num_starts;
  }
  if (resident == 0 || shared_bytes > static_cast<size_t>(limits.shared_bytes)) return cudaSuccess;
  plan_segments(num_starts, max_starts, problem.bank_rows, windows.num_terms, tile, kStepPositions<Compute<Storage>>,
                plan);
  return cudaSuccess;
}

template <typename T>
struct RingWorkspace {
  bool* needs_exact;  // [circle][segment][column block]
  void* maps;
  T* checkpoints;  // [block][tile of a segment][column of a block]
  T* sums;         // [f, s][copy][row][column]
};

template <typename Storage>
RingWorkspace<Compute<Storage>> take_workspace(Workspace& memory, const EchoProblem& problem, const RingPlan& plan,
                                               bool backward) {
  using T = Compute<Storage>;
  RingWorkspace<T> workspace{};
  if (plan.num_segments > 0) workspace.needs_exact = memory.take<bool>(plan.num_circles * plan.num_flags());
  const bool is_one_circle = backward && !plan.blocks_own_copies;
  workspace.maps = memory.take<char>(ring_maps_bytes(problem, plan, backward, is_one_circle ? 1 : plan.num_circles));
  if (backward)
    workspace.checkpoints = memory.take<T>(plan.resident_scan_blocks * plan.tiles_of_segment * plan.scan_columns);
  // A single copy accumulates in the results themselves, if their dtype is precise enough.
  if (plan.num_copies > 1 || (plan.num_copies == 1 && sizeof(Storage) < sizeof(T)))
    workspace.sums = memory.take<T>(2 * plan.num_copies * problem.bank_rows * problem.width);
  return workspace;
}

// The number of adjacent columns of a lane. With float64, a second column would not fit into registers.
template <typename Storage>
constexpr int kLaneColumns = sizeof(Storage) == 8 ? 1 : 2;

// Whether adjacent columns of all these tensors can be loaded by one instruction.
template <typename Storage>
bool are_aligned(const EchoProblem& problem, std::initializer_list<const void*> tensors) {
  bool all = problem.width % kLaneColumns<Storage> == 0;
  for (const void* tensor : tensors)
    all = all && reinterpret_cast<uintptr_t>(tensor) % (kLaneColumns<Storage> * sizeof(Storage)) == 0;
  return all;
}

template <typename Storage>
int64_t workspace_bytes(const EchoProblem& problem, bool backward, const DeviceLimits& limits) {
  // Neither the alignment of the tensors nor the rows are known yet: take the maximum over all cases.
  int64_t max_bytes = 0;
  for (const bool has_rows : {false, true}) {
    for (const bool is_aligned : {false, true}) {
      RingPlan plan;
      const bool use_lane_columns = is_aligned && are_aligned<Storage>(problem, {});
      const auto make = use_lane_columns ? make_plan<Storage, kLaneColumns<Storage>> : make_plan<Storage, 1>;
      if (make(problem, has_rows, backward, limits, &plan) != cudaSuccess) return -1;
      Workspace memory(nullptr);
      take_workspace<Storage>(memory, problem, plan, backward);
      if (memory.bytes() > max_bytes) max_bytes = memory.bytes();
    }
  }
  return max_bytes;
}

constexpr int kFinishThreads = 256;

// Adds up the copies of each element of the gradients.
template <typename Storage>
__global__ void __launch_bounds__(kFinishThreads) ring_finish_kernel(EchoBackward io, RingSums<Compute<Storage>> sums) {
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < sums.copy_stride;
       at += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    Compute<Storage> to_f = 0, to_s = 0;
    for (int64_t copy = 0; copy < sums.num_copies; ++copy) {
      to_f += sums.f[copy * sums.copy_stride + at];
      to_s += sums.s[copy * sums.copy_stride + at];
    }
    static_cast<Storage*>(io.grad_bank_f)[at] = from_compute<Storage>(to_f);
    static_cast<Storage*>(io.grad_bank_s)[at] = from_compute<Storage>(to_s);
  }
}

template <typename Storage, int kColumns>
const char* ring_forward(const EchoProblem& problem, const EchoForward& io, const DeviceLimits& limits,
                         cudaStream_t stream) {
  RingPlan plan;
  ECHO_EXT_CUDA_CHECK((make_plan<Storage, kColumns>(problem, has_rows(io), false, limits, &plan)));
  Workspace memory(io.workspace);
  const auto workspace = take_workspace<Storage>(memory, problem, plan, false);
  const RingTeams circles{0, plan.num_circles, 1};
  if (plan.num_segments > 0)
    ECHO_EXT_CUDA_CHECK(launch_teams(ring_forward_kernel<Storage, kColumns>, kScanThreads,
                                     ScanForward<Storage, kColumns>::shared_bytes(plan.scan_lanes), plan, circles,
                                     plan.num_flags(), limits, stream, problem, io, plan, workspace.needs_exact));
  ECHO_EXT_CUDA_CHECK(
      ring_forward_exact<Storage>(problem, io, plan, circles, workspace.needs_exact, workspace.maps, limits, stream));
  return nullptr;
}

template <typename Storage, int kColumns>
const char* ring_backward(const EchoProblem& problem, const EchoBackward& io, const DeviceLimits& limits,
                          cudaStream_t stream) {
  using T = Compute<Storage>;
  RingPlan plan;
  ECHO_EXT_CUDA_CHECK((make_plan<Storage, kColumns>(problem, has_rows(io), true, limits, &plan)));
  Workspace memory(io.workspace);
  const RingWorkspace<T> workspace = take_workspace<Storage>(memory, problem, plan, true);
  const int64_t count = problem.bank_rows * problem.width;
  RingSums<T> sums{nullptr, nullptr, count, plan.num_copies};
  if (workspace.sums != nullptr) {
    sums.f = workspace.sums;
    sums.s = workspace.sums + plan.num_copies * count;
  } else if (plan.num_copies == 1) {
    sums.f = static_cast<T*>(io.grad_bank_f);
    sums.s = static_cast<T*>(io.grad_bank_s);
  }
  const int64_t circles_of_launch = plan.blocks_own_copies ? plan.num_circles : 1;
  for (int64_t circle = 0; circle < plan.num_circles; circle += circles_of_launch) {
    const RingTeams circles{circle, circle + circles_of_launch, 1};
    if (plan.num_segments > 0)
      ECHO_EXT_CUDA_CHECK(launch_teams(ring_backward_kernel<Storage, kColumns>, kScanThreads,
                                       ScanBackward<Storage, kColumns>::shared_bytes(plan.scan_lanes), plan, circles,
                                       plan.num_flags(), limits, stream, problem, io, plan, sums, workspace.checkpoints,
                                       workspace.needs_exact));
    ECHO_EXT_CUDA_CHECK(ring_backward_exact<Storage>(problem, io, plan, circles, workspace.needs_exact, workspace.maps,
                                                     sums, limits, stream));
  }
  if (workspace.sums != nullptr) {
    const int64_t blocks = ceil_div(count, kFinishThreads),
                  max_blocks = static_cast<int64_t>(limits.multiprocessors) * 8;
    const dim3 grid(static_cast<unsigned>(blocks < max_blocks ? blocks : max_blocks));
    ECHO_EXT_CUDA_CHECK(launch(ring_finish_kernel<Storage>, grid, kFinishThreads, 0, stream, io, sums));
  }
  return nullptr;
}

template <typename Storage>
const char* ring_forward(const EchoProblem& problem, const EchoForward& io, const DeviceLimits& limits,
                         cudaStream_t stream) {
  const bool own_rows = io.f != nullptr && !problem.exclude_self;
  return are_aligned<Storage>(problem,
                              {io.bank_f, io.bank_s, io.out, own_rows ? io.f : nullptr, own_rows ? io.s : nullptr})
             ? ring_forward<Storage, kLaneColumns<Storage>>(problem, io, limits, stream)
             : ring_forward<Storage, 1>(problem, io, limits, stream);
}

template <typename Storage>
const char* ring_backward(const EchoProblem& problem, const EchoBackward& io, const DeviceLimits& limits,
                          cudaStream_t stream) {
  const bool own_rows = io.s != nullptr && !problem.exclude_self;
  return are_aligned<Storage>(problem, {io.bank_f, io.bank_s, io.grad, io.grad_bank_f, io.grad_bank_s,
                                        own_rows ? io.s : nullptr, own_rows ? io.grad_s : nullptr})
             ? ring_backward<Storage, kLaneColumns<Storage>>(problem, io, limits, stream)
             : ring_backward<Storage, 1>(problem, io, limits, stream);
}

}  // namespace

int64_t echo_ring_cuda_workspace_bytes(const EchoProblem& problem, bool backward, const DeviceLimits& limits) {
  switch (problem.dtype) {
    case DType::float64: return workspace_bytes<double>(problem, backward, limits);
    case DType::float32: return workspace_bytes<float>(problem, backward, limits);
    case DType::bfloat16: return workspace_bytes<BFloat16>(problem, backward, limits);
    case DType::float16: return workspace_bytes<Float16>(problem, backward, limits);
  }
  return -1;
}

const char* echo_ring_cuda_forward(const EchoProblem& problem, const EchoForward& io, const DeviceLimits& limits,
                                   cudaStream_t stream) {
  switch (problem.dtype) {
    case DType::float64: return ring_forward<double>(problem, io, limits, stream);
    case DType::float32: return ring_forward<float>(problem, io, limits, stream);
    case DType::bfloat16: return ring_forward<BFloat16>(problem, io, limits, stream);
    case DType::float16: return ring_forward<Float16>(problem, io, limits, stream);
  }
  return "echo_cuda_forward: unknown dtype";
}

const char* echo_ring_cuda_backward(const EchoProblem& problem, const EchoBackward& io, const DeviceLimits& limits,
                                    cudaStream_t stream) {
  switch (problem.dtype) {
    case DType::float64: return ring_backward<double>(problem, io, limits, stream);
    case DType::float32: return ring_backward<float>(problem, io, limits, stream);
    case DType::bfloat16: return ring_backward<BFloat16>(problem, io, limits, stream);
    case DType::float16: return ring_backward<Float16>(problem, io, limits, stream);
  }
  return "echo_cuda_backward: unknown dtype";
}

}  // namespace echo_ext
