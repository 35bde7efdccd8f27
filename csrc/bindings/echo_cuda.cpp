// Bindings of the Echo kernels on CUDA.
#include "bindings/bindings.h"
#include "echo/echo.h"
#include "echo/matrix.h"
#include "echo/scan.h"

namespace echo_ext {

void bind_echo_cuda(py::module_& m) {
  m.def(
      "echo_cuda_forward_workspace_bytes",
      [](const EchoProblem& problem, int device) {
        return checked_size(echo_cuda_forward_workspace_bytes(problem, device));
      },
      py::arg("problem"), py::kw_only(), py::arg("device"));
  m.def(
      "echo_cuda_backward_workspace_bytes",
      [](const EchoProblem& problem, bool deterministic, int device) {
        return checked_size(echo_cuda_backward_workspace_bytes(problem, deterministic, device));
      },
      py::arg("problem"), py::kw_only(), py::arg("deterministic"), py::arg("device"));
  m.def(
      "echo_cuda_forward",
      [](const EchoProblem& problem, uintptr_t seed, uintptr_t bank_f, uintptr_t bank_s, uintptr_t f, uintptr_t s,
         uintptr_t out, uintptr_t workspace, int device, uintptr_t stream) {
        check_cuda(echo_cuda_forward(
            problem, {at<int64_t>(seed), at<>(bank_f), at<>(bank_s), at<>(f), at<>(s), at<>(out), at<>(workspace)},
            device, at<>(stream)));
      },
      NoGil(), py::arg("problem"), py::arg("seed"), py::arg("bank_f"), py::arg("bank_s"), py::arg("f"), py::arg("s"),
      py::arg("out"), py::arg("workspace"), py::arg("device"), py::arg("stream"));
  m.def(
      "echo_cuda_backward",
      [](const EchoProblem& problem, uintptr_t seed, uintptr_t bank_f, uintptr_t bank_s, uintptr_t s, uintptr_t grad,
         uintptr_t grad_s, uintptr_t grad_bank_f, uintptr_t grad_bank_s, uintptr_t workspace, bool deterministic,
         int device, uintptr_t stream) {
        check_cuda(echo_cuda_backward(problem,
                                      {at<int64_t>(seed), at<>(bank_f), at<>(bank_s), at<>(s), at<>(grad), at<>(grad_s),
                                       at<>(grad_bank_f), at<>(grad_bank_s), at<>(workspace)},
                                      deterministic, device, at<>(stream)));
      },
      NoGil(), py::arg("problem"), py::arg("seed"), py::arg("bank_f"), py::arg("bank_s"), py::arg("s"), py::arg("grad"),
      py::arg("grad_s"), py::arg("grad_bank_f"), py::arg("grad_bank_s"), py::arg("workspace"), py::arg("deterministic"),
      py::arg("device"), py::arg("stream"));
  m.def(
      "echo_cuda_indices",
      [](const EchoProblem& problem, uintptr_t seed, uintptr_t indices, int device, uintptr_t stream) {
        check_cuda(echo_cuda_indices(problem, at<int64_t>(seed), at<int64_t>(indices), device, at<>(stream)));
      },
      NoGil(), py::arg("problem"), py::kw_only(), py::arg("seed"), py::arg("indices"), py::arg("device"),
      py::arg("stream"));

  m.def("echo_matrix_cuda_workspace_bytes", &echo_matrix_cuda_workspace_bytes, py::arg("problem"));
  m.def(
      "echo_matrix_cuda_scan",
      [](const EchoMatrixProblem& problem, uintptr_t order, uintptr_t source, uintptr_t matrices, uintptr_t values,
         bool backward, uintptr_t workspace, int device, uintptr_t stream) {
        check_cuda(echo_matrix_cuda_scan(
            problem, {at<int64_t>(order), at<>(source), at<>(matrices), at<>(values), backward, at<>(workspace)},
            device, at<>(stream)));
      },
      NoGil(), py::arg("problem"), py::kw_only(), py::arg("order"), py::arg("source"), py::arg("matrices"),
      py::arg("values"), py::arg("backward"), py::arg("workspace"), py::arg("device"), py::arg("stream"));
  m.def(
      "echo_matrix_cuda_outer",
      [](const EchoMatrixProblem& problem, uintptr_t order, uintptr_t values, uintptr_t z, uintptr_t grad_matrices,
         int device, uintptr_t stream) {
        check_cuda(echo_matrix_cuda_outer(problem, {at<int64_t>(order), at<>(values), at<>(z), at<>(grad_matrices)},
                                          device, at<>(stream)));
      },
      NoGil(), py::arg("problem"), py::kw_only(), py::arg("order"), py::arg("values"), py::arg("z"),
      py::arg("grad_matrices"), py::arg("device"), py::arg("stream"));

  m.def(
      "echo_scan_cuda_compose",
      [](const EchoScanProblem& problem, uintptr_t order, uintptr_t source, uintptr_t s, uintptr_t constants,
         uintptr_t scales, bool backward, int device, uintptr_t stream) {
        check_cuda(echo_scan_cuda_compose(
            problem, {at<int64_t>(order), at<>(source), at<>(s), at<>(constants), at<>(scales), backward}, device,
            at<>(stream)));
      },
      NoGil(), py::arg("problem"), py::kw_only(), py::arg("order"), py::arg("source"), py::arg("s"),
      py::arg("constants"), py::arg("scales"), py::arg("backward"), py::arg("device"), py::arg("stream"));
  m.def(
      "echo_scan_cuda_forward",
      [](const EchoScanProblem& problem, uintptr_t order, uintptr_t f, uintptr_t s, uintptr_t entries, uintptr_t z,
         int device, uintptr_t stream) {
        check_cuda(echo_scan_cuda_forward(problem, {at<int64_t>(order), at<>(f), at<>(s), at<>(entries), at<>(z)},
                                          device, at<>(stream)));
      },
      NoGil(), py::arg("problem"), py::kw_only(), py::arg("order"), py::arg("f"), py::arg("s"), py::arg("entries"),
      py::arg("z"), py::arg("device"), py::arg("stream"));
  m.def(
      "echo_scan_cuda_backward",
      [](const EchoScanProblem& problem, uintptr_t order, uintptr_t s, uintptr_t grad, uintptr_t z, uintptr_t entry,
         uintptr_t entries_back, uintptr_t grad_f, uintptr_t grad_s, int device, uintptr_t stream) {
        check_cuda(echo_scan_cuda_backward(problem,
                                           {at<int64_t>(order), at<>(s), at<>(grad), at<>(z), at<>(entry),
                                            at<>(entries_back), at<>(grad_f), at<>(grad_s)},
                                           device, at<>(stream)));
      },
      NoGil(), py::arg("problem"), py::kw_only(), py::arg("order"), py::arg("s"), py::arg("grad"), py::arg("z"),
      py::arg("entry"), py::arg("entries_back"), py::arg("grad_f"), py::arg("grad_s"), py::arg("device"),
      py::arg("stream"));
}

}  // namespace echo_ext
