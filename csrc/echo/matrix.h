// Echo noise with a full matrix for each row, on a circle of all rows:
//     z_p = f_p + S_p z_{p+1}                                   (the noise of p is z_{p+1})
// and its adjoint
//     v_p = grad_p + S_{p-1}^T v_{p-1},   df_p = v_p,   dS_p = v_p z_{p+1}^T.
//
// Both are a linear recurrence on a circle, which is solved by fixed-point iteration: go around the circle until no
// value changes by more than rounding. If the matrices have norms below 1, the influence of a value decays with
// distance. Then hardly more than one round is needed, and no product of matrices. The circle is cut into arcs, which
// are processed in parallel. In each round, an arc starts from the last value that the preceding arc had in the round
// before. An arc whose starting value has converged is not processed again.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "common/dtype.h"
#include "common/kernel_table.h"

namespace echo_ext {

constexpr int kMaxMatrixDim = 64;
// The iteration ends after this many terms even if it has not converged, which happens if the matrices hardly decay.
constexpr int64_t kMaxMatrixTerms = int64_t{1} << 20;
// The length of an arc on the CPU. It is a constant, so that results do not depend on the number of threads, and long
// compared with the distance over which a starting value has influence.
constexpr int64_t kMatrixArcSteps = 512;
inline int64_t matrix_arcs(int64_t rows) { return (rows + kMatrixArcSteps - 1) / kMatrixArcSteps; }

struct EchoMatrixProblem {
  int64_t rows;  // at least 2
  int dim;       // at most kMaxMatrixDim
  DType dtype;   // float64 or float32
};

// Maps the steps of the recurrence to rows. The forward pass goes around the circle against its order, the backward
// pass along it.
struct MatrixCircle {
  const int64_t* order;  // (rows,): the row at each position
  int64_t rows;
  bool backward;

  // The row whose value the step computes.
  ECHO_EXT_HD int64_t row(int64_t step) const { return order[backward ? step : rows - 1 - step]; }
  // The row whose matrix the step multiplies by: the same row in the forward pass, the row at the preceding position in
  // the backward pass.
  ECHO_EXT_HD int64_t matrix_row(int64_t step) const {
    return backward ? order[step == 0 ? rows - 1 : step - 1] : row(step);
  }
  ECHO_EXT_HD int64_t before(int64_t step) const { return step == 0 ? rows - 1 : step - 1; }
};

// Whether a value differs from the previous one by no more than rounding, relative to the largest value of its row. An
// infinity or a NaN that remains has converged as well. If the largest value is infinite, any difference would count as
// rounding, so only equal values have converged.
template <typename T>
ECHO_EXT_HD bool has_converged(T before, T now, T largest) {
  constexpr T kTolerance = 4 * (sizeof(T) == 4 ? static_cast<T>(FLT_EPSILON) : static_cast<T>(DBL_EPSILON));
  const bool is_near = largest < static_cast<T>(HUGE_VAL) && fabs(now - before) <= kTolerance * largest;
  return is_near || now == before || (now != now && before != before);
}

// Decides when the iteration can end. With norms near 1, rounding errors may circulate forever at a level above what
// has_converged accepts. But with norms below 1, exact arithmetic reduces the largest change in every round. Therefore,
// if the changes have not decreased for many rounds, only rounding errors are left. The changes must also be small,
// because values of matrices that do not decay must be seen to grow.
class MatrixRounds {
 public:
  // Adds an arc of the current round: the squared norms of its starting value and of the change of that value since the
  // last round, and whether the starting value has converged.
  ECHO_EXT_HD void add_arc(double squared_norm, double squared_change, bool has_converged) {
    if (!(squared_norm <= DBL_MAX)) squared_norm = DBL_MAX;  // compared with this, no growth is small
    if (squared_norm > max_squared_norm_) max_squared_norm_ = squared_norm;
    if (has_converged) return;
    if (!(squared_change <= DBL_MAX)) squared_change = HUGE_VAL;
    if (squared_change > max_squared_change_) max_squared_change_ = squared_change;
  }

  // Ends a round of all arcs. Returns whether another round is needed.
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
  double max_squared_norm_ = 0, max_squared_change_ = 0;  // of this round
  double min_squared_change_ = HUGE_VAL;                  // of all rounds so far
  int64_t rounds_ = 0, min_change_round_ = 0;
};

// The input and the result of the recurrence: (rows, dim) and (rows, dim, dim), of the problem's dtype.
struct EchoMatrixScan {
  const int64_t* order;
  const void* source;    // f, or the gradient of z
  const void* matrices;  // S
  void* values;          // z, or the gradient of f
  bool backward;
  void* workspace = nullptr;  // only on CUDA
};

// The gradient of the matrices, from z and the values of the adjoint.
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
// See echo.h.
int64_t echo_matrix_cuda_workspace_bytes(const EchoMatrixProblem& problem);
const char* echo_matrix_cuda_scan(const EchoMatrixProblem& problem, const EchoMatrixScan& io, int device, void* stream);
const char* echo_matrix_cuda_outer(const EchoMatrixProblem& problem, const EchoMatrixOuter& io, int device,
                                   void* stream);
#endif

}  // namespace echo_ext
