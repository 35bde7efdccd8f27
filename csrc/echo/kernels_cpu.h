// The CPU kernels that the entry points in entry_cpu.cpp call.
#pragma once

#include "common/kernel_table.h"
#include "echo/echo.h"

namespace echo_ext {

// The first draws of every row are computed before it is known how many it needs; further draws are computed on demand.
constexpr int64_t kFirstDraws = 48, kMoreDraws = 64;

// The number of draws that are computed first: all of them if there are few.
inline int64_t first_draws(int64_t num_terms) { return num_terms <= kMoreDraws ? kMoreDraws : kFirstDraws; }

// The draws of consecutive rows that have been computed so far.
struct DrawTable {
  int64_t first_row, capacity;  // `capacity` is in terms per row
  int32_t* terms;               // [row][capacity]
  int32_t* counts;              // [row]
  int32_t* row(int64_t index) const { return terms + index * capacity; }

  static int64_t capacity_for(int64_t num_terms) {
    const int64_t first = first_draws(num_terms), more = num_terms > first ? num_terms - first : 0;
    return first + ceil_div(more, kMoreDraws) * kMoreDraws;
  }
};

struct EchoKernels {
  int64_t (*forward_workspace_bytes)(const EchoProblem&, int num_threads);
  int64_t (*backward_workspace_bytes)(const EchoProblem&, int num_threads);
  // `cached`, which may be null, is a table of all rows. Draws that it holds are used, and others are added to it. The
  // ring does not use it.
  void (*forward)(const EchoProblem&, const EchoForward&, const DrawTable* cached, int num_threads);
  void (*backward)(const EchoProblem&, const EchoBackward&, const DrawTable* cached, int num_threads);
};
ECHO_EXT_KERNEL_TABLE(EchoKernels, echo_rows_kernels)
ECHO_EXT_KERNEL_TABLE(EchoKernels, echo_ring_kernels)

}  // namespace echo_ext
