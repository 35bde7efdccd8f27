#include "knn/search_cuda.h"

namespace echo_ext {
ECHO_EXT_INSTANTIATE_SEARCH(double)
}  // namespace echo_ext
