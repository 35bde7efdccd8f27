// Bindings of the nearest-neighbor kernels on CUDA.
#include "knn/knn_cuda.h"

#include "bindings/bindings.h"

namespace echo_ext {

// The classes are local to the module, because the tests load these bindings a second time.
void bind_knn_cuda(py::module_& m) {
  py::class_<KnnTree>(m, "KnnTree", py::module_local())
      .def(py::init([](int dtype, uintptr_t points, uintptr_t order, int64_t batch, int64_t num_points, int dim) {
             return KnnTree{
                 static_cast<DType>(dtype), at<>(points), at<int64_t>(order), batch, num_points, dim, nullptr};
           }),
           py::kw_only(), py::arg("dtype"), py::arg("points"), py::arg("order"), py::arg("batch"),
           py::arg("num_points"), py::arg("dim"))
      .def("part", &KnnTree::part, py::arg("first"), py::arg("count"))
      .def("bytes", [](const KnnTree& tree) {
        return with_real(tree.dtype, [&](auto zero) { return knn_cuda_tree_bytes<decltype(zero)>(tree); });
      });

  m.def(
      "knn_cuda_max_neighbors", [](int device) { return checked_size(knn_cuda_max_neighbors(device)); },
      py::arg("device"));
  m.def(
      "knn_cuda_keys",
      [](int dtype, uintptr_t points, uintptr_t sample, int64_t batch, int64_t num_points, int64_t sample_size, int dim,
         uintptr_t keys, int device, uintptr_t stream) {
        const KnnKeys p{at<>(points), at<>(sample), batch, num_points, sample_size, dim, at<int64_t>(keys)};
        check_cuda(with_real(static_cast<DType>(dtype),
                             [&](auto zero) { return knn_cuda_keys<decltype(zero)>(p, device, at<>(stream)); }));
      },
      NoGil(), py::kw_only(), py::arg("dtype"), py::arg("points"), py::arg("sample"), py::arg("batch"),
      py::arg("num_points"), py::arg("sample_size"), py::arg("dim"), py::arg("keys"), py::arg("device"),
      py::arg("stream"));
  m.def(
      "knn_cuda_build",
      [](KnnTree& tree, uintptr_t memory, int device, uintptr_t stream) {
        tree.memory = at<>(memory);
        check_cuda(with_real(tree.dtype,
                             [&](auto zero) { return knn_cuda_build<decltype(zero)>(tree, device, at<>(stream)); }));
      },
      NoGil(), py::kw_only(), py::arg("tree"), py::arg("memory"), py::arg("device"), py::arg("stream"));
  m.def(
      "knn_cuda_search",
      [](const KnnTree& points, const KnnTree* queries, uintptr_t rows, uintptr_t start, int k,
         const std::string& metric, int64_t exclude_within, uintptr_t distances, uintptr_t indices, int device,
         uintptr_t stream) {
        const KnnTree& sought = queries == nullptr ? points : *queries;
        const KnnSearch p{points.dtype,
                          points.points,
                          queries == nullptr ? nullptr : sought.points,
                          at<int64_t>(rows),
                          points.batch,
                          points.num_points,
                          sought.num_points,
                          points.dim,
                          k,
                          metric_of(metric),
                          exclude_within,
                          nullptr,
                          0,
                          nullptr,
                          0,
                          at<>(distances),
                          at<int64_t>(indices),
                          nullptr,
                          0};
        check_cuda(with_real(p.dtype, [&](auto zero) {
          return knn_cuda_search<decltype(zero)>(p, points, sought, at<int64_t>(start), device, at<>(stream));
        }));
      },
      NoGil(), py::kw_only(), py::arg("points"), py::arg("queries"), py::arg("rows"), py::arg("start"), py::arg("k"),
      py::arg("metric"), py::arg("exclude_within"), py::arg("distances"), py::arg("indices"), py::arg("device"),
      py::arg("stream"));
  m.def(
      "knn_cuda_count",
      [](const KnnTree& points, uintptr_t radii, uintptr_t groups, uintptr_t rows, int64_t num_radii, int num_groups,
         const std::string& metric, bool inclusive, int64_t exclude_within, uintptr_t counts, int device,
         uintptr_t stream) {
        const KnnCount p{points.dtype,      points.points,     at<>(radii),    at<int32_t>(groups), at<int64_t>(rows),
                         points.batch,      points.num_points, num_radii,      num_groups,          points.dim,
                         metric_of(metric), inclusive,         exclude_within, at<int64_t>(counts), 0};
        check_cuda(with_real(
            p.dtype, [&](auto zero) { return knn_cuda_count<decltype(zero)>(p, points, device, at<>(stream)); }));
      },
      NoGil(), py::kw_only(), py::arg("points"), py::arg("radii"), py::arg("groups"), py::arg("rows"),
      py::arg("num_radii"), py::arg("num_groups"), py::arg("metric"), py::arg("inclusive"), py::arg("exclude_within"),
      py::arg("counts"), py::arg("device"), py::arg("stream"));
  m.def(
      "knn_cuda_boundary",
      [](const KnnTree& points, uintptr_t radii, uintptr_t skip, uintptr_t rows, int width, int64_t exclude_within,
         uintptr_t indices, int device, uintptr_t stream) {
        const KnnBoundary p{
            points.dtype,      points.points, at<>(radii), at<int64_t>(skip), at<int64_t>(rows),    points.batch,
            points.num_points, points.dim,    width,       exclude_within,    at<int64_t>(indices), 0};
        check_cuda(with_real(
            p.dtype, [&](auto zero) { return knn_cuda_boundary<decltype(zero)>(p, points, device, at<>(stream)); }));
      },
      NoGil(), py::kw_only(), py::arg("points"), py::arg("radii"), py::arg("skip"), py::arg("rows"), py::arg("width"),
      py::arg("exclude_within"), py::arg("indices"), py::arg("device"), py::arg("stream"));

  py::class_<KnnColumns>(m, "KnnColumns", py::module_local())
      .def(py::init([](uintptr_t values, uintptr_t sorted, uintptr_t order, uintptr_t gaps, int64_t count) {
             return KnnColumns{at<>(values), at<>(sorted), at<int64_t>(order), at<>(gaps), count};
           }),
           py::kw_only(), py::arg("values"), py::arg("sorted"), py::arg("order"), py::arg("gaps"), py::arg("count"));
  m.attr("knn_cuda_pairs_max_neighbors") = kKnnPairsMaxNeighbors;
  m.def(
      "knn_cuda_pairs_max_points",
      [](int dtype, int device) {
        return checked_size(with_real(static_cast<DType>(dtype),
                                      [&](auto zero) { return knn_cuda_pairs_max_points<decltype(zero)>(device); }));
      },
      py::kw_only(), py::arg("dtype"), py::arg("device"));
  m.def(
      "knn_cuda_pairs",
      [](int dtype, const KnnColumns& x, const KnnColumns& y, bool symmetric, int64_t batch, int64_t num_points, int k,
         uintptr_t psi, uintptr_t estimates, int device, uintptr_t stream) {
        const KnnPairs p{x, y, symmetric, batch, num_points, k, at<double>(psi), at<double>(estimates)};
        check_cuda(with_real(static_cast<DType>(dtype),
                             [&](auto zero) { return knn_cuda_pairs<decltype(zero)>(p, device, at<>(stream)); }));
      },
      NoGil(), py::kw_only(), py::arg("dtype"), py::arg("x"), py::arg("y"), py::arg("symmetric"), py::arg("batch"),
      py::arg("num_points"), py::arg("k"), py::arg("psi"), py::arg("estimates"), py::arg("device"), py::arg("stream"));
}

}  // namespace echo_ext
