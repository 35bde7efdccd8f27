// Kernels that are right, and kernels with faults that the emulated device must find.
#include <numeric>
#include <string>
#include <unordered_map>

#include "common/cuda_support.h"

namespace {

using namespace echo_ext;

constexpr int kThreads = 64;

template <bool kWithBarrier>
__global__ void reverse_in_shared(float* values) {
  auto* shared = reinterpret_cast<float*>(dynamic_shared_memory);
  shared[threadIdx.x] = values[threadIdx.x];
  if (kWithBarrier) __syncthreads();
  values[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

__global__ void sum_of_warp(float* values) {
  float sum = values[threadIdx.x];
  for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(kFullWarp, sum, other);
  const float first = __shfl_sync(kFullWarp, values[threadIdx.x], 0);
  const bool high = __any_sync(kFullWarp, values[threadIdx.x] > 32);
  values[threadIdx.x] = sum + 1000 * first + (high ? 100000.f : 0.f);
}

__global__ void barrier_for_some(float*) {
  if (threadIdx.x < 40) __syncthreads();
}

__global__ void vote_of_exited_lanes(float*) {
  if (threadIdx.x % 2 == 0) __all_sync(kFullWarp, true);
}

__global__ void barrier_against_vote(float*) {
  if (threadIdx.x % 2 == 0)
    __syncthreads();
  else
    __syncwarp();
}

__global__ void shared_out_of_bounds(float* values) {
  auto* shared = reinterpret_cast<float*>(dynamic_shared_memory);
  shared[threadIdx.x + 1] = values[threadIdx.x];
}

__global__ void global_out_of_bounds(float* values) { values[threadIdx.x + 1] = 0; }

}  // namespace

const char* launch_self_test(const std::string& kernel, unsigned blocks, size_t shared_bytes, float* values) {
  static const std::unordered_map<std::string, void (*)(float*)> kernels{
      {"reverse", reverse_in_shared<true>},
      {"reverse_without_barrier", reverse_in_shared<false>},
      {"sum_of_warp", sum_of_warp},
      {"barrier_for_some", barrier_for_some},
      {"vote_of_exited_lanes", vote_of_exited_lanes},
      {"barrier_against_vote", barrier_against_vote},
      {"shared_out_of_bounds", shared_out_of_bounds},
      {"global_out_of_bounds", global_out_of_bounds}};
  std::iota(values, values + kThreads, 0.0f);
  ECHO_EXT_CUDA_CHECK(launch(kernels.at(kernel), dim3(1, blocks), kThreads, shared_bytes, nullptr, values));
  return nullptr;
}
