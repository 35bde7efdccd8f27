// The files in this folder are the only ones that include pybind11. Tensors are passed as addresses, by keyword,
// because the core does not depend on PyTorch (see DESIGN.md for the measurements). The tests load the CUDA bindings a
// second time, linked to an emulated device.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>

#include "common/dtype.h"

namespace echo_ext {

namespace py = pybind11;
using NoGil = py::call_guard<py::gil_scoped_release>;

template <typename T = void>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

inline void check_cuda(const char* error) {
  if (error != nullptr) throw std::runtime_error(error);
}

inline int64_t checked_size(int64_t bytes) {
  if (bytes < 0) throw std::runtime_error("echo_ext cannot reach the CUDA device (echo-ext info shows why)");
  return bytes;
}

void bind_problems(py::module_& m);
void bind_echo_cpu(py::module_& m);
void bind_echo_cuda(py::module_& m);
void bind_knn_cpu(py::module_& m);
void bind_knn_cuda(py::module_& m);

}  // namespace echo_ext
