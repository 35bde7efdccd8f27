// The Python module. Tensors arrive as addresses and sizes: the core knows no torch.
#include "bindings.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__APPLE__)
#include <pthread.h>
#endif

#include "cuda_driver.h"
#include "echo.h"
#include "echo_matrix.h"
#include "echo_scan.h"
#include "isa.h"
#include "knn.h"
#include "parallel.h"

using namespace echo_ext;

namespace {

// Python runs signal handlers on its main thread only. Others are not to ask for the GIL in the middle of a
// calculation: that would keep them waiting for nothing, and end the process during Python's finalization.
bool may_handle_signals() {
#if defined(__linux__)
  return syscall(SYS_gettid) == getpid();
#elif defined(__APPLE__)
  return pthread_main_np() != 0;
#else
  return true;
#endif
}

void check_signals() {
  if (!may_handle_signals()) return;
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

void bind_echo(py::module_& m) {
  py::class_<EchoProblem>(m, "EchoProblem")
      .def(py::init([](int64_t rows, int64_t bank_rows, int64_t width, int64_t num_terms, bool exclude_self,
                       int sampling, int dtype) {
             return EchoProblem{rows,
                                bank_rows,
                                width,
                                num_terms,
                                exclude_self,
                                static_cast<Sampling>(sampling),
                                static_cast<DType>(dtype)};
           }),
           py::arg("rows"), py::arg("bank_rows"), py::arg("width"), py::arg("num_terms"), py::arg("exclude_self"),
           py::arg("sampling"), py::arg("dtype"))
      .def_readonly("rows", &EchoProblem::rows)
      .def_readonly("bank_rows", &EchoProblem::bank_rows)
      .def_readonly("exclude_self", &EchoProblem::exclude_self);

  m.def(
      "echo_cpu_forward",
      [](const EchoProblem& problem, uintptr_t seed, uintptr_t bank_f, uintptr_t bank_s, uintptr_t f, uintptr_t s,
         uintptr_t out, int num_threads) {
        echo_cpu_forward(problem, {at<int64_t>(seed), at(bank_f), at(bank_s), at(f), at(s), at(out)}, num_threads);
      },
      NoGil());
  m.def(
      "echo_cpu_backward",
      [](const EchoProblem& problem, uintptr_t seed, uintptr_t bank_f, uintptr_t bank_s, uintptr_t s, uintptr_t grad,
         uintptr_t grad_s, uintptr_t grad_bank_f, uintptr_t grad_bank_s, int num_threads) {
        echo_cpu_backward(
            problem,
            {at<int64_t>(seed), at(bank_f), at(bank_s), at(s), at(grad), at(grad_s), at(grad_bank_f), at(grad_bank_s)},
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
        check_cuda(echo_cuda_forward(problem,
                                     {at<int64_t>(seed), at(bank_f), at(bank_s), at(f), at(s), at(out), at(workspace)},
                                     device, at(stream)));
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

// The kernels exist in double and single precision.
void bind_echo_matrix(py::module_& m) {
  py::class_<EchoMatrixProblem>(m, "EchoMatrixProblem")
      .def(py::init([](int64_t rows, int dim, bool single) { return EchoMatrixProblem{rows, dim, single}; }),
           py::arg("rows"), py::arg("dim"), py::arg("single"));

  m.def(
      "echo_matrix_cpu_scan",
      [](const EchoMatrixProblem& problem, uintptr_t order, uintptr_t source, uintptr_t matrices, uintptr_t values,
         bool backward, int num_threads) {
        echo_matrix_cpu_scan(problem, {at<int64_t>(order), at(source), at(matrices), at(values), backward},
                             num_threads);
      },
      NoGil());
  m.def(
      "echo_matrix_cpu_outer",
      [](const EchoMatrixProblem& problem, uintptr_t order, uintptr_t values, uintptr_t z, uintptr_t grad_matrices,
         int num_threads) {
        echo_matrix_cpu_outer(problem, {at<int64_t>(order), at(values), at(z), at(grad_matrices)}, num_threads);
      },
      NoGil());
#if defined(ECHO_EXT_WITH_CUDA)
  m.def("echo_matrix_cuda_workspace_bytes", &echo_matrix_cuda_workspace_bytes);
  m.def(
      "echo_matrix_cuda_scan",
      [](const EchoMatrixProblem& problem, uintptr_t order, uintptr_t source, uintptr_t matrices, uintptr_t values,
         bool backward, uintptr_t workspace, int device, uintptr_t stream) {
        check_cuda(echo_matrix_cuda_scan(
            problem, {at<int64_t>(order), at(source), at(matrices), at(values), backward, at(workspace)}, device,
            at(stream)));
      },
      NoGil());
  m.def(
      "echo_matrix_cuda_outer",
      [](const EchoMatrixProblem& problem, uintptr_t order, uintptr_t values, uintptr_t z, uintptr_t grad_matrices,
         int device, uintptr_t stream) {
        check_cuda(echo_matrix_cuda_outer(problem, {at<int64_t>(order), at(values), at(z), at(grad_matrices)}, device,
                                          at(stream)));
      },
      NoGil());
#endif
}

void bind_echo_scan(py::module_& m) {
  py::class_<EchoScanProblem>(m, "EchoScanProblem")
      .def(py::init([](int64_t rows, int64_t width, int dtype, int64_t chunk_rows) {
             return EchoScanProblem{rows, width, static_cast<DType>(dtype), chunk_rows};
           }),
           py::arg("rows"), py::arg("width"), py::arg("dtype"), py::arg("chunk_rows"))
      .def_property_readonly("num_chunks", &EchoScanProblem::num_chunks);

  m.def(
      "echo_scan_cpu_compose",
      [](const EchoScanProblem& problem, uintptr_t order, uintptr_t source, uintptr_t s, uintptr_t constants,
         uintptr_t scales, bool backward, int num_threads) {
        echo_scan_cpu_kernels().compose(
            problem, {at<int64_t>(order), at(source), at(s), at(constants), at(scales), backward}, num_threads);
      },
      NoGil());
  m.def(
      "echo_scan_cpu_forward",
      [](const EchoScanProblem& problem, uintptr_t order, uintptr_t f, uintptr_t s, uintptr_t entries, uintptr_t z,
         int num_threads) {
        echo_scan_cpu_kernels().forward(problem, {at<int64_t>(order), at(f), at(s), at(entries), at(z)}, num_threads);
      },
      NoGil());
  m.def(
      "echo_scan_cpu_backward",
      [](const EchoScanProblem& problem, uintptr_t order, uintptr_t s, uintptr_t grad, uintptr_t z, uintptr_t entry,
         uintptr_t entries_back, uintptr_t grad_f, uintptr_t grad_s, int num_threads) {
        echo_scan_cpu_kernels().backward(
            problem, {at<int64_t>(order), at(s), at(grad), at(z), at(entry), at(entries_back), at(grad_f), at(grad_s)},
            num_threads);
      },
      NoGil());
#if defined(ECHO_EXT_WITH_CUDA)
  m.def(
      "echo_scan_cuda_compose",
      [](const EchoScanProblem& problem, uintptr_t order, uintptr_t source, uintptr_t s, uintptr_t constants,
         uintptr_t scales, bool backward, int device, uintptr_t stream) {
        check_cuda(echo_scan_cuda_compose(
            problem, {at<int64_t>(order), at(source), at(s), at(constants), at(scales), backward}, device, at(stream)));
      },
      NoGil());
  m.def(
      "echo_scan_cuda_forward",
      [](const EchoScanProblem& problem, uintptr_t order, uintptr_t f, uintptr_t s, uintptr_t entries, uintptr_t z,
         int device, uintptr_t stream) {
        check_cuda(echo_scan_cuda_forward(problem, {at<int64_t>(order), at(f), at(s), at(entries), at(z)}, device,
                                          at(stream)));
      },
      NoGil());
  m.def(
      "echo_scan_cuda_backward",
      [](const EchoScanProblem& problem, uintptr_t order, uintptr_t s, uintptr_t grad, uintptr_t z, uintptr_t entry,
         uintptr_t entries_back, uintptr_t grad_f, uintptr_t grad_s, int device, uintptr_t stream) {
        check_cuda(echo_scan_cuda_backward(
            problem, {at<int64_t>(order), at(s), at(grad), at(z), at(entry), at(entries_back), at(grad_f), at(grad_s)},
            device, at(stream)));
      },
      NoGil());
#endif
}

template <typename Params>
void run_knn(bool single, const Params& p, void (*in_double)(const Params&), void (*in_single)(const Params&)) {
  const py::gil_scoped_release release;
  (single ? in_single : in_double)(p);
}

void bind_knn(py::module_& m) {
  const auto metric = [](bool euclidean) { return euclidean ? Metric::euclidean : Metric::chebyshev; };

  m.def(
      "knn_search",
      [metric](bool single, uintptr_t points, uintptr_t queries, uintptr_t rows, int64_t batch, int64_t num_points,
               int64_t num_queries, int dim, int k, bool euclidean, int64_t exclude_within, uintptr_t distances,
               uintptr_t indices, int num_threads) {
        run_knn<KnnSearch>(single,
                           {at<>(points), at<>(queries), at<int64_t>(rows), batch, num_points, num_queries, dim, k,
                            metric(euclidean), exclude_within, at<>(distances), at<int64_t>(indices), num_threads},
                           knn_search<double>, knn_search<float>);
      },
      py::arg("single"), py::arg("points"), py::arg("queries"), py::arg("rows"), py::arg("batch"),
      py::arg("num_points"), py::arg("num_queries"), py::arg("dim"), py::arg("k"), py::arg("euclidean"),
      py::arg("exclude_within"), py::arg("distances"), py::arg("indices"), py::arg("num_threads"));

  m.def(
      "knn_count",
      [metric](bool single, uintptr_t points, uintptr_t radii, uintptr_t groups, uintptr_t rows, int64_t batch,
               int64_t num_points, int64_t num_radii, int num_groups, int dim, bool euclidean, bool inclusive,
               int64_t exclude_within, uintptr_t counts, int num_threads) {
        run_knn<KnnCount>(
            single,
            {at<>(points), at<>(radii), at<int32_t>(groups), at<int64_t>(rows), batch, num_points, num_radii,
             num_groups, dim, metric(euclidean), inclusive, exclude_within, at<int64_t>(counts), num_threads},
            knn_count<double>, knn_count<float>);
      },
      py::arg("single"), py::arg("points"), py::arg("radii"), py::arg("groups"), py::arg("rows"), py::arg("batch"),
      py::arg("num_points"), py::arg("num_radii"), py::arg("num_groups"), py::arg("dim"), py::arg("euclidean"),
      py::arg("inclusive"), py::arg("exclude_within"), py::arg("counts"), py::arg("num_threads"));

  m.def(
      "knn_add_digamma",
      [](uintptr_t counts, uintptr_t values, int64_t size, int64_t shift, double factor, int num_threads) {
        knn_add_digamma({at<int64_t>(counts), at<double>(values), size, shift, factor, num_threads});
      },
      NoGil(), py::arg("counts"), py::arg("values"), py::arg("size"), py::arg("shift"), py::arg("factor"),
      py::arg("num_threads"));
  m.def(
      "knn_boundary",
      [](bool single, uintptr_t points, uintptr_t radii, uintptr_t skip, int64_t batch, int64_t num_points, int dim,
         int width, int64_t exclude_within, uintptr_t indices, int num_threads) {
        run_knn<KnnBoundary>(single,
                             {at<>(points), at<>(radii), at<int64_t>(skip), batch, num_points, dim, width,
                              exclude_within, at<int64_t>(indices), num_threads},
                             knn_boundary<double>, knn_boundary<float>);
      },
      py::arg("single"), py::arg("points"), py::arg("radii"), py::arg("skip"), py::arg("batch"), py::arg("num_points"),
      py::arg("dim"), py::arg("width"), py::arg("exclude_within"), py::arg("indices"), py::arg("num_threads"));
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native core of echo_ext: kernels over raw memory.";
  m.def("isa", [] { return isa_name(current_isa()); });
  set_interrupt_check(check_signals);
#if defined(ECHO_EXT_WITH_CUDA)
  m.attr("cuda_version") = ECHO_EXT_CUDA_VERSION;
  m.attr("cuda_archs") = ECHO_EXT_CUDA_ARCHS;
  m.def("cuda_driver_version", [] {
    int version = 0;
    check_cuda(cuda_driver_version(&version));
    return version;
  });
#else
  m.attr("cuda_version") = py::none();
  m.attr("cuda_archs") = "";
  m.def("cuda_driver_version", [] { return 0; });
#endif
  bind_echo(m);
  bind_echo_matrix(m);
  bind_echo_scan(m);
  bind_knn(m);
#if defined(ECHO_EXT_WITH_CUDA)
  bind_knn_cuda(m);
#endif
}
