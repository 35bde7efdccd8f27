// Between the files of the CUDA implementation; callers use echo.h.
#pragma once

#include "cuda_support.h"
#include "echo.h"

namespace echo_ext {

// The ring's scans (echo_ring_cuda.cu), on the current device.
int64_t echo_ring_cuda_workspace_bytes(const EchoProblem& problem, bool backward, const DeviceLimits& limits);
const char* echo_ring_cuda_forward(const EchoProblem& problem, const EchoForward& io, const DeviceLimits& limits,
                                   cudaStream_t stream);
const char* echo_ring_cuda_backward(const EchoProblem& problem, const EchoBackward& io, const DeviceLimits& limits,
                                    cudaStream_t stream);

}  // namespace echo_ext
