// The scan on CUDA, see scan.h. There is one thread for each column of each chunk, so that neighboring threads read
// neighboring memory. Since rows lie anywhere in memory, a thread loads a batch of them before it uses the first.
#include "common/cuda_support.h"
#include "echo/scan.h"

namespace echo_ext {
namespace {

constexpr int kScanThreads = 128;
constexpr int kLoadsInFlight = 8;

// The chunk and the column of a thread.
struct ChunkColumn {
  int64_t chunk, column;

  __device__ __forceinline__ explicit ChunkColumn(const EchoScanProblem& problem) {
    const int64_t thread = int64_t{blockIdx.x} * kScanThreads + threadIdx.x;
    chunk = thread / problem.width;
    column = thread % problem.width;
  }
};

// Calls body(first, count, at) for batches of a chunk's steps, where at[i] is the offset of the column's element at
// step first + i.
template <typename Body>
__device__ __forceinline__ void for_each_batch(const EchoScanProblem& problem, const int64_t* order,
                                               const ChunkColumn& own, bool backward, const Body& body) {
  const int64_t end = problem.end_step(own.chunk);
  for (int64_t first = problem.first_step(own.chunk); first < end; first += kLoadsInFlight) {
    const int count = end - first < kLoadsInFlight ? static_cast<int>(end - first) : kLoadsInFlight;
    int64_t at[kLoadsInFlight];
#pragma unroll
    for (int i = 0; i < kLoadsInFlight; ++i)
      at[i] = i < count ? order[problem.position(first + i, backward)] * problem.width + own.column : 0;
    body(first, count, at);
  }
}

// Loads a batch of a tensor's elements. Elements after the end of the batch are zero.
template <typename T>
__device__ __forceinline__ void load_batch(DType dtype, const void* tensor, const int64_t (&at)[kLoadsInFlight],
                                           int count, T (&values)[kLoadsInFlight]) {
#pragma unroll
  for (int i = 0; i < kLoadsInFlight; ++i) values[i] = i < count ? load_element<T>(dtype, tensor, at[i]) : T(0);
}

// Calls body(at, source, s) for the steps of a chunk, with the elements of the two tensors.
template <typename T, typename Body>
__device__ __forceinline__ void for_each_step(const EchoScanProblem& problem, const int64_t* order,
                                              const ChunkColumn& own, bool backward, const void* sources,
                                              const void* scales, const Body& body) {
  for_each_batch(problem, order, own, backward, [&](int64_t, int count, const int64_t (&at)[kLoadsInFlight]) {
    T source[kLoadsInFlight], s[kLoadsInFlight];
    load_batch(problem.dtype, sources, at, count, source);
    load_batch(problem.dtype, scales, at, count, s);
#pragma unroll
    for (int i = 0; i < kLoadsInFlight; ++i) {
      if (i >= count) break;
      body(at[i], source[i], s[i]);
    }
  });
}

template <typename T>
__global__ void __launch_bounds__(kScanThreads) scan_compose_kernel(EchoScanProblem problem, EchoScanCompose io) {
  const ChunkColumn own(problem);
  if (own.chunk >= problem.num_chunks()) return;
  T constant = 0, scale = 1;
  for_each_step<T>(problem, io.order, own, io.backward, io.source, io.s, [&](int64_t, T source, T s) {
    constant = io.backward ? s * (source + constant) : source + s * constant;
    scale *= s;
  });
  const int64_t to = own.chunk * problem.width + own.column;
  static_cast<T*>(io.constants)[to] = constant;
  static_cast<T*>(io.scales)[to] = scale;
}

template <typename T>
__global__ void __launch_bounds__(kScanThreads) scan_forward_kernel(EchoScanProblem problem, EchoScanForward io) {
  const ChunkColumn own(problem);
  if (own.chunk >= problem.num_chunks()) return;
  T z = static_cast<const T*>(io.entries)[own.chunk * problem.width + own.column];
  for_each_step<T>(problem, io.order, own, false, io.f, io.s, [&](int64_t at, T f, T s) {
    z = f + s * z;
    static_cast<T*>(io.z)[at] = z;
  });
}

template <typename T>
__global__ void __launch_bounds__(kScanThreads) scan_backward_kernel(EchoScanProblem problem, EchoScanBackward io) {
  const ChunkColumn own(problem);
  if (own.chunk >= problem.num_chunks()) return;
  const auto* z = static_cast<const T*>(io.z);
  T carry = static_cast<const T*>(io.entries_back)[own.chunk * problem.width + own.column];
  for_each_batch(problem, io.order, own, true, [&](int64_t first, int count, const int64_t (&at)[kLoadsInFlight]) {
    T s[kLoadsInFlight], grad[kLoadsInFlight], next_z[kLoadsInFlight];
    load_batch(problem.dtype, io.s, at, count, s);
    load_batch(problem.dtype, io.grad, at, count, grad);
#pragma unroll
    for (int i = 0; i < kLoadsInFlight; ++i) {
      const int64_t next = first + i + 1;
      next_z[i] = i >= count            ? T(0)
                  : next < problem.rows ? z[io.order[next] * problem.width + own.column]
                                        : static_cast<const T*>(io.entry)[own.column];
    }
#pragma unroll
    for (int i = 0; i < kLoadsInFlight; ++i) {
      if (i >= count) break;
      const T value = grad[i] + carry;
      store_element(problem.dtype, io.grad_f, at[i], value);
      store_element(problem.dtype, io.grad_s, at[i], value * next_z[i]);
      carry = s[i] * value;
    }
  });
}

template <typename Io>
const char* run(void (*float64_kernel)(EchoScanProblem, Io), void (*float32_kernel)(EchoScanProblem, Io),
                const EchoScanProblem& problem, const Io& io, int device, void* stream) {
  if (problem.width == 0) return nullptr;
  const int64_t blocks = ceil_div(problem.num_chunks() * problem.width, kScanThreads);
  if (blocks > 0x7fffffff) return "echo_scan_cuda: more elements than a grid has threads for";
  const DeviceGuard guard(device);
  ECHO_EXT_CUDA_CHECK(guard.status());
  ECHO_EXT_CUDA_CHECK(launch(problem.dtype == DType::float64 ? float64_kernel : float32_kernel,
                             dim3(static_cast<unsigned>(blocks)), kScanThreads, 0, static_cast<cudaStream_t>(stream),
                             problem, io));
  return nullptr;
}

}  // namespace

const char* echo_scan_cuda_compose(const EchoScanProblem& problem, const EchoScanCompose& io, int device,
                                   void* stream) {
  return run(scan_compose_kernel<double>, scan_compose_kernel<float>, problem, io, device, stream);
}

const char* echo_scan_cuda_forward(const EchoScanProblem& problem, const EchoScanForward& io, int device,
                                   void* stream) {
  return run(scan_forward_kernel<double>, scan_forward_kernel<float>, problem, io, device, stream);
}

const char* echo_scan_cuda_backward(const EchoScanProblem& problem, const EchoScanBackward& io, int device,
                                    void* stream) {
  return run(scan_backward_kernel<double>, scan_backward_kernel<float>, problem, io, device, stream);
}

}  // namespace echo_ext
