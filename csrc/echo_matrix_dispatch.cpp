#include "echo_matrix.h"
#include "isa.h"

namespace echo_ext {
namespace {

const EchoMatrixCpuKernels& kernels() {
#if defined(ECHO_EXT_X86_DISPATCH)
  if (current_isa() == Isa::avx512) return avx512::echo_matrix_kernels;
  if (current_isa() == Isa::avx2) return avx2::echo_matrix_kernels;
#endif
  return baseline::echo_matrix_kernels;
}

}  // namespace

void echo_matrix_cpu_scan(const EchoMatrixProblem& problem, const EchoMatrixScan& io, int num_threads) {
  kernels().scan(problem, io, num_threads);
}

void echo_matrix_cpu_outer(const EchoMatrixProblem& problem, const EchoMatrixOuter& io, int num_threads) {
  kernels().outer(problem, io, num_threads);
}

}  // namespace echo_ext
