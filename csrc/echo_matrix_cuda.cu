// Matrix Echo noise on CUDA: one block goes round the circle, a warp for each row of a matrix forward, a thread for
// each column backward.
#include "cuda_support.h"
#include "echo_matrix.h"

namespace echo_ext {
namespace {

constexpr int kScanThreads = 256;
constexpr int kOuterThreads = 128;

template <typename T>
__device__ T* shared_rows() {
  return reinterpret_cast<T*>(dynamic_shared_memory);
}

template <typename T>
__global__ void __launch_bounds__(kScanThreads) matrix_scan_kernel(EchoMatrixProblem problem, EchoMatrixScan io) {
  const int dim = problem.dim, thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp, warp = thread / kWarp, num_warps = kScanThreads / kWarp;
  T *before = shared_rows<T>(), *now = before + dim;
  bool* settled = reinterpret_cast<bool*>(now + dim);
  const auto *source = static_cast<const T*>(io.source), *matrices = static_cast<const T*>(io.matrices);
  auto* values = static_cast<T*>(io.values);
  const MatrixCircle circle{io.order, problem.rows, io.backward};
  if (thread < dim) before[thread] = 0;
  __syncthreads();
  for (int64_t terms = 0; terms < problem.rows || terms < kMaxMatrixTerms; ++terms) {
    const int64_t step = terms % problem.rows, row = circle.row(step);
    const T* matrix = matrices + circle.matrix_row(step) * dim * dim;
    if (io.backward) {
      if (thread < dim) {
        T sum = source[row * dim + thread];
        for (int i = 0; i < dim; ++i) sum += before[i] * matrix[i * dim + thread];
        now[thread] = sum;
      }
    } else {
      for (int i = warp; i < dim; i += num_warps) {
        T sum = 0;
        for (int j = lane; j < dim; j += kWarp) sum += matrix[i * dim + j] * before[j];
        for (int other = kWarp / 2; other > 0; other /= 2) sum += __shfl_xor_sync(kFullWarp, sum, other);
        if (lane == 0) now[i] = source[row * dim + i] + sum;
      }
    }
    __syncthreads();
    if (thread == 0) *settled = terms >= problem.rows && is_settled(values + row * dim, now, dim);
    __syncthreads();
    if (thread < dim) values[row * dim + thread] = before[thread] = now[thread];
    if (*settled) return;
    __syncthreads();
  }
}

template <typename T>
__global__ void __launch_bounds__(kOuterThreads) matrix_outer_kernel(EchoMatrixProblem problem, EchoMatrixOuter io) {
  const int dim = problem.dim;
  for (int64_t p = blockIdx.x; p < problem.rows; p += gridDim.x) {
    const int64_t row = io.order[p], next = io.order[p + 1 == problem.rows ? 0 : p + 1];
    const T* value = static_cast<const T*>(io.values) + row * dim;
    const T* noise = static_cast<const T*>(io.z) + next * dim;
    T* to = static_cast<T*>(io.grad_matrices) + row * dim * dim;
    for (int at = static_cast<int>(threadIdx.x); at < dim * dim; at += kOuterThreads)
      to[at] = value[at / dim] * noise[at % dim];
  }
}

}  // namespace

const char* echo_matrix_cuda_scan(const EchoMatrixProblem& problem, const EchoMatrixScan& io, int device,
                                  void* stream) {
  if (problem.rows == 0 || problem.dim == 0) return nullptr;
  const DeviceGuard guard(device);
  ECHO_EXT_CUDA_CHECK(guard.status());
  const size_t shared_bytes = 2 * static_cast<size_t>(problem.dim) * (problem.single ? 4 : 8) + sizeof(bool);
  ECHO_EXT_CUDA_CHECK(launch(problem.single ? matrix_scan_kernel<float> : matrix_scan_kernel<double>, dim3(1),
                             kScanThreads, shared_bytes, static_cast<cudaStream_t>(stream), problem, io));
  return nullptr;
}

const char* echo_matrix_cuda_outer(const EchoMatrixProblem& problem, const EchoMatrixOuter& io, int device,
                                   void* stream) {
  if (problem.rows == 0 || problem.dim == 0) return nullptr;
  const DeviceGuard guard(device);
  ECHO_EXT_CUDA_CHECK(guard.status());
  const dim3 grid(static_cast<unsigned>(problem.rows < 0x7fffffff ? problem.rows : 0x7fffffff));
  ECHO_EXT_CUDA_CHECK(launch(problem.single ? matrix_outer_kernel<float> : matrix_outer_kernel<double>, grid,
                             kOuterThreads, 0, static_cast<cudaStream_t>(stream), problem, io));
  return nullptr;
}

}  // namespace echo_ext
