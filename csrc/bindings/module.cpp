// The Python module.
#include <pybind11/stl.h>

#include "bindings/bindings.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__APPLE__)
#include <pthread.h>
#endif

#include "common/cuda_driver.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "echo/echo.h"
#include "echo/matrix.h"
#include "echo/scan.h"
#include "knn/knn.h"

using namespace echo_ext;

namespace {

// Python runs signal handlers only on its main thread. Other threads must not acquire the GIL during a calculation:
// they would wait for nothing, and acquiring it while Python shuts down would end the process.
bool may_handle_signals() {
#if defined(__linux__)
  return syscall(SYS_gettid) == getpid();
#elif defined(__APPLE__)
  return pthread_main_np() != 0;
#else
  return true;
#endif
}

void check_signals() {
  if (!may_handle_signals()) return;
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native core of echo_ext: kernels over raw memory.";
  m.def("isa", [] { return isa_name(current_isa()); });
  m.def("supported_isas", supported_isas);
  set_interrupt_check(check_signals);
#if defined(ECHO_EXT_WITH_CUDA)
  m.attr("cuda_version") = ECHO_EXT_CUDA_VERSION;
  m.attr("cuda_archs") = ECHO_EXT_CUDA_ARCHS;
  m.def("cuda_driver_version", [] {
    int version = 0;
    check_cuda(cuda_driver_version(&version));
    return version;
  });
#else
  m.attr("cuda_version") = py::none();
  m.attr("cuda_archs") = "";
  m.def("cuda_driver_version", [] { return 0; });
#endif
  bind_problems(m);
  bind_echo_cpu(m);
  bind_knn_cpu(m);
#if defined(ECHO_EXT_WITH_CUDA)
  bind_echo_cuda(m);
  bind_knn_cuda(m);
#endif
}
