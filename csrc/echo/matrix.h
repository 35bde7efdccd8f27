// Echo noise with a full matrix for each row, around a circle of all rows:
//     z_p = f_p + S_p z_{p+1}                                   (the noise of p is z_{p+1})
// and its adjoint  v_p = grad_p + S_{p-1}^T v_{p-1},  df_p = v_p,  dS_p = v_p z_{p+1}^T.
// Both are one recurrence around the circle, solved by going round until nothing changes beyond rounding: with norms
// below 1 what lies far back is forgotten, so that this takes hardly more than one turn, and never a product of
// matrices. The circle is cut into arcs that are walked along side by side, each from the value that the arc before it
// had last: an arc whose entry has not changed is done.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "common/dtype.h"
#include "common/kernel_table.h"

namespace echo_ext {

constexpr int kMaxMatrixDim = 64;
// A circle whose matrices hardly decay is left after this many terms.
constexpr int64_t kMaxMatrixTerms = int64_t{1} << 20;
// On the CPU: a number that depends on nothing, so that results do not either; long beside the steps that an arc's
// entry matters for.
constexpr int64_t kMatrixArcSteps = 512;
inline int64_t matrix_arcs(int64_t rows) { return (rows + kMatrixArcSteps - 1) / kMatrixArcSteps; }

struct EchoMatrixProblem {
  int64_t rows;  // at least 2
  int dim;       // at most kMaxMatrixDim
  DType dtype;   // float64 or float32
};

// Which row's matrix, vector and value a step of the recurrence works on. Steps go round the circle against the order
// forward, along it backward.
struct MatrixCircle {
  const int64_t* order;  // (rows,): the row at each position
  int64_t rows;
  bool backward;

  // Of the step-th value.
  ECHO_EXT_HD int64_t row(int64_t step) const { return order[backward ? step : rows - 1 - step]; }
  // Of the matrix that the step multiplies by: its own forward, backward that of the position before.
  ECHO_EXT_HD int64_t matrix_row(int64_t step) const {
    return backward ? order[step == 0 ? rows - 1 : step - 1] : row(step);
  }
  ECHO_EXT_HD int64_t before(int64_t step) const { return step == 0 ? rows - 1 : step - 1; }
};

// Whether a value has not changed beyond rounding of its row's largest; what stays infinite or not a number has not.
// Where the largest is infinite, any difference would pass as a rounding of it, so that only equal values have
// converged.
template <typename T>
ECHO_EXT_HD bool has_converged(T before, T now, T largest) {
  constexpr T kTolerance = 4 * (sizeof(T) == 4 ? static_cast<T>(FLT_EPSILON) : static_cast<T>(DBL_EPSILON));
  const bool is_near = largest < static_cast<T>(HUGE_VAL) && fabs(now - before) <= kTolerance * largest;
  return is_near || now == before || (now != now && before != before);
}

// Tells when going round has nothing left to gain. Near norm 1 roundings may go round for ever, above what
// has_converged lets pass; but norms below 1 make the longest change of a round shorter than that of the round before,
// so that changes which have long been no shorter are roundings. Only if they are small, though: matrices that do not
// decay must be seen to grow.
class MatrixRounds {
 public:
  // Of one arc: the squared lengths of what now lies before it and of how that has changed, and whether it has
  // converged.
  ECHO_EXT_HD void add_arc(double squared_norm, double squared_change, bool has_converged) {
    if (!(squared_norm <= DBL_MAX)) squared_norm = DBL_MAX;  // beside it no growth is small
    if (squared_norm > max_squared_norm_) max_squared_norm_ = squared_norm;
    if (has_converged) return;
    if (!(squared_change <= DBL_MAX)) squared_change = HUGE_VAL;
    if (squared_change > max_squared_change_) max_squared_change_ = squared_change;
  }

  // After all arcs of a round: whether there must be another.
  ECHO_EXT_HD bool needs_another_round() {
    constexpr int64_t kPatience = 8;
    constexpr double kSmallRatio = 1.0 / 1024;
    ++rounds_;
    if (max_squared_change_ < min_squared_change_) {
      min_squared_change_ = max_squared_change_;
      min_change_round_ = rounds_;
    }
    const bool is_small = max_squared_change_ < kSmallRatio * kSmallRatio * max_squared_norm_;
    const bool is_stuck = is_small && rounds_ - min_change_round_ > kPatience + rounds_ / 4;
    const bool has_changed = max_squared_change_ > 0;
    max_squared_norm_ = max_squared_change_ = 0;
    return has_changed && !is_stuck;
  }

 private:
  double max_squared_norm_ = 0, max_squared_change_ = 0;  // the longest of this round
  double min_squared_change_ = HUGE_VAL;                  // of the rounds so far
  int64_t rounds_ = 0, min_change_round_ = 0;
};

// The recurrence's input and result: (rows, dim) and (rows, dim, dim), in the problem's type.
struct EchoMatrixScan {
  const int64_t* order;
  const void* source;    // f, or the gradient of z
  const void* matrices;  // S
  void* values;          // z, or the gradient of f
  bool backward;
  void* workspace = nullptr;  // CUDA's
};

// The matrices' gradient, from the adjoint's values and z.
struct EchoMatrixOuter {
  const int64_t* order;
  const void* values;
  const void* z;
  void* grad_matrices;
};

struct EchoMatrixKernels {
  void (*scan)(const EchoMatrixProblem&, const EchoMatrixScan&, int num_threads);
  void (*outer)(const EchoMatrixProblem&, const EchoMatrixOuter&, int num_threads);
};
ECHO_EXT_KERNEL_TABLE(EchoMatrixKernels, echo_matrix_kernels)

#if defined(ECHO_EXT_WITH_CUDA)
// As in echo.h.
int64_t echo_matrix_cuda_workspace_bytes(const EchoMatrixProblem& problem);
const char* echo_matrix_cuda_scan(const EchoMatrixProblem& problem, const EchoMatrixScan& io, int device, void* stream);
const char* echo_matrix_cuda_outer(const EchoMatrixProblem& problem, const EchoMatrixOuter& io, int device,
                                   void* stream);
#endif

}  // namespace echo_ext
