// What the machine's NVIDIA driver can do.
#pragma once

namespace echo_ext {

// The newest CUDA version that the driver supports, as 1000 * major + 10 * minor; 0 where there is no driver.
const char* cuda_driver_version(int* version);

}  // namespace echo_ext
