// Echo noise with ring sampling on CUDA: noises are windows on a circle of bank rows, so that neighbours differ by one
// term and one scan makes them all.
#include "echo_cuda.h"
#include "echo_ring_cuda.h"

namespace echo_ext {
namespace {

// ---- Launch ---------------------------------------------------------------------------------------------------------

constexpr int64_t kMostLaunchedCircles = 16;  // of one call, in launches of their own

template <typename Storage>
RingPlan make_plan(const EchoProblem& problem, bool has_rows, bool backward, const DeviceLimits& limits) {
  RingPlan plan{};
  plan.num_circles = num_circles(draws_of(problem, 0), problem.rows);
  if (plan.num_circles == 0) plan.num_circles = 1;  // a bank that nothing is drawn from has gradients of zero
  plan.scan_columns = lanes_for(problem.width, 1);
  plan_ring_exact(problem, windows_of(problem, has_rows), backward, &plan);
  if (backward && plan.num_circles > 1) {
    plan.blocks_own_copies = plan.num_circles > kMostLaunchedCircles;
    plan.num_copies = plan.blocks_own_copies ? ceil_div(plan.num_circles, 4) : 1;
    if (plan.num_copies > limits.multiprocessors) plan.num_copies = limits.multiprocessors;
  }
  return plan;
}

template <typename T>
struct RingWorkspace {
  bool* is_exact;  // [circle][segment][block of columns]
  void* maps;
  T* sums;  // [f, s][copy][row][column]
};

template <typename Storage>
RingWorkspace<Compute<Storage>> take_workspace(Workspace& memory, const EchoProblem& problem, const RingPlan& plan,
                                               bool backward) {
  using T = Compute<Storage>;
  RingWorkspace<T> workspace{};
  if (plan.num_segments > 0) workspace.is_exact = memory.take<bool>(plan.num_circles * plan.num_flags());
  const bool is_one_circle = backward && !plan.blocks_own_copies;
  workspace.maps =
      memory.take<char>(ring_maps_bytes(problem, plan, backward, is_one_circle ? 1 : plan.num_circles));
  // One copy adds up in the results, where they are precise enough.
  if (plan.num_copies > 1 || (plan.num_copies == 1 && sizeof(Storage) < sizeof(T)))
    workspace.sums = memory.take<T>(2 * plan.num_copies * problem.bank_rows * problem.width);
  return workspace;
}

template <typename Storage>
int64_t workspace_bytes(const EchoProblem& problem, bool backward, const DeviceLimits& limits) {
  // With the rows' own terms or without, whichever needs more.
  int64_t most = 0;
  for (const bool has_rows : {false, true}) {
    Workspace memory(nullptr);
    take_workspace<Storage>(memory, problem, make_plan<Storage>(problem, has_rows, backward, limits), backward);
    if (memory.used() > most) most = memory.used();
  }
  return most;
}

constexpr int kFinishThreads = 256;

// Adds up the copies of each of the gradients' elements.
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

template <typename Storage>
const char* ring_forward(const EchoProblem& problem, const EchoForward& io, const DeviceLimits& limits,
                         cudaStream_t stream) {
  const RingPlan plan = make_plan<Storage>(problem, io.f != nullptr, false, limits);
  Workspace memory(io.workspace);
  const auto workspace = take_workspace<Storage>(memory, problem, plan, false);
  const RingTeams circles{0, plan.num_circles, 1};
  ECHO_EXT_CUDA_CHECK(ring_forward_exact<Storage>(problem, io, plan, circles, workspace.is_exact, workspace.maps,
                                                  limits, stream));
  return nullptr;
}

template <typename Storage>
const char* ring_backward(const EchoProblem& problem, const EchoBackward& io, const DeviceLimits& limits,
                          cudaStream_t stream) {
  using T = Compute<Storage>;
  const RingPlan plan = make_plan<Storage>(problem, io.s != nullptr, true, limits);
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
    ECHO_EXT_CUDA_CHECK(ring_backward_exact<Storage>(problem, io, plan, circles, workspace.is_exact, workspace.maps,
                                                     sums, limits, stream));
  }
  if (workspace.sums != nullptr) {
    const int64_t blocks = ceil_div(count, kFinishThreads),
                  most_blocks = static_cast<int64_t>(limits.multiprocessors) * 8;
    const dim3 grid(static_cast<unsigned>(blocks < most_blocks ? blocks : most_blocks));
    ECHO_EXT_CUDA_CHECK(launch(ring_finish_kernel<Storage>, grid, kFinishThreads, 0, stream, io, sums));
  }
  return nullptr;
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
