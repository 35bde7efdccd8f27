// The only file that knows pybind11. Tensors arrive as addresses and sizes: the core knows no torch.
#include <pybind11/pybind11.h>

#include "isa.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native core of echo_ext: kernels over raw memory.";
  m.def("isa", [] { return echo_ext::isa_name(echo_ext::current_isa()); },
        "The instruction set that the CPU kernels run on.");
}
