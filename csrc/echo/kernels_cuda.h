// Internal to the CUDA implementation. Callers include echo.h.
#pragma once

#include "common/cuda_support.h"
#include "echo/echo.h"

namespace echo_ext {

// Permutation and replacement sampling (rows_cuda.cu), on the current device.
int64_t echo_rows_cuda_workspace_bytes(const EchoProblem& problem, bool backward, bool deterministic,
                                       const DeviceLimits& limits);
const char* echo_rows_cuda_forward(const EchoProblem& problem, const EchoForward& io, const DeviceLimits& limits,
                                   cudaStream_t stream);
const char* echo_rows_cuda_backward(const EchoProblem& problem, const EchoBackward& io, bool deterministic,
                                    const DeviceLimits& limits, cudaStream_t stream);

// Ring sampling (ring_cuda.cu), on the current device.
int64_t echo_ring_cuda_workspace_bytes(const EchoProblem& problem, bool backward, const DeviceLimits& limits);
const char* echo_ring_cuda_forward(const EchoProblem& problem, const EchoForward& io, const DeviceLimits& limits,
                                   cudaStream_t stream);
const char* echo_ring_cuda_backward(const EchoProblem& problem, const EchoBackward& io, const DeviceLimits& limits,
                                    cudaStream_t stream);

}  // namespace echo_ext
