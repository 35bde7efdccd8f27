// Queries to the NVIDIA driver of this machine.
#include "common/cuda_driver.h"
#include "common/cuda_support.h"

namespace echo_ext {

const char* cuda_driver_version(int* version) {
  ECHO_EXT_CUDA_CHECK(cudaDriverGetVersion(version));
  return nullptr;
}

}  // namespace echo_ext
