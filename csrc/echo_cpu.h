// The CPU kernels, once for each instruction set; echo_dispatch.cpp picks among them.
#pragma once

#include "echo.h"

namespace echo_ext {

struct EchoCpuKernels {
  int64_t (*forward_workspace_bytes)(const EchoProblem&, int num_threads);
  int64_t (*backward_workspace_bytes)(const EchoProblem&, int num_threads);
  void (*forward)(const EchoProblem&, const EchoForward&, int num_threads);
  void (*backward)(const EchoProblem&, const EchoBackward&, int num_threads);
};

namespace baseline {
extern const EchoCpuKernels echo_kernels, echo_ring_kernels;
}
namespace avx2 {
extern const EchoCpuKernels echo_kernels, echo_ring_kernels;
}
namespace avx512 {
extern const EchoCpuKernels echo_kernels, echo_ring_kernels;
}

}  // namespace echo_ext
