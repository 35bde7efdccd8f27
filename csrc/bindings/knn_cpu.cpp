// Bindings of the nearest-neighbor kernels on the CPU.
#include <pybind11/stl.h>

#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "knn/knn.h"
#include "knn/surrogates.h"

namespace echo_ext {

void bind_knn_cpu(py::module_& m) {
  m.def(
      "knn_search",
      [](int dtype, uintptr_t points, uintptr_t queries, uintptr_t rows, int64_t batch, int64_t num_points,
         int64_t num_queries, int dim, int k, const std::string& metric, int64_t exclude_within,
         const std::vector<int32_t>& ks, const std::vector<int32_t>& groups, int num_groups, uintptr_t distances,
         uintptr_t indices, uintptr_t reaches, int num_threads) {
        knn_search()({static_cast<DType>(dtype), at<>(points), at<>(queries), at<int64_t>(rows), batch, num_points,
                      num_queries, dim, k, metric_of(metric), exclude_within, ks.data(), static_cast<int>(ks.size()),
                      groups.data(), num_groups, at<>(distances), at<int64_t>(indices), at<>(reaches), num_threads});
      },
      NoGil(), py::kw_only(), py::arg("dtype"), py::arg("points"), py::arg("queries"), py::arg("rows"),
      py::arg("batch"), py::arg("num_points"), py::arg("num_queries"), py::arg("dim"), py::arg("k"), py::arg("metric"),
      py::arg("exclude_within"), py::arg("ks"), py::arg("groups"), py::arg("num_groups"), py::arg("distances"),
      py::arg("indices"), py::arg("reaches"), py::arg("num_threads"));
  m.def(
      "knn_count",
      [](int dtype, uintptr_t points, uintptr_t radii, const std::vector<int32_t>& groups, uintptr_t rows,
         int64_t batch, int64_t num_points, int64_t num_radii, int num_groups, int dim, const std::string& metric,
         bool inclusive, int64_t exclude_within, uintptr_t counts, int num_threads) {
        knn_count()({static_cast<DType>(dtype), at<>(points), at<>(radii), groups.data(), at<int64_t>(rows), batch,
                     num_points, num_radii, num_groups, dim, metric_of(metric), inclusive, exclude_within,
                     at<int64_t>(counts), num_threads});
      },
      NoGil(), py::kw_only(), py::arg("dtype"), py::arg("points"), py::arg("radii"), py::arg("groups"), py::arg("rows"),
      py::arg("batch"), py::arg("num_points"), py::arg("num_radii"), py::arg("num_groups"), py::arg("dim"),
      py::arg("metric"), py::arg("inclusive"), py::arg("exclude_within"), py::arg("counts"), py::arg("num_threads"));
  m.def(
      "knn_boundary",
      [](int dtype, uintptr_t points, uintptr_t radii, uintptr_t skip, uintptr_t rows, int64_t batch,
         int64_t num_points, int dim, int width, int64_t exclude_within, uintptr_t indices, int num_threads) {
        knn_boundary()({static_cast<DType>(dtype), at<>(points), at<>(radii), at<int64_t>(skip), at<int64_t>(rows),
                        batch, num_points, dim, width, exclude_within, at<int64_t>(indices), num_threads});
      },
      NoGil(), py::kw_only(), py::arg("dtype"), py::arg("points"), py::arg("radii"), py::arg("skip"), py::arg("rows"),
      py::arg("batch"), py::arg("num_points"), py::arg("dim"), py::arg("width"), py::arg("exclude_within"),
      py::arg("indices"), py::arg("num_threads"));
  m.def(
      "knn_resample",
      [](int dtype, uintptr_t fixed, uintptr_t given, uintptr_t moved, uintptr_t orders, uintptr_t rows, int64_t batch,
         int64_t num_points, int64_t num_surrogates, int fixed_dim, int given_dim, int moved_dim, int k,
         int64_t exclude_within, uintptr_t estimates, int num_threads) {
        knn_resample()({static_cast<DType>(dtype), at<>(fixed), at<>(given), at<>(moved), at<int64_t>(orders),
                        at<int64_t>(rows), batch, num_points, num_surrogates, fixed_dim, given_dim, moved_dim, k,
                        exclude_within, at<double>(estimates), num_threads});
      },
      NoGil(), py::kw_only(), py::arg("dtype"), py::arg("fixed"), py::arg("given"), py::arg("moved"), py::arg("orders"),
      py::arg("rows"), py::arg("batch"), py::arg("num_points"), py::arg("num_surrogates"), py::arg("fixed_dim"),
      py::arg("given_dim"), py::arg("moved_dim"), py::arg("k"), py::arg("exclude_within"), py::arg("estimates"),
      py::arg("num_threads"));
  m.def(
      "knn_permutations",
      [](int64_t seed, int64_t stream, int64_t first, int64_t num, int64_t size, int64_t length, uintptr_t orders,
         int num_threads) {
        knn_permutations({seed, stream, first, num, size, length, at<int64_t>(orders), num_threads});
      },
      NoGil(), py::kw_only(), py::arg("seed"), py::arg("stream"), py::arg("first"), py::arg("num"), py::arg("size"),
      py::arg("length"), py::arg("orders"), py::arg("num_threads"));
  m.def(
      "knn_local_permutations",
      [](int64_t seed, int64_t stream, int64_t first, int64_t num, uintptr_t neighbors, int64_t batch,
         int64_t num_points, int64_t num_neighbors, uintptr_t orders, int num_threads) {
        knn_local_permutations({seed, stream, first, num, at<int64_t>(neighbors), batch, num_points, num_neighbors,
                                at<int64_t>(orders), num_threads});
      },
      NoGil(), py::kw_only(), py::arg("seed"), py::arg("stream"), py::arg("first"), py::arg("num"),
      py::arg("neighbors"), py::arg("batch"), py::arg("num_points"), py::arg("num_neighbors"), py::arg("orders"),
      py::arg("num_threads"));
  m.def(
      "knn_add_digamma",
      [](uintptr_t counts, uintptr_t values, int64_t size, int64_t shift, double factor, int num_threads) {
        knn_add_digamma({at<int64_t>(counts), at<double>(values), size, shift, factor, num_threads});
      },
      NoGil(), py::kw_only(), py::arg("counts"), py::arg("values"), py::arg("size"), py::arg("shift"),
      py::arg("factor"), py::arg("num_threads"));
  m.def(
      "knn_add_margins",
      [](int dtype, const std::vector<std::pair<uintptr_t, int>>& variables,
         const std::vector<std::pair<std::vector<int>, double>>& margins, const std::vector<int32_t>& ks,
         uintptr_t rows, int64_t batch, int64_t num_points, int64_t exclude_within, uintptr_t values,
         uintptr_t tied_shares, int num_threads) {
        KnnMargins p{static_cast<DType>(dtype),
                     {},
                     {},
                     ks,
                     at<int64_t>(rows),
                     batch,
                     num_points,
                     exclude_within,
                     at<double>(values),
                     at<double>(tied_shares),
                     num_threads};
        for (const auto& [points, dim] : variables) p.variables.push_back({at<>(points), dim});
        for (const auto& [of_margin, factor] : margins) p.margins.push_back({of_margin, factor});
        knn_add_margins(p);
      },
      NoGil(), py::kw_only(), py::arg("dtype"), py::arg("variables"), py::arg("margins"), py::arg("ks"),
      py::arg("rows"), py::arg("batch"), py::arg("num_points"), py::arg("exclude_within"), py::arg("values"),
      py::arg("tied_shares"), py::arg("num_threads"));
}

}  // namespace echo_ext
