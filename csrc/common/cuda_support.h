// Common to all CUDA files: checked calls, a device guard, launches, and elements whose dtype is known only at run
// time.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <tuple>

#include "common/dtype.h"
#include "common/workspace.h"

// The dynamic shared memory of a block.
extern __shared__ float4 dynamic_shared_memory[];

// Returns the text of the error from the enclosing function if a CUDA call fails.
#define ECHO_EXT_CUDA_CHECK(call)                                   \
  do {                                                              \
    const cudaError_t status_ = (call);                             \
    if (status_ != cudaSuccess) return cudaGetErrorString(status_); \
  } while (false)

namespace echo_ext {

using ECHO_EXT_ISA::Workspace;

constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

// Makes a device current, and restores the previous one on destruction.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : status_(cudaGetDevice(&previous_)) {
    if (status_ == cudaSuccess && previous_ != device) {
      status_ = cudaSetDevice(device);
      changed_ = status_ == cudaSuccess;
    }
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  cudaError_t status() const { return status_; }

 private:
  int previous_ = 0;
  cudaError_t status_;
  bool changed_ = false;
};

struct DeviceLimits {
  int multiprocessors;
  int shared_bytes;  // per block
};

// The limits are cached per thread, so the driver is asked once for each device.
inline cudaError_t device_limits(int device, DeviceLimits* limits) {
  thread_local std::map<int, DeviceLimits> known;
  const auto found = known.find(device);
  if (found != known.end()) {
    *limits = found->second;
    return cudaSuccess;
  }
  cudaError_t status = cudaDeviceGetAttribute(&limits->multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (status == cudaSuccess)
    status = cudaDeviceGetAttribute(&limits->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (status == cudaSuccess) known[device] = *limits;
  return status;
}

constexpr size_t kSharedBytesWithoutOptIn = 48 * 1024;

// Allows a kernel to use this much dynamic shared memory.
template <typename... Parameters>
cudaError_t allow_shared_bytes(void (*kernel)(Parameters...), size_t shared_bytes) {
  if (shared_bytes <= kSharedBytesWithoutOptIn) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
}

// Sets `blocks` to the number of blocks of a kernel that fit on one multiprocessor of the current device at the same
// time, given the kernel's registers, threads and shared memory. The answer is cached per thread. This is not a stream
// operation, so it is allowed while a graph is captured.
template <typename... Parameters>
cudaError_t resident_blocks(void (*kernel)(Parameters...), int threads, size_t shared_bytes, int* blocks) {
  thread_local std::map<std::tuple<int, const void*, int, size_t>, int> known;
  int device = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  const auto key = std::make_tuple(device, reinterpret_cast<const void*>(kernel), threads, shared_bytes);
  const auto found = known.find(key);
  if (found != known.end()) {
    *blocks = found->second;
    return cudaSuccess;
  }
  status = allow_shared_bytes(kernel, shared_bytes);
  if (status == cudaSuccess)
    status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, threads, shared_bytes);
  if (status == cudaSuccess) known[key] = *blocks;
  return status;
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes, cudaStream_t stream,
                   const Arguments&... arguments) {
  const cudaError_t status = allow_shared_bytes(kernel, shared_bytes);
  if (status != cudaSuccess) return status;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// ---- Memory --------------------------------------------------------------------------------------------------------

// Starts an asynchronous copy of 4, 8 or 16 aligned bytes from global to shared memory. Devices before compute
// capability 8.0 copy synchronously. commit_copies() ends a group of copies, and wait_for_copies<n>() returns when all
// but the last n groups of the calling thread have arrived. Data copied by other threads additionally requires a
// barrier.
template <int kBytes = 16>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
#if defined(CUDA_SHIM)
  cuda_shim::copy_async(shared, global, kBytes);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(global), "n"(kBytes) : "memory");
#else
  if constexpr (kBytes == 16)
    *static_cast<float4*>(shared) = *static_cast<const float4*>(global);
  else if constexpr (kBytes == 8)
    *static_cast<float2*>(shared) = *static_cast<const float2*>(global);
  else
    *static_cast<float*>(shared) = *static_cast<const float*>(global);
#endif
}
__device__ __forceinline__ void commit_copies() {
#if defined(CUDA_SHIM)
  cuda_shim::commit_copies();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int kMaxPending>
__device__ __forceinline__ void wait_for_copies() {
#if defined(CUDA_SHIM)
  cuda_shim::wait_for_copies(kMaxPending);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kMaxPending) : "memory");
#endif
}

// A single instruction from compute capability 9.0 on.
__device__ __forceinline__ void atomic_add(float4* at, float4 value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  atomicAdd(at, value);
#else
  atomicAdd(&at->x, value.x);
  atomicAdd(&at->y, value.y);
  atomicAdd(&at->z, value.z);
  atomicAdd(&at->w, value.w);
#endif
}

// ---- Elements whose dtype is known only at run time, for code that is limited by memory ----------------------------

template <typename T>
__device__ T load_element(DType dtype, const void* from, int64_t index);
template <>
__device__ __forceinline__ double load_element<double>(DType, const void* from, int64_t index) {
  return static_cast<const double*>(from)[index];
}
template <>
__device__ __forceinline__ float load_element<float>(DType dtype, const void* from, int64_t index) {
  if (dtype == DType::float32) return static_cast<const float*>(from)[index];
  if (dtype == DType::bfloat16) return to_compute(static_cast<const BFloat16*>(from)[index]);
  return to_compute(static_cast<const Float16*>(from)[index]);
}

__device__ __forceinline__ void store_element(DType, void* to, int64_t index, double value) {
  static_cast<double*>(to)[index] = value;
}
__device__ __forceinline__ void store_element(DType dtype, void* to, int64_t index, float value) {
  if (dtype == DType::float32)
    static_cast<float*>(to)[index] = value;
  else if (dtype == DType::bfloat16)
    static_cast<BFloat16*>(to)[index] = from_compute<BFloat16>(value);
  else
    static_cast<Float16*>(to)[index] = from_compute<Float16>(value);
}

}  // namespace echo_ext
