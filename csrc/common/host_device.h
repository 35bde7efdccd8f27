// Functions marked ECHO_EXT_HD are shared by CPU and CUDA kernels, so the CPU tests cover them as well.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define ECHO_EXT_HD __host__ __device__ __forceinline__
#else
#define ECHO_EXT_HD inline
#endif

namespace echo_ext {

ECHO_EXT_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace echo_ext
