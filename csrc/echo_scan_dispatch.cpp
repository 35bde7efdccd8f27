#include "echo_scan.h"
#include "isa.h"

namespace echo_ext {

const EchoScanCpuKernels& echo_scan_cpu_kernels() {
#if defined(ECHO_EXT_X86_DISPATCH)
  if (current_isa() == Isa::avx512) return avx512::echo_scan_kernels;
  if (current_isa() == Isa::avx2) return avx2::echo_scan_kernels;
#endif
  return baseline::echo_scan_kernels;
}

}  // namespace echo_ext
