// Queries to the NVIDIA driver of this machine.
#pragma once

namespace echo_ext {

// Sets `version` to the newest CUDA version that the driver supports, as 1000 * major + 10 * minor, or to 0 without a
// driver. Returns null, or the text of an error.
const char* cuda_driver_version(int* version);

}  // namespace echo_ext
