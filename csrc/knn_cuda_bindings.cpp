// The nearest-neighbour CUDA kernels in Python.
#include "bindings.h"
#include "knn_cuda.h"

namespace echo_ext {

void bind_knn_cuda(py::module_& m) {
  const auto metric = [](bool euclidean) { return euclidean ? Metric::euclidean : Metric::chebyshev; };

  // Local, because the tests load these bindings a second time, over the shim.
  py::class_<KnnTree>(m, "KnnTree", py::module_local())
      .def(py::init([](uintptr_t points, uintptr_t order, int64_t batch, int64_t num_points, int dim) {
             return KnnTree{at<>(points), at<int64_t>(order), batch, num_points, dim, nullptr};
           }),
           py::arg("points"), py::arg("order"), py::arg("batch"), py::arg("num_points"), py::arg("dim"))
      .def("part",
           [](const KnnTree& tree, bool single, int64_t first, int64_t count) {
             const int64_t points = first * tree.num_points;
             const auto bytes = static_cast<int64_t>(single ? sizeof(float) : sizeof(double));
             KnnTree part = tree;
             part.points = static_cast<const char*>(tree.points) + points * tree.dim * bytes;
             part.order += points;
             part.batch = count;
             part.first += first;
             part.whole = tree.whole != 0 ? tree.whole : tree.batch;
             return part;
           })
      .def("bytes", [](const KnnTree& tree, bool single) {
        return single ? knn_cuda_tree_bytes<float>(tree) : knn_cuda_tree_bytes<double>(tree);
      });

  m.def("knn_cuda_max_neighbours", [](int device) { return checked_size(knn_cuda_max_neighbours(device)); });
  m.def(
      "knn_cuda_keys",
      [](bool single, uintptr_t points, uintptr_t sample, int64_t batch, int64_t num_points, int64_t sample_size,
         int dim, uintptr_t keys, int device, uintptr_t stream) {
        const KnnKeys p{at<>(points), at<>(sample), batch, num_points, sample_size, dim, at<int64_t>(keys)};
        check_cuda((single ? knn_cuda_keys<float> : knn_cuda_keys<double>)(p, device, at<>(stream)));
      },
      py::arg("single"), py::arg("points"), py::arg("sample"), py::arg("batch"), py::arg("num_points"),
      py::arg("sample_size"), py::arg("dim"), py::arg("keys"), py::arg("device"), py::arg("stream"), NoGil());
  m.def(
      "knn_cuda_build",
      [](bool single, KnnTree& tree, uintptr_t memory, int device, uintptr_t stream) {
        tree.memory = at<>(memory);
        check_cuda((single ? knn_cuda_build<float> : knn_cuda_build<double>)(tree, device, at<>(stream)));
      },
      py::arg("single"), py::arg("tree"), py::arg("memory"), py::arg("device"), py::arg("stream"), NoGil());
  m.def(
      "knn_cuda_search",
      [metric](bool single, const KnnTree& points, const KnnTree* queries, uintptr_t rows, uintptr_t start, int k,
               bool euclidean, int64_t exclude_within, uintptr_t distances, uintptr_t indices, int device,
               uintptr_t stream) {
        const KnnTree& sought = queries == nullptr ? points : *queries;
        const KnnSearch p{points.points,
                          queries == nullptr ? nullptr : sought.points,
                          at<int64_t>(rows),
                          points.batch,
                          points.num_points,
                          sought.num_points,
                          points.dim,
                          k,
                          metric(euclidean),
                          exclude_within,
                          at<>(distances),
                          at<int64_t>(indices),
                          0};
        check_cuda((single ? knn_cuda_search<float> : knn_cuda_search<double>)(p, points, sought, at<int64_t>(start),
                                                                               device, at<>(stream)));
      },
      py::arg("single"), py::arg("points"), py::arg("queries"), py::arg("rows"), py::arg("start"), py::arg("k"),
      py::arg("euclidean"), py::arg("exclude_within"), py::arg("distances"), py::arg("indices"), py::arg("device"),
      py::arg("stream"), NoGil());
  m.def(
      "knn_cuda_count",
      [metric](bool single, const KnnTree& points, uintptr_t radii, uintptr_t groups, uintptr_t rows, int64_t num_radii,
               int num_groups, bool euclidean, bool inclusive, int64_t exclude_within, uintptr_t counts, int device,
               uintptr_t stream) {
        const KnnCount p{points.points,       at<>(radii),
                         at<int32_t>(groups), at<int64_t>(rows),
                         points.batch,        points.num_points,
                         num_radii,           num_groups,
                         points.dim,          metric(euclidean),
                         inclusive,           exclude_within,
                         at<int64_t>(counts), 0};
        check_cuda((single ? knn_cuda_count<float> : knn_cuda_count<double>)(p, points, device, at<>(stream)));
      },
      py::arg("single"), py::arg("points"), py::arg("radii"), py::arg("groups"), py::arg("rows"), py::arg("num_radii"),
      py::arg("num_groups"), py::arg("euclidean"), py::arg("inclusive"), py::arg("exclude_within"), py::arg("counts"),
      py::arg("device"), py::arg("stream"), NoGil());
  m.def(
      "knn_cuda_boundary",
      [](bool single, const KnnTree& points, uintptr_t radii, uintptr_t skip, int width, int64_t exclude_within,
         uintptr_t indices, int device, uintptr_t stream) {
        const KnnBoundary p{points.points, at<>(radii), at<int64_t>(skip), points.batch,         points.num_points,
                            points.dim,    width,       exclude_within,    at<int64_t>(indices), 0};
        check_cuda((single ? knn_cuda_boundary<float> : knn_cuda_boundary<double>)(p, points, device, at<>(stream)));
      },
      py::arg("single"), py::arg("points"), py::arg("radii"), py::arg("skip"), py::arg("width"),
      py::arg("exclude_within"), py::arg("indices"), py::arg("device"), py::arg("stream"), NoGil());

  py::class_<KnnColumns>(m, "KnnColumns", py::module_local())
      .def(py::init([](uintptr_t values, uintptr_t sorted, uintptr_t order, uintptr_t gaps, int64_t count) {
             return KnnColumns{at<>(values), at<>(sorted), at<int64_t>(order), at<>(gaps), count};
           }),
           py::arg("values"), py::arg("sorted"), py::arg("order"), py::arg("gaps"), py::arg("count"));
  m.attr("knn_cuda_pairs_max_neighbours") = kKnnPairsMaxNeighbours;
  m.def("knn_cuda_pairs_max_points", [](bool single, int device) {
    return checked_size((single ? knn_cuda_pairs_max_points<float> : knn_cuda_pairs_max_points<double>)(device));
  });
  m.def(
      "knn_cuda_pairs",
      [](bool single, const KnnColumns& x, const KnnColumns& y, bool symmetric, int64_t batch, int64_t num_points,
         int k, uintptr_t psi, uintptr_t estimates, int device, uintptr_t stream) {
        const KnnPairs p{x, y, symmetric, batch, num_points, k, at<double>(psi), at<double>(estimates)};
        check_cuda((single ? knn_cuda_pairs<float> : knn_cuda_pairs<double>)(p, device, at<>(stream)));
      },
      py::arg("single"), py::arg("x"), py::arg("y"), py::arg("symmetric"), py::arg("batch"), py::arg("num_points"),
      py::arg("k"), py::arg("psi"), py::arg("estimates"), py::arg("device"), py::arg("stream"), NoGil());
}

}  // namespace echo_ext
