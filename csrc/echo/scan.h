// A part of a ring of rows that continues elsewhere, for example on another rank:
//     z_p = f_p + s_p * z_{p+1},
// where the value after the last row is given, and the adjoint
//     v_p = grad_p + s_{p-1} * v_{p-1},   df_p = v_p,   ds_p = v_p * z_{p+1},
// where the value s_{p-1} * v_{p-1} before the first row is given. Rows are visited in a given order. The forward pass
// goes from the last row to the first, the adjoint from the first to the last.
//
// In each column, a sequence of rows composes to an affine map. The steps are cut into chunks. First each chunk is
// composed to its map, then the caller solves the recurrence over these maps, which gives the incoming value of each
// chunk, and finally each chunk is computed from its incoming value.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/kernel_table.h"

namespace echo_ext {

struct EchoScanProblem {
  int64_t rows;
  int64_t width;  // elements per row
  DType dtype;    // of the rows; z, incoming values and maps are of the compute type
  int64_t chunk_rows;

  // Without rows, there is one chunk whose map is the identity.
  ECHO_EXT_HD int64_t num_chunks() const { return rows == 0 ? 1 : (rows + chunk_rows - 1) / chunk_rows; }
  ECHO_EXT_HD int64_t first_step(int64_t chunk) const { return chunk * chunk_rows; }
  ECHO_EXT_HD int64_t end_step(int64_t chunk) const {
    const int64_t end = (chunk + 1) * chunk_rows;
    return end < rows ? end : rows;
  }
  ECHO_EXT_HD int64_t position(int64_t step, bool backward) const { return backward ? step : rows - 1 - step; }
};

// The map of each chunk, t -> constants + scales * t. It maps the value after the chunk's rows to z of its first row.
// With `backward`, it maps the value before the chunk's rows to s_p * v_p of its last row.
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
  const void* entries;  // (num_chunks, width): the value after each chunk's rows
  void* z;
};

struct EchoScanBackward {
  const int64_t* order;
  const void* s;
  const void* grad;
  const void* z;
  const void* entry;         // (width,): the value after the last row
  const void* entries_back;  // (num_chunks, width): the value before each chunk's rows
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
// See echo.h.
const char* echo_scan_cuda_compose(const EchoScanProblem& problem, const EchoScanCompose& io, int device, void* stream);
const char* echo_scan_cuda_forward(const EchoScanProblem& problem, const EchoScanForward& io, int device, void* stream);
const char* echo_scan_cuda_backward(const EchoScanProblem& problem, const EchoScanBackward& io, int device,
                                    void* stream);
#endif

}  // namespace echo_ext
