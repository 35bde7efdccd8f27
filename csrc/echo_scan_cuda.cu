// The scan on CUDA: a thread for each column goes over all rows, so that neighbouring threads read neighbouring memory.
#include "cuda_support.h"
#include "echo_scan.h"

namespace echo_ext {
namespace {

constexpr int kScanThreads = 64;

__device__ __forceinline__ int64_t own_column() { return int64_t{blockIdx.x} * kScanThreads + threadIdx.x; }

template <typename T>
__global__ void __launch_bounds__(kScanThreads) scan_compose_kernel(EchoScanProblem problem, EchoScanCompose io) {
  const int64_t column = own_column();
  if (column >= problem.width) return;
  T constant = 0, scale = 1;
  for (int64_t step = 0; step < problem.rows; ++step) {
    const int64_t at = io.order[io.backward ? step : problem.rows - 1 - step] * problem.width + column;
    const T source = load_element<T>(problem.dtype, io.source, at), s = load_element<T>(problem.dtype, io.s, at);
    constant = io.backward ? s * (source + constant) : source + s * constant;
    scale *= s;
  }
  static_cast<T*>(io.constants)[column] = constant;
  if (io.scales != nullptr) static_cast<T*>(io.scales)[column] = scale;
}

template <typename T>
__global__ void __launch_bounds__(kScanThreads) scan_forward_kernel(EchoScanProblem problem, EchoScanForward io) {
  const int64_t column = own_column();
  if (column >= problem.width) return;
  T z = static_cast<const T*>(io.entry)[column];
  for (int64_t p = problem.rows - 1; p >= 0; --p) {
    const int64_t at = io.order[p] * problem.width + column;
    z = load_element<T>(problem.dtype, io.f, at) + load_element<T>(problem.dtype, io.s, at) * z;
    static_cast<T*>(io.z)[at] = z;
  }
}

template <typename T>
__global__ void __launch_bounds__(kScanThreads) scan_backward_kernel(EchoScanProblem problem, EchoScanBackward io) {
  const int64_t column = own_column();
  if (column >= problem.width) return;
  const auto* z = static_cast<const T*>(io.z);
  T handed = static_cast<const T*>(io.entry_back)[column];
  for (int64_t p = 0; p < problem.rows; ++p) {
    const int64_t at = io.order[p] * problem.width + column;
    const T value = load_element<T>(problem.dtype, io.grad, at) + handed;
    const T behind =
        p + 1 < problem.rows ? z[io.order[p + 1] * problem.width + column] : static_cast<const T*>(io.entry)[column];
    store_element(problem.dtype, io.grad_f, at, value);
    store_element(problem.dtype, io.grad_s, at, value * behind);
    handed = load_element<T>(problem.dtype, io.s, at) * value;
  }
}

template <typename Io>
const char* run(void (*in_double)(EchoScanProblem, Io), void (*in_single)(EchoScanProblem, Io),
                const EchoScanProblem& problem, const Io& io, int device, void* stream) {
  if (problem.width == 0) return nullptr;
  if (problem.width > 0x7fffffff) return "echo_scan_cuda: a row must have fewer than 2^31 elements";
  const DeviceGuard guard(device);
  ECHO_EXT_CUDA_CHECK(guard.status());
  const dim3 grid(static_cast<unsigned>(ceil_div(problem.width, kScanThreads)));
  ECHO_EXT_CUDA_CHECK(launch(problem.dtype == DType::float64 ? in_double : in_single, grid, kScanThreads, 0,
                             static_cast<cudaStream_t>(stream), problem, io));
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
