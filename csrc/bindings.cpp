// The only file that knows pybind11. Tensors arrive as addresses and sizes: the core knows no torch.
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "echo.h"
#include "isa.h"

namespace py = pybind11;
using namespace echo_ext;

namespace {

template <typename T = void>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

#if defined(ECHO_EXT_WITH_CUDA)
void check_cuda(const char* error) {
  if (error != nullptr) throw std::runtime_error(error);
}

int64_t checked_size(int64_t bytes) {
  if (bytes < 0) throw std::runtime_error("echo_ext cannot reach the CUDA device (echo-ext info shows why)");
  return bytes;
}
#endif

using NoGil = py::call_guard<py::gil_scoped_release>;

void bind_echo(py::module_& m) {
  py::class_<EchoProblem>(m, "EchoProblem")
      .def(py::init([](int64_t rows, int64_t bank_rows, int64_t width, int64_t num_terms, bool exclude_self, int sampling,
                       int dtype) {
             return EchoProblem{rows,         bank_rows, width, num_terms, exclude_self, static_cast<Sampling>(sampling),
                                static_cast<DType>(dtype)};
           }),
           py::arg("rows"), py::arg("bank_rows"), py::arg("width"), py::arg("num_terms"), py::arg("exclude_self"),
           py::arg("sampling"), py::arg("dtype"));

  m.def("echo_cpu_forward_workspace_bytes", &echo_cpu_forward_workspace_bytes);
  m.def("echo_cpu_backward_workspace_bytes", &echo_cpu_backward_workspace_bytes);
  m.def(
      "echo_cpu_forward",
      [](const EchoProblem& problem, uintptr_t seed, uintptr_t bank_f, uintptr_t bank_s, uintptr_t f, uintptr_t s,
         uintptr_t out, uintptr_t workspace, int num_threads) {
        echo_cpu_forward(problem, {at<int64_t>(seed), at(bank_f), at(bank_s), at(f), at(s), at(out), at(workspace)},
                         num_threads);
      },
      NoGil());
  m.def(
      "echo_cpu_backward",
      [](const EchoProblem& problem, uintptr_t seed, uintptr_t bank_f, uintptr_t bank_s, uintptr_t s, uintptr_t grad,
         uintptr_t grad_s, uintptr_t grad_bank_f, uintptr_t grad_bank_s, uintptr_t workspace, int num_threads) {
        echo_cpu_backward(problem,
                          {at<int64_t>(seed), at(bank_f), at(bank_s), at(s), at(grad), at(grad_s), at(grad_bank_f),
                           at(grad_bank_s), at(workspace)},
                          num_threads);
      },
      NoGil());
  m.def(
      "echo_cpu_indices",
      [](const EchoProblem& problem, uintptr_t seed, uintptr_t indices, int num_threads) {
        echo_cpu_indices(problem, at<int64_t>(seed), at<int64_t>(indices), num_threads);
      },
      NoGil());
#if defined(ECHO_EXT_WITH_CUDA)
  m.def("echo_cuda_forward_workspace_bytes", [](const EchoProblem& problem, int device) {
    return checked_size(echo_cuda_forward_workspace_bytes(problem, device));
  });
  m.def("echo_cuda_backward_workspace_bytes", [](const EchoProblem& problem, bool deterministic, int device) {
    return checked_size(echo_cuda_backward_workspace_bytes(problem, deterministic, device));
  });
  m.def(
      "echo_cuda_forward",
      [](const EchoProblem& problem, uintptr_t seed, uintptr_t bank_f, uintptr_t bank_s, uintptr_t f, uintptr_t s,
         uintptr_t out, uintptr_t workspace, int device, uintptr_t stream) {
        check_cuda(echo_cuda_forward(
            problem, {at<int64_t>(seed), at(bank_f), at(bank_s), at(f), at(s), at(out), at(workspace)}, device,
            at(stream)));
      },
      NoGil());
  m.def(
      "echo_cuda_backward",
      [](const EchoProblem& problem, uintptr_t seed, uintptr_t bank_f, uintptr_t bank_s, uintptr_t s, uintptr_t grad,
         uintptr_t grad_s, uintptr_t grad_bank_f, uintptr_t grad_bank_s, uintptr_t workspace, bool deterministic,
         int device, uintptr_t stream) {
        check_cuda(echo_cuda_backward(problem,
                                      {at<int64_t>(seed), at(bank_f), at(bank_s), at(s), at(grad), at(grad_s),
                                       at(grad_bank_f), at(grad_bank_s), at(workspace)},
                                      deterministic, device, at(stream)));
      },
      NoGil());
  m.def(
      "echo_cuda_indices",
      [](const EchoProblem& problem, uintptr_t seed, uintptr_t indices, int device, uintptr_t stream) {
        check_cuda(echo_cuda_indices(problem, at<int64_t>(seed), at<int64_t>(indices), device, at(stream)));
      },
      NoGil());
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native core of echo_ext: kernels over raw memory.";
  m.def("isa", [] { return isa_name(current_isa()); });
#if defined(ECHO_EXT_WITH_CUDA)
  m.attr("cuda_version") = ECHO_EXT_CUDA_VERSION;
  m.attr("cuda_archs") = ECHO_EXT_CUDA_ARCHS;
#else
  m.attr("cuda_version") = py::none();
  m.attr("cuda_archs") = "";
#endif
  bind_echo(m);
}
