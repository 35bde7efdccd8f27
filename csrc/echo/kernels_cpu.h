// The CPU kernels behind the entry points of entry_cpu.cpp.
#pragma once

#include "common/kernel_table.h"
#include "echo/echo.h"

namespace echo_ext {

// The first draws of a row are made before it is known how many it needs, the others as it comes to need them.
constexpr int64_t kFirstDraws = 48, kMoreDraws = 64;

// How many are made first: all where they are few.
inline int64_t first_draws(int64_t num_terms) { return num_terms <= kMoreDraws ? kMoreDraws : kFirstDraws; }

// The draws of consecutive rows, as far as they have been made.
struct DrawTable {
  int64_t first_row, capacity;  // of a row's terms
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
  // `cached`, which may be null, is a table of all rows: draws that it holds are used, others are added. The ring has
  // none.
  void (*forward)(const EchoProblem&, const EchoForward&, const DrawTable* cached, int num_threads);
  void (*backward)(const EchoProblem&, const EchoBackward&, const DrawTable* cached, int num_threads);
};
ECHO_EXT_KERNEL_TABLE(EchoKernels, echo_rows_kernels)
ECHO_EXT_KERNEL_TABLE(EchoKernels, echo_ring_kernels)

}  // namespace echo_ext
