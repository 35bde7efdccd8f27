// What the files that know pybind11 share: bindings.cpp, and a file for each part that is also bound elsewhere (the
// tests bind the CUDA kernels to a device that they emulate).
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>

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

void bind_knn_cuda(py::module_& m);

}  // namespace echo_ext
