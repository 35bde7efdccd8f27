// Matrix Echo noise on the CPU, see matrix.h.
#include <algorithm>
#include <memory>

#include "common/parallel.h"
#include "common/simd.h"
#include "echo/matrix.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {
namespace {

template <typename T>
T sum_of(Vector<T> v) {
  T sum = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) sum += v[lane];
  return sum;
}

// out = source + matrix vector
template <typename T>
void multiply(const T* source, const T* matrix, const T* vector, int dim, T* out) {
  const int whole = dim / kLanes<T> * kLanes<T>;
  for (int i = 0; i < dim; ++i) {
    const T* row = matrix + i * dim;
    Vector<T> sums{};
    for (int j = 0; j < whole; j += kLanes<T>) sums += load(row + j) * load(vector + j);
    T sum = sum_of<T>(sums);
    for (int j = whole; j < dim; ++j) sum += row[j] * vector[j];
    out[i] = source[i] + sum;
  }
}

// out = source + matrix^T vector
template <typename T>
void multiply_transposed(const T* source, const T* matrix, const T* vector, int dim, T* out) {
  std::copy(source, source + dim, out);
  for (int i = 0; i < dim; ++i) {
    const T* row = matrix + i * dim;
    const T weight = vector[i];
    for (int j = 0; j < dim; ++j) out[j] += weight * row[j];
  }
}

// The function of matrix.h for all values of a row.
template <typename T>
bool row_has_converged(const T* before, const T* now, int dim) {
  T largest = 0;
  for (int i = 0; i < dim; ++i) largest = fabs(now[i]) > largest ? fabs(now[i]) : largest;
  for (int i = 0; i < dim; ++i)
    if (!has_converged(before[i], now[i], largest)) return false;
  return true;
}

// Adds an arc to the current round, given the former and the new value before its start. Returns whether the arc must
// be processed again.
template <typename T>
bool entry_changed(MatrixRounds& rounds, const T* before, const T* now, int dim) {
  double squared_norm = 0, squared_change = 0;
  for (int i = 0; i < dim; ++i) {
    const double value = static_cast<double>(now[i]), change = value - static_cast<double>(before[i]);
    squared_norm += value * value;
    squared_change += change * change;
  }
  const bool converged = row_has_converged(before, now, dim);
  rounds.add_arc(squared_norm, squared_change, converged);
  return !converged;
}

template <typename T>
void scan(const EchoMatrixProblem& problem, const EchoMatrixScan& io, int num_threads) {
  const int dim = problem.dim;
  const auto *source = static_cast<const T*>(io.source), *matrices = static_cast<const T*>(io.matrices);
  auto* values = static_cast<T*>(io.values);
  const MatrixCircle circle{io.order, problem.rows, io.backward};
  const int64_t arcs = matrix_arcs(problem.rows);
  // The value before the start of each arc.
  const std::unique_ptr<T[]> entries(new T[static_cast<size_t>(arcs * dim)]());
  const std::unique_ptr<bool[]> is_active(new bool[static_cast<size_t>(arcs)]);
  std::fill(is_active.get(), is_active.get() + arcs, true);

  MatrixRounds rounds;
  bool is_first = true, goes_on = true;
  for (int64_t terms = 0; goes_on && terms < kMaxMatrixTerms; terms += std::min(problem.rows, kMatrixArcSteps)) {
    poll_interrupt();
    parallel_for(arcs, num_threads, [&](int64_t arc, int) {
      if (!is_active[arc]) return;
      T now[kMaxMatrixDim];
      const T* before = entries.get() + arc * dim;
      const int64_t end = std::min((arc + 1) * kMatrixArcSteps, problem.rows);
      for (int64_t step = arc * kMatrixArcSteps; step < end; ++step) {
        const int64_t row = circle.row(step);
        const T* matrix = matrices + circle.matrix_row(step) * dim * dim;
        if (io.backward)
          multiply_transposed(source + row * dim, matrix, before, dim, now);
        else
          multiply(source + row * dim, matrix, before, dim, now);
        T* value = values + row * dim;
        const bool converged = !is_first && row_has_converged(value, now, dim);
        std::copy(now, now + dim, value);
        if (converged) return;
        before = value;
      }
    });
    is_first = false;
    for (int64_t arc = 0; arc < arcs; ++arc) {
      const T* entry = values + circle.row(circle.before(arc * kMatrixArcSteps)) * dim;
      is_active[arc] = entry_changed(rounds, entries.get() + arc * dim, entry, dim);
      std::copy(entry, entry + dim, entries.get() + arc * dim);
    }
    goes_on = rounds.needs_another_round();
  }
}

template <typename T>
void outer(const EchoMatrixProblem& problem, const EchoMatrixOuter& io, int num_threads) {
  constexpr int64_t kTask = 64;
  const int dim = problem.dim;
  parallel_for((problem.rows + kTask - 1) / kTask, num_threads, [&](int64_t task, int) {
    for (int64_t p = task * kTask; p < std::min((task + 1) * kTask, problem.rows); ++p) {
      const int64_t row = io.order[p], next = io.order[p + 1 == problem.rows ? 0 : p + 1];
      const T* value = static_cast<const T*>(io.values) + row * dim;
      const T* noise = static_cast<const T*>(io.z) + next * dim;
      T* to = static_cast<T*>(io.grad_matrices) + row * dim * dim;
      for (int i = 0; i < dim; ++i)
        for (int j = 0; j < dim; ++j) to[i * dim + j] = value[i] * noise[j];
    }
  });
}

}  // namespace

const EchoMatrixKernels echo_matrix_kernels{
    [](const EchoMatrixProblem& problem, const EchoMatrixScan& io, int num_threads) {
      with_real(problem.dtype, [&](auto zero) { scan<decltype(zero)>(problem, io, num_threads); });
    },
    [](const EchoMatrixProblem& problem, const EchoMatrixOuter& io, int num_threads) {
      with_real(problem.dtype, [&](auto zero) { outer<decltype(zero)>(problem, io, num_threads); });
    }};

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
