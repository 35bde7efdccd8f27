// The entry points of the Echo ops on CUDA, and the draws themselves.
#include <algorithm>

#include "echo/kernels_cuda.h"

namespace echo_ext {
namespace {

// ---- Indices -------------------------------------------------------------------------------------------------------

constexpr int kIndexThreads = 128;

// A thread computes a strided subset of the rows and terms. What all draws of a row share is computed once for several
// terms.
__global__ void __launch_bounds__(kIndexThreads)
    indices_kernel(EchoProblem problem, const int64_t* seed, int64_t* indices) {
  const Draws draws = draws_of(problem, *seed);
  const Bijection order(num_candidates(draws));
  const auto num_terms = static_cast<uint32_t>(problem.num_terms), bank_rows = static_cast<uint32_t>(draws.bank_rows);
  const uint32_t first = blockIdx.x * kIndexThreads + threadIdx.x, stride = gridDim.x * kIndexThreads;
  for (int64_t row = blockIdx.y; row < problem.rows; row += gridDim.y) {
    int64_t* to = indices + row * problem.num_terms;
    if (problem.sampling == Sampling::ring) {
      const RingPlace place = ring_place(draws, row);
      const DrawKey key = circle_key(draws.seed, place.circle);
      for (uint32_t term = first; term < num_terms; term += stride) {
        const uint32_t position = static_cast<uint32_t>(place.start) + term;  // the sum is less than 2 * bank_rows
        to[term] = order(key, position < bank_rows ? position : position - bank_rows);
      }
    } else {
      const DrawKey key = draw_key(draws.seed, static_cast<uint64_t>(row));
      for (uint32_t term = first; term < num_terms; term += stride) to[term] = draw(draws, order, key, row, term);
    }
  }
}

// As many blocks as the device runs at once, if there is work for all of them.
cudaError_t indices_grid(const EchoProblem& problem, const DeviceLimits& limits, dim3* grid) {
  constexpr int64_t kMaxRows = 65535;  // in a grid
  int resident = 0;
  const cudaError_t status = resident_blocks(indices_kernel, kIndexThreads, 0, &resident);
  if (status != cudaSuccess) return status;
  const int64_t blocks = int64_t{resident} * limits.multiprocessors;
  const int64_t along_rows = std::min({problem.rows, blocks, kMaxRows});
  const int64_t along_terms = std::min(ceil_div(problem.num_terms, kIndexThreads), blocks / along_rows);
  *grid = dim3(static_cast<unsigned>(along_terms), static_cast<unsigned>(along_rows));
  return cudaSuccess;
}

// ---- Entry points --------------------------------------------------------------------------------------------------

constexpr int64_t kMaxWidth = 0x7fffffff;

int64_t workspace_bytes(const EchoProblem& problem, int device, bool backward, bool deterministic) {
  const DeviceGuard guard(device);  // the launch plan depends on the occupancy of the current device
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
  DeviceLimits limits{};
  ECHO_EXT_CUDA_CHECK(device_limits(device, &limits));
  dim3 grid;
  ECHO_EXT_CUDA_CHECK(indices_grid(problem, limits, &grid));
  ECHO_EXT_CUDA_CHECK(
      launch(indices_kernel, grid, kIndexThreads, 0, static_cast<cudaStream_t>(stream), problem, seed, indices));
  return nullptr;
}

}  // namespace echo_ext
