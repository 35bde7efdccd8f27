// The draws of all rows, written to memory once and read for every tile (rows_cuda.cu). Where |s| is well below one,
// most rows stop long before their last term. The number of terms worth writing is therefore estimated from a sample of
// s. A row that needs more terms computes further draws itself.
#pragma once

#include <type_traits>

#include "common/cuda_support.h"
#include "echo/echo.h"

namespace echo_ext {

// Terms are processed in steps, after each of which a row may stop. The last step of a row is padded with bank row 0.
constexpr int kStepTerms = 16;

// A bank that fits into shared memory has fewer than 2^16 rows.
template <bool kStaged>
using Index = std::conditional_t<kStaged, uint16_t, int32_t>;

struct DrawnRows {
  void* rows;              // [row][capacity], of type Index
  uint32_t* prefix_terms;  // number of terms written for each row, a multiple of kStepTerms; determined on the device
  int64_t capacity;
};

// The bank rows of one step of a row, in registers.
template <bool kStaged>
struct StepRows {
  static constexpr int kWords = kStepTerms * static_cast<int>(sizeof(Index<kStaged>)) / 4;
  uint32_t word[kWords];

  __device__ __forceinline__ void load(const Index<kStaged>* from) {
#pragma unroll
    for (int i = 0; i < kWords / 4; ++i) {
      const uint4 four = __ldg(reinterpret_cast<const uint4*>(from) + i);
      word[4 * i] = four.x;
      word[4 * i + 1] = four.y;
      word[4 * i + 2] = four.z;
      word[4 * i + 3] = four.w;
    }
  }
  __device__ __forceinline__ int32_t get(int k) const {
    if (!kStaged) return static_cast<int32_t>(word[k]);
    return static_cast<int32_t>(__byte_perm(word[k / 2], 0, k % 2 == 0 ? 0x4410 : 0x4432));
  }
  __device__ __forceinline__ void set(int k, int32_t bank_row) {
    const auto bits = static_cast<uint32_t>(bank_row);
    if (!kStaged)
      word[k] = bits;
    else
      word[k / 2] = k % 2 == 0 ? (word[k / 2] & 0xffff0000u) | bits : (word[k / 2] & 0xffffu) | bits << 16;
  }
};

// Calls work(element) with an element of the storage type of a dtype, so that loops over elements need not branch on
// it.
template <typename T, typename Work>
__device__ __forceinline__ void with_element_of(DType dtype, const Work& work) {
  if constexpr (std::is_same_v<T, double>) {
    work(double{});
  } else {
    if (dtype == DType::float32)
      work(float{});
    else if (dtype == DType::bfloat16)
      work(BFloat16{});
    else
      work(Float16{});
  }
}

constexpr int kDrawThreads = 256;
constexpr int kSampleRows = 16;

// Estimates the number of terms after which the weights in each column have lost kBits bits. They lose -log2 |s| bits
// per term on average. Must be called by all threads of a block; the result is the same in every block.
template <typename T>
__device__ __forceinline__ uint32_t estimate_terms(const EchoProblem& problem, const void* s, uint32_t capacity) {
  // Until terms are negligible, plus a reserve for the bounds.
  constexpr float kBits = std::is_same_v<T, double> ? 66 : 36;
  constexpr float kMargin = 1.25f;
  constexpr float kMinScale = 0x1p-7f;  // keeps the product of the samples a normal number
  auto* max_terms = reinterpret_cast<uint32_t*>(dynamic_shared_memory);
  if (threadIdx.x == 0) *max_terms = kStepTerms;
  __syncthreads();
  const int64_t columns = problem.width < kDrawThreads ? problem.width : kDrawThreads;
  if (threadIdx.x < columns) {
    const int64_t column = threadIdx.x * problem.width / columns;
    const int64_t stride = problem.bank_rows / kSampleRows * problem.width;
    float product = 1;
    with_element_of<T>(problem.dtype, [&](auto element) {
      using Element = decltype(element);
      const Element* values = static_cast<const Element*>(s) + column;
      Element sample[kSampleRows];
#pragma unroll
      for (int k = 0; k < kSampleRows; ++k) sample[k] = values[k * stride];
#pragma unroll
      for (int k = 0; k < kSampleRows; ++k) {
        product *= fmaxf(fminf(fabsf(static_cast<float>(to_compute(sample[k]))), 1), kMinScale);  // NaN counts as 1
      }
    });
    const float wanted = kMargin * kBits * kSampleRows / -log2f(product) + kStepTerms;
    atomicMax(max_terms, wanted < static_cast<float>(capacity) ? static_cast<uint32_t>(wanted) / kStepTerms * kStepTerms
                                                               : capacity);
  }
  __syncthreads();
  return *max_terms;
}

// The rows are distributed over blockIdx.x and the warps of a block, the terms over blockIdx.y and the lanes.
template <typename T, bool kStaged>
__global__ void __launch_bounds__(kDrawThreads)
    draws_kernel(EchoProblem problem, const int64_t* seed, const void* s, DrawnRows drawn) {
  const uint32_t prefix_terms = estimate_terms<T>(problem, s, static_cast<uint32_t>(drawn.capacity));
  if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) *drawn.prefix_terms = prefix_terms;
  const Draws draws = draws_of(problem, *seed);
  const Bijection order(num_candidates(draws));
  const uint32_t num_terms = static_cast<uint32_t>(problem.num_terms);
  const uint32_t first_term = blockIdx.y * kWarp + threadIdx.x % kWarp;
  constexpr int64_t kRows = kDrawThreads / kWarp;
  for (int64_t row = blockIdx.x * kRows + threadIdx.x / kWarp; row < problem.rows; row += gridDim.x * kRows) {
    const DrawKey key = draw_key(draws.seed, static_cast<uint64_t>(row));
    auto* to = static_cast<Index<kStaged>*>(drawn.rows) + row * drawn.capacity;
    for (uint32_t term = first_term; term < prefix_terms; term += gridDim.y * kWarp)
      to[term] = static_cast<Index<kStaged>>(term < num_terms ? draw(draws, order, key, row, term) : 0);
  }
}

// The draws may take as much memory as the rows' own f and s, but at least this many bytes.
constexpr int64_t kMinDrawBytes = int64_t{32} << 20;

inline DrawnRows take_draws(Workspace& workspace, const EchoProblem& problem, bool staged) {
  const int64_t index_bytes = staged ? sizeof(Index<true>) : sizeof(Index<false>);
  const int64_t element_bytes = problem.dtype == DType::float64 ? 8 : 4;
  const int64_t own_bytes = 2 * problem.rows * problem.width * element_bytes;
  const int64_t bytes = own_bytes > kMinDrawBytes ? own_bytes : kMinDrawBytes;
  const int64_t fitting = bytes / (index_bytes * kStepTerms * (problem.rows > 0 ? problem.rows : 1));
  const int64_t steps = problem.num_terms > 0 ? ceil_div(problem.num_terms, kStepTerms) : 1;
  DrawnRows drawn{};
  drawn.capacity = (steps <= fitting ? steps : fitting > 0 ? fitting : 1) * kStepTerms;
  drawn.rows = workspace.take<char>(problem.rows * drawn.capacity * index_bytes);
  drawn.prefix_terms = workspace.take<uint32_t>(1);
  return drawn;
}

template <typename T, bool kStaged>
cudaError_t write_draws(const EchoProblem& problem, const int64_t* seed, const void* s, const DrawnRows& drawn,
                        const DeviceLimits& limits, cudaStream_t stream) {
  constexpr size_t kSharedBytes = sizeof(float4);
  int resident = 0;
  const cudaError_t status = resident_blocks(draws_kernel<T, kStaged>, kDrawThreads, kSharedBytes, &resident);
  if (status != cudaSuccess) return status;
  const int64_t max_blocks = static_cast<int64_t>(resident) * limits.multiprocessors;
  const int64_t blocks = ceil_div(problem.rows, kDrawThreads / kWarp), x = blocks < max_blocks ? blocks : max_blocks;
  const int64_t parts = ceil_div(drawn.capacity, kWarp), y = parts < max_blocks / x ? parts : max_blocks / x;
  const dim3 grid(static_cast<unsigned>(x), static_cast<unsigned>(y));
  return launch(draws_kernel<T, kStaged>, grid, kDrawThreads, kSharedBytes, stream, problem, seed, s, drawn);
}

}  // namespace echo_ext
