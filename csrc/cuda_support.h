// What every CUDA file needs: checked calls, a device guard, launches, the caller's workspace, elements of any dtype.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "dtype.h"

// A block's dynamic shared memory.
extern __shared__ float4 dynamic_shared_memory[];

// Returns the text of an error from the calling function.
#define ECHO_EXT_CUDA_CHECK(call)                                   \
  do {                                                              \
    const cudaError_t status_ = (call);                             \
    if (status_ != cudaSuccess) return cudaGetErrorString(status_); \
  } while (false)

namespace echo_ext {

constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

// Makes a device current, and the former one again in the end.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : status_(cudaGetDevice(&former_)) {
    if (status_ == cudaSuccess && former_ != device) {
      status_ = cudaSetDevice(device);
      changed_ = status_ == cudaSuccess;
    }
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(former_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  cudaError_t status() const { return status_; }

 private:
  int former_ = 0;
  cudaError_t status_;
  bool changed_ = false;
};

struct DeviceLimits {
  int multiprocessors;
  int shared_bytes;  // of one block
};

inline cudaError_t device_limits(int device, DeviceLimits* limits) {
  const cudaError_t status = cudaDeviceGetAttribute(&limits->multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (status != cudaSuccess) return status;
  return cudaDeviceGetAttribute(&limits->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes, cudaStream_t stream,
                   const Arguments&... arguments) {
  constexpr size_t kWithoutOptIn = 48 * 1024;
  if (shared_bytes > kWithoutOptIn) {
    const cudaError_t status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (status != cudaSuccess) return status;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// Deals out the caller's workspace; with a null base it only counts.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}
  template <typename T>
  T* take(int64_t count) {
    char* at = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<T*>(at);
  }
  int64_t used() const { return used_; }

 private:
  static constexpr int64_t kAlignment = 256;
  char* base_;
  int64_t used_ = 0;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- Elements whose dtype is known at run time: for the edges of a kernel, where memory is what takes time ----

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
