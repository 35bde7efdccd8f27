// A stand-in for CUDA's header that lets the `.cu` files compile as C++17 and run on the CPU, for tests only.
// Blocks run one after another. The threads of a block are fibers that meet at barriers and warp intrinsics. Dynamic
// shared memory holds NaN when a block starts and ends where the launch said (under AddressSanitizer). Asynchronous
// copies are made as late or as early as possible. Errors in the use of barriers end the process with a message.
// Kernels may use what is declared here, and no static __shared__ variables.
// Occupancy is computed from the registers that ptxas reports and the limits of compute capability 9.0. Launches are
// recorded, and need not run.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <unordered_map>
#include <vector>

#define CUDA_SHIM
#define __global__
#define __device__
#define __host__
#define __shared__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

// ---- The runtime ---------------------------------------------------------------------------------------------------

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorInvalidConfiguration, cudaErrorInvalidDevice };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrReservedSharedMemoryPerBlock,
  cudaDevAttrComputeCapabilityMajor
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
using cudaStream_t = struct CUstream_st*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

const char* cudaGetErrorString(cudaError_t status);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream);

namespace cuda_shim {

// Threads run in this order between two meeting points; a kernel that lacks a barrier fails in one of the orders.
enum class Order { ascending, descending };
extern Order order;

struct Launch {
  int64_t kernel;  // see kernel_number
  dim3 blocks;
  unsigned threads;
  size_t shared_bytes;
  int resident_blocks;  // of a multiprocessor
  int64_t meetings;     // of threads at barriers and warp intrinsics: a measure of the steps taken
};
extern std::vector<Launch> launches;
extern bool runs_kernels;                           // if false, launches are only recorded
extern std::unordered_map<int64_t, int> registers;  // of a thread, by the number of its kernel

cudaError_t resident_blocks(const void* kernel, int threads, size_t shared_bytes, int* blocks);
cudaError_t allow_shared_bytes(const void* kernel, int bytes);
cudaError_t run(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& thread);

enum class Meeting { block_barrier, warp_barrier, shuffle, shuffle_xor, vote };
void meet_block();
// Returns when every lane of the mask has come to the same kind of meeting.
void meet_warp(Meeting meeting, unsigned mask, uint64_t value);
uint64_t value_of_lane(int lane);
int lane_of_this_thread();

// Asynchronous copies to shared memory. They are made as late as they may be, when the thread waits for their group, or
// in the descending order at once: a kernel that lacks a wait or a barrier fails in one of the orders.
void copy_async(void* shared, const void* global, int bytes);
void commit_copies();
void wait_for_copies(int most_pending);

template <typename T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(value));
  return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace cuda_shim

template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int value) {
  return cuda_shim::allow_shared_bytes(reinterpret_cast<const void*>(kernel), value);
}

template <typename... Parameters>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*kernel)(Parameters...), int threads,
                                                          size_t shared_bytes) {
  return cuda_shim::resident_blocks(reinterpret_cast<const void*>(kernel), threads, shared_bytes, blocks);
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  return cuda_shim::run(*config, reinterpret_cast<const void*>(kernel), [&] { kernel(arguments...); });
}

// ---- What kernels call ---------------------------------------------------------------------------------------------

inline void __syncthreads() { cuda_shim::meet_block(); }

inline void __syncwarp(unsigned mask = 0xffffffffu) { cuda_shim::meet_warp(cuda_shim::Meeting::warp_barrier, mask, 0); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
  cuda_shim::meet_warp(cuda_shim::Meeting::shuffle, mask, cuda_shim::to_bits(value));
  const int first = cuda_shim::lane_of_this_thread() / width * width;
  return cuda_shim::from_bits<T>(cuda_shim::value_of_lane(first + source % width));
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  cuda_shim::meet_warp(cuda_shim::Meeting::shuffle_xor, mask, cuda_shim::to_bits(value));
  return cuda_shim::from_bits<T>(cuda_shim::value_of_lane(cuda_shim::lane_of_this_thread() ^ lane_mask));
}

inline unsigned __ballot_sync(unsigned mask, bool predicate) {
  cuda_shim::meet_warp(cuda_shim::Meeting::vote, mask, predicate);
  unsigned ballot = 0;
  for (int lane = 0; lane < warpSize; ++lane)
    if ((mask >> lane & 1u) != 0 && cuda_shim::value_of_lane(lane) != 0) ballot |= 1u << lane;
  return ballot;
}

inline bool __all_sync(unsigned mask, bool predicate) { return __ballot_sync(mask, predicate) == mask; }
inline bool __any_sync(unsigned mask, bool predicate) { return __ballot_sync(mask, predicate) != 0; }

// Four bytes of the eight of low and high, named by the selector's four hexadecimal digits.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7u) & 0xffu) << 8 * i;
  return result;
}

inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

template <typename T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}

template <typename T>
T atomicMax(T* address, T value) {
  const T old = *address;
  if (value > old) *address = value;
  return old;
}

template <typename T>
T __ldg(const T* address) {
  return *address;
}
