// Bindings of the Echo kernels on the CPU.
#include "bindings/bindings.h"
#include "echo/echo.h"
#include "echo/matrix.h"
#include "echo/scan.h"

namespace echo_ext {

void bind_echo_cpu(py::module_& m) {
  m.def(
      "echo_cpu_forward",
      [](const EchoProblem& problem, uintptr_t seed, uintptr_t bank_f, uintptr_t bank_s, uintptr_t f, uintptr_t s,
         uintptr_t out, int num_threads) {
        echo_cpu_forward(problem, {at<int64_t>(seed), at<>(bank_f), at<>(bank_s), at<>(f), at<>(s), at<>(out)},
                         num_threads);
      },
      NoGil(), py::arg("problem"), py::arg("seed"), py::arg("bank_f"), py::arg("bank_s"), py::arg("f"), py::arg("s"),
      py::arg("out"), py::arg("num_threads"));
  m.def(
      "echo_cpu_backward",
      [](const EchoProblem& problem, uintptr_t seed, uintptr_t bank_f, uintptr_t bank_s, uintptr_t s, uintptr_t grad,
         uintptr_t grad_s, uintptr_t grad_bank_f, uintptr_t grad_bank_s, int num_threads) {
        echo_cpu_backward(problem,
                          {at<int64_t>(seed), at<>(bank_f), at<>(bank_s), at<>(s), at<>(grad), at<>(grad_s),
                           at<>(grad_bank_f), at<>(grad_bank_s)},
                          num_threads);
      },
      NoGil(), py::arg("problem"), py::arg("seed"), py::arg("bank_f"), py::arg("bank_s"), py::arg("s"), py::arg("grad"),
      py::arg("grad_s"), py::arg("grad_bank_f"), py::arg("grad_bank_s"), py::arg("num_threads"));
  m.def(
      "echo_cpu_indices",
      [](const EchoProblem& problem, uintptr_t seed, uintptr_t indices, int num_threads) {
        echo_cpu_indices(problem, at<int64_t>(seed), at<int64_t>(indices), num_threads);
      },
      NoGil(), py::arg("problem"), py::kw_only(), py::arg("seed"), py::arg("indices"), py::arg("num_threads"));

  m.def(
      "echo_matrix_cpu_scan",
      [](const EchoMatrixProblem& problem, uintptr_t order, uintptr_t source, uintptr_t matrices, uintptr_t values,
         bool backward, int num_threads) {
        echo_matrix_kernels().scan(problem, {at<int64_t>(order), at<>(source), at<>(matrices), at<>(values), backward},
                                   num_threads);
      },
      NoGil(), py::arg("problem"), py::kw_only(), py::arg("order"), py::arg("source"), py::arg("matrices"),
      py::arg("values"), py::arg("backward"), py::arg("num_threads"));
  m.def(
      "echo_matrix_cpu_outer",
      [](const EchoMatrixProblem& problem, uintptr_t order, uintptr_t values, uintptr_t z, uintptr_t grad_matrices,
         int num_threads) {
        echo_matrix_kernels().outer(problem, {at<int64_t>(order), at<>(values), at<>(z), at<>(grad_matrices)},
                                    num_threads);
      },
      NoGil(), py::arg("problem"), py::kw_only(), py::arg("order"), py::arg("values"), py::arg("z"),
      py::arg("grad_matrices"), py::arg("num_threads"));

  m.def(
      "echo_scan_cpu_compose",
      [](const EchoScanProblem& problem, uintptr_t order, uintptr_t source, uintptr_t s, uintptr_t constants,
         uintptr_t scales, bool backward, int num_threads) {
        echo_scan_kernels().compose(
            problem, {at<int64_t>(order), at<>(source), at<>(s), at<>(constants), at<>(scales), backward}, num_threads);
      },
      NoGil(), py::arg("problem"), py::kw_only(), py::arg("order"), py::arg("source"), py::arg("s"),
      py::arg("constants"), py::arg("scales"), py::arg("backward"), py::arg("num_threads"));
  m.def(
      "echo_scan_cpu_forward",
      [](const EchoScanProblem& problem, uintptr_t order, uintptr_t f, uintptr_t s, uintptr_t entries, uintptr_t z,
         int num_threads) {
        echo_scan_kernels().forward(problem, {at<int64_t>(order), at<>(f), at<>(s), at<>(entries), at<>(z)},
                                    num_threads);
      },
      NoGil(), py::arg("problem"), py::kw_only(), py::arg("order"), py::arg("f"), py::arg("s"), py::arg("entries"),
      py::arg("z"), py::arg("num_threads"));
  m.def(
      "echo_scan_cpu_backward",
      [](const EchoScanProblem& problem, uintptr_t order, uintptr_t s, uintptr_t grad, uintptr_t z, uintptr_t entry,
         uintptr_t entries_back, uintptr_t grad_f, uintptr_t grad_s, int num_threads) {
        echo_scan_kernels().backward(problem,
                                     {at<int64_t>(order), at<>(s), at<>(grad), at<>(z), at<>(entry), at<>(entries_back),
                                      at<>(grad_f), at<>(grad_s)},
                                     num_threads);
      },
      NoGil(), py::arg("problem"), py::kw_only(), py::arg("order"), py::arg("s"), py::arg("grad"), py::arg("z"),
      py::arg("entry"), py::arg("entries_back"), py::arg("grad_f"), py::arg("grad_s"), py::arg("num_threads"));
}

}  // namespace echo_ext
