// The ring of rows that go on elsewhere: z_p = f_p + s_p * z_{p+1} over rows in a given order, where what follows the
// last row is given, and its adjoint v_p = grad_p + s_{p-1} * v_{p-1}, df_p = v_p, ds_p = v_p * z_{p+1}, where what the
// row before the first hands on is given. Composed, all rows are one affine map for each column.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace echo_ext {

struct EchoScanProblem {
  int64_t rows;
  int64_t width;  // elements of a row
  DType dtype;    // of rows; z, entries and maps have the type that kernels compute in
};

// t -> constants + scales * t: from behind the last row to the first one's z; with `backward` from what comes before
// the first row to what the last one hands on, s_p * v_p. scales may then be null.
struct EchoScanCompose {
  const int64_t* order;  // (rows,): the row at each position
  const void* source;    // f, or grad
  const void* s;
  void* constants;  // (width,)
  void* scales;
  bool backward;
};

struct EchoScanForward {
  const int64_t* order;
  const void* f;
  const void* s;
  const void* entry;  // (width,)
  void* z;
};

struct EchoScanBackward {
  const int64_t* order;
  const void* s;
  const void* grad;
  const void* z;
  const void* entry;       // as forward
  const void* entry_back;  // what comes before the first row
  void* grad_f;
  void* grad_s;
};

struct EchoScanCpuKernels {
  void (*compose)(const EchoScanProblem&, const EchoScanCompose&, int num_threads);
  void (*forward)(const EchoScanProblem&, const EchoScanForward&, int num_threads);
  void (*backward)(const EchoScanProblem&, const EchoScanBackward&, int num_threads);
};
namespace baseline {
extern const EchoScanCpuKernels echo_scan_kernels;
}
namespace avx2 {
extern const EchoScanCpuKernels echo_scan_kernels;
}
namespace avx512 {
extern const EchoScanCpuKernels echo_scan_kernels;
}
const EchoScanCpuKernels& echo_scan_cpu_kernels();

#if defined(ECHO_EXT_WITH_CUDA)
// As in echo.h.
const char* echo_scan_cuda_compose(const EchoScanProblem& problem, const EchoScanCompose& io, int device, void* stream);
const char* echo_scan_cuda_forward(const EchoScanProblem& problem, const EchoScanForward& io, int device, void* stream);
const char* echo_scan_cuda_backward(const EchoScanProblem& problem, const EchoScanBackward& io, int device,
                                    void* stream);
#endif

}  // namespace echo_ext
