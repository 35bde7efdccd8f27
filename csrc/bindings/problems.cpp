// Bindings of the shapes and dtypes that describe a call of the Echo kernels.
#include "bindings/bindings.h"
#include "echo/echo.h"
#include "echo/matrix.h"
#include "echo/scan.h"

namespace echo_ext {

// The classes are local to the module, because the tests load these bindings a second time.
void bind_problems(py::module_& m) {
  py::class_<EchoProblem>(m, "EchoProblem", py::module_local())
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

  py::class_<EchoMatrixProblem>(m, "EchoMatrixProblem", py::module_local())
      .def(py::init([](int64_t rows, int dim, int dtype) {
             return EchoMatrixProblem{rows, dim, static_cast<DType>(dtype)};
           }),
           py::arg("rows"), py::arg("dim"), py::arg("dtype"));

  py::class_<EchoScanProblem>(m, "EchoScanProblem", py::module_local())
      .def(py::init([](int64_t rows, int64_t width, int dtype, int64_t chunk_rows) {
             return EchoScanProblem{rows, width, static_cast<DType>(dtype), chunk_rows};
           }),
           py::arg("rows"), py::arg("width"), py::arg("dtype"), py::arg("chunk_rows"))
      .def_property_readonly("num_chunks", &EchoScanProblem::num_chunks);
}

}  // namespace echo_ext
