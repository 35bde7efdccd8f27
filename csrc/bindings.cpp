// The only file that knows pybind11. Tensors arrive as addresses and sizes: the core knows no torch.
#include <pybind11/pybind11.h>

#include "isa.h"
#include "knn.h"

namespace py = pybind11;

void bind_knn(py::module_& m);

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native core of echo_ext: kernels over raw memory.";
  m.def("isa", [] { return echo_ext::isa_name(echo_ext::current_isa()); },
        "The instruction set that the CPU kernels run on.");
  bind_knn(m);
}

// ---- Nearest neighbours ----------------------------------------------------------------------------------------------

namespace {

template <typename T>
T* address(std::uintptr_t a) {
  return reinterpret_cast<T*>(a);
}

// The kernels exist in double and single precision.
template <typename Params>
void run_knn(bool single, const Params& p, void (*in_double)(const Params&), void (*in_single)(const Params&)) {
  const py::gil_scoped_release release;
  (single ? in_single : in_double)(p);
}

}  // namespace

void bind_knn(py::module_& m) {
  using echo_ext::Metric;
  using Address = std::uintptr_t;
  const auto metric = [](bool euclidean) { return euclidean ? Metric::euclidean : Metric::chebyshev; };

  m.def("knn_search",
        [metric](bool single, Address points, Address queries, Address rows, int64_t batch, int64_t num_points,
                 int64_t num_queries, int dim, int k, bool euclidean, int64_t exclude_within, Address distances,
                 Address indices, int num_threads) {
          run_knn<echo_ext::KnnSearch>(
              single,
              {address<void>(points), address<void>(queries), address<int64_t>(rows), batch, num_points, num_queries,
               dim, k, metric(euclidean), exclude_within, address<void>(distances), address<int64_t>(indices),
               num_threads},
              echo_ext::knn_search<double>, echo_ext::knn_search<float>);
        },
        py::arg("single"), py::arg("points"), py::arg("queries"), py::arg("rows"), py::arg("batch"),
        py::arg("num_points"), py::arg("num_queries"), py::arg("dim"), py::arg("k"), py::arg("euclidean"),
        py::arg("exclude_within"), py::arg("distances"), py::arg("indices"), py::arg("num_threads"));

  m.def("knn_count",
        [metric](bool single, Address points, Address radii, Address groups, Address rows, int64_t batch,
                 int64_t num_points, int64_t num_radii, int num_groups, int dim, bool euclidean, bool inclusive,
                 int64_t exclude_within, Address counts, int num_threads) {
          run_knn<echo_ext::KnnCount>(
              single,
              {address<void>(points), address<void>(radii), address<int32_t>(groups), address<int64_t>(rows), batch,
               num_points, num_radii, num_groups, dim, metric(euclidean), inclusive, exclude_within,
               address<int64_t>(counts), num_threads},
              echo_ext::knn_count<double>, echo_ext::knn_count<float>);
        },
        py::arg("single"), py::arg("points"), py::arg("radii"), py::arg("groups"), py::arg("rows"), py::arg("batch"),
        py::arg("num_points"), py::arg("num_radii"), py::arg("num_groups"), py::arg("dim"), py::arg("euclidean"),
        py::arg("inclusive"), py::arg("exclude_within"), py::arg("counts"), py::arg("num_threads"));

  m.def("knn_add_digamma",
        [](Address counts, Address values, int64_t size, int64_t shift, double factor, int num_threads) {
          const py::gil_scoped_release release;
          echo_ext::knn_add_digamma(
              {address<int64_t>(counts), address<double>(values), size, shift, factor, num_threads});
        },
        py::arg("counts"), py::arg("values"), py::arg("size"), py::arg("shift"), py::arg("factor"),
        py::arg("num_threads"));

  m.def("knn_boundary",
        [](bool single, Address points, Address radii, Address skip, int64_t batch, int64_t num_points, int dim,
           int width, int64_t exclude_within, Address indices, int num_threads) {
          run_knn<echo_ext::KnnBoundary>(
              single,
              {address<void>(points), address<void>(radii), address<int64_t>(skip), batch, num_points, dim, width,
               exclude_within, address<int64_t>(indices), num_threads},
              echo_ext::knn_boundary<double>, echo_ext::knn_boundary<float>);
        },
        py::arg("single"), py::arg("points"), py::arg("radii"), py::arg("skip"), py::arg("batch"),
        py::arg("num_points"), py::arg("dim"), py::arg("width"), py::arg("exclude_within"), py::arg("indices"),
        py::arg("num_threads"));
}
