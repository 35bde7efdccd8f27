// The entry points of the Echo ops on CUDA, and the draws themselves.
#include "echo_cuda.h"

namespace echo_ext {
namespace {

// ---- Indices --------------------------------------------------------------------------------------------------------

constexpr int kIndexThreads = 128;

__global__ void __launch_bounds__(kIndexThreads)
    indices_kernel(EchoProblem problem, const int64_t* seed, int64_t* indices) {
  const Draws draws = draws_of(problem, *seed);
  const Bijection order(num_candidates(draws));
  const uint32_t num_terms = static_cast<uint32_t>(problem.num_terms);
  for (int64_t row = blockIdx.x; row < problem.rows; row += gridDim.x) {
    int64_t* to = indices + row * problem.num_terms;
    if (problem.sampling == Sampling::ring) {
      const RingPlace place = ring_place(draws, row);
      for (uint32_t term = threadIdx.x; term < num_terms; term += blockDim.x) to[term] = ring_draw(draws, place, term);
    } else {
      const DrawKey key = draw_key(draws.seed, static_cast<uint64_t>(row));
      for (uint32_t term = threadIdx.x; term < num_terms; term += blockDim.x)
        to[term] = draw(draws, order, key, row, term);
    }
  }
}

// ---- Entry points ---------------------------------------------------------------------------------------------------

constexpr int64_t kMaxWidth = 0x7fffffff;

int64_t workspace_bytes(const EchoProblem& problem, int device, bool backward, bool deterministic) {
  const DeviceGuard guard(device);  // plans ask for the occupancy of the current device
  DeviceLimits limits{};
  if (guard.status() != cudaSuccess || device_limits(device, &limits) != cudaSuccess) return -1;
  if (problem.bank_rows == 0 || problem.width == 0) return 0;
  return problem.sampling == Sampling::ring ? echo_ring_cuda_workspace_bytes(problem, backward, limits)
                                            : echo_rows_cuda_workspace_bytes(problem, backward, deterministic, limits);
}

}  // namespace

int64_t echo_cuda_forward_workspace_bytes(const EchoProblem& problem, int device) {
  return workspace_bytes(problem, device, false, false);
}

int64_t echo_cuda_backward_workspace_bytes(const EchoProblem& problem, bool deterministic, int device) {
  return workspace_bytes(problem, device, true, deterministic);
}

const char* echo_cuda_forward(const EchoProblem& problem, const EchoForward& io, int device, void* stream) {
  if (problem.rows == 0 || problem.bank_rows == 0 || problem.width == 0) return nullptr;
  if (problem.width > kMaxWidth) return "echo_cuda_forward: a row must have fewer than 2^31 elements";
  const DeviceGuard guard(device);
  ECHO_EXT_CUDA_CHECK(guard.status());
  DeviceLimits limits{};
  ECHO_EXT_CUDA_CHECK(device_limits(device, &limits));
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  switch (problem.sampling) {
    case Sampling::permutation:
    case Sampling::replacement: return echo_rows_cuda_forward(problem, io, limits, cuda_stream);
    case Sampling::ring: return echo_ring_cuda_forward(problem, io, limits, cuda_stream);
  }
  return "echo_cuda_forward: unknown sampling";
}

const char* echo_cuda_backward(const EchoProblem& problem, const EchoBackward& io, bool deterministic, int device,
                               void* stream) {
  if (problem.bank_rows == 0 || problem.width == 0) return nullptr;
  if (problem.width > kMaxWidth) return "echo_cuda_backward: a row must have fewer than 2^31 elements";
  const DeviceGuard guard(device);
  ECHO_EXT_CUDA_CHECK(guard.status());
  DeviceLimits limits{};
  ECHO_EXT_CUDA_CHECK(device_limits(device, &limits));
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  switch (problem.sampling) {
    case Sampling::permutation:
    case Sampling::replacement: return echo_rows_cuda_backward(problem, io, deterministic, limits, cuda_stream);
    case Sampling::ring: return echo_ring_cuda_backward(problem, io, limits, cuda_stream);
  }
  return "echo_cuda_backward: unknown sampling";
}

const char* echo_cuda_indices(const EchoProblem& problem, const int64_t* seed, int64_t* indices, int device,
                              void* stream) {
  if (problem.rows == 0 || problem.num_terms == 0) return nullptr;
  const DeviceGuard guard(device);
  ECHO_EXT_CUDA_CHECK(guard.status());
  const dim3 grid(static_cast<unsigned>(problem.rows < 0x7fffffff ? problem.rows : 0x7fffffff));
  ECHO_EXT_CUDA_CHECK(
      launch(indices_kernel, grid, kIndexThreads, 0, static_cast<cudaStream_t>(stream), problem, seed, indices));
  return nullptr;
}

}  // namespace echo_ext
