// The nearest-neighbor CUDA kernels as a Python module, through the package's own bindings.
#include "bindings/bindings.h"

PYBIND11_MODULE(knn_on_shim, m) { echo_ext::bind_knn_cuda(m); }
