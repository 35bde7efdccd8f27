// The package's own CUDA bindings on the emulated device, and what only an emulated device has.
#include <cuda_runtime.h>

#include <string>

#include "bindings/bindings.h"

namespace py = pybind11;

// In self_test.cpp.
const char* launch_self_test(const std::string& kernel, unsigned blocks, size_t shared_bytes, float* values);

PYBIND11_MODULE(cuda_on_shim, m) {
  echo_ext::bind_problems(m);
  echo_ext::bind_echo_cuda(m);
  echo_ext::bind_knn_cuda(m);

  m.def(
      "begin_call",
      [](bool descending, bool runs_kernels) {
        cuda_shim::order = descending ? cuda_shim::Order::descending : cuda_shim::Order::ascending;
        cuda_shim::runs_kernels = runs_kernels;
        cuda_shim::launches.clear();
      },
      py::kw_only(), py::arg("descending"), py::arg("runs_kernels"));
  m.def("launches", [] {
    py::list all;
    for (const cuda_shim::Launch& launch : cuda_shim::launches)
      all.append(py::make_tuple(launch.kernel, py::make_tuple(launch.blocks.x, launch.blocks.y, launch.blocks.z),
                                launch.threads, launch.shared_bytes, launch.resident_blocks, launch.meetings));
    return all;
  });
  m.def(
      "set_registers",
      [](const py::dict& registers) {
        for (const auto& [kernel, count] : registers) cuda_shim::registers[kernel.cast<int64_t>()] = count.cast<int>();
      },
      py::arg("registers"));
  m.def(
      "self_test",
      [](const std::string& kernel, unsigned blocks, size_t shared_bytes, uintptr_t values) {
        echo_ext::check_cuda(launch_self_test(kernel, blocks, shared_bytes, echo_ext::at<float>(values)));
      },
      py::arg("kernel"), py::kw_only(), py::arg("blocks"), py::arg("shared_bytes"), py::arg("values"));
}
