// Functions marked ECHO_EXT_HD are the mathematics that CPU and CUDA kernels share; the CPU tests exercise them.
#pragma once

#if defined(__CUDACC__)
#define ECHO_EXT_HD __host__ __device__ __forceinline__
#else
#define ECHO_EXT_HD inline
#endif
