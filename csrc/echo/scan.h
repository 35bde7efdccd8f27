// The ring of rows that go on elsewhere: z_p = f_p + s_p * z_{p+1} over rows in a given order, where what follows the
// last row is given, and its adjoint v_p = grad_p + s_{p-1} * v_{p-1}, df_p = v_p, ds_p = v_p * z_{p+1}, where what the
// row before the first hands on is given. Composed, rows are an affine map for each column.
//
// The steps of the recurrence, which go through the rows from the last one, in the adjoint from the first, are cut into
// chunks: each is composed on its own, and on its own made from what enters it. What enters is a recurrence over the
// chunks' maps again.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/kernel_table.h"

namespace echo_ext {

struct EchoScanProblem {
  int64_t rows;
  int64_t width;  // elements of a row
  DType dtype;    // of rows; z, entries and maps have the type that kernels compute in
  int64_t chunk_rows;

  // One, the identity, where there are no rows.
  ECHO_EXT_HD int64_t num_chunks() const { return rows == 0 ? 1 : (rows + chunk_rows - 1) / chunk_rows; }
  ECHO_EXT_HD int64_t first_step(int64_t chunk) const { return chunk * chunk_rows; }
  ECHO_EXT_HD int64_t end_step(int64_t chunk) const {
    const int64_t end = (chunk + 1) * chunk_rows;
    return end < rows ? end : rows;
  }
  ECHO_EXT_HD int64_t position(int64_t step, bool backward) const { return backward ? step : rows - 1 - step; }
};

// t -> constants + scales * t: from what follows a chunk's rows to the first one's z; with `backward` from what comes
// before them to what the last one hands on, s_p * v_p.
struct EchoScanCompose {
  const int64_t* order;  // (rows,): the row at each position
  const void* source;    // f, or grad
  const void* s;
  void* constants;  // (num_chunks, width)
  void* scales;
  bool backward;
};

struct EchoScanForward {
  const int64_t* order;
  const void* f;
  const void* s;
  const void* entries;  // (num_chunks, width): what follows each chunk's rows
  void* z;
};

struct EchoScanBackward {
  const int64_t* order;
  const void* s;
  const void* grad;
  const void* z;
  const void* entry;         // (width,): what follows the last row
  const void* entries_back;  // (num_chunks, width): what comes before each chunk's rows
  void* grad_f;
  void* grad_s;
};

struct EchoScanKernels {
  void (*compose)(const EchoScanProblem&, const EchoScanCompose&, int num_threads);
  void (*forward)(const EchoScanProblem&, const EchoScanForward&, int num_threads);
  void (*backward)(const EchoScanProblem&, const EchoScanBackward&, int num_threads);
};
ECHO_EXT_KERNEL_TABLE(EchoScanKernels, echo_scan_kernels)

#if defined(ECHO_EXT_WITH_CUDA)
// As in echo.h.
const char* echo_scan_cuda_compose(const EchoScanProblem& problem, const EchoScanCompose& io, int device, void* stream);
const char* echo_scan_cuda_forward(const EchoScanProblem& problem, const EchoScanForward& io, int device, void* stream);
const char* echo_scan_cuda_backward(const EchoScanProblem& problem, const EchoScanBackward& io, int device,
                                    void* stream);
#endif

}  // namespace echo_ext
