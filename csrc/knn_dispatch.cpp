#include "knn.h"

namespace echo_ext {

#if defined(ECHO_EXT_X86_DISPATCH)
#define ECHO_EXT_KNN_DISPATCH(kernel)                  \
  switch (current_isa()) {                             \
    case Isa::baseline: return baseline::kernel<T>(p); \
    case Isa::avx2: return avx2::kernel<T>(p);         \
    case Isa::avx512: return avx512::kernel<T>(p);     \
  }
#else
#define ECHO_EXT_KNN_DISPATCH(kernel) return baseline::kernel<T>(p);
#endif

template <typename T>
void knn_search(const KnnSearch& p) {
  ECHO_EXT_KNN_DISPATCH(knn_search)
}

template <typename T>
void knn_count(const KnnCount& p) {
  ECHO_EXT_KNN_DISPATCH(knn_count)
}

template <typename T>
void knn_boundary(const KnnBoundary& p) {
  ECHO_EXT_KNN_DISPATCH(knn_boundary)
}

template void knn_search<float>(const KnnSearch& p);
template void knn_search<double>(const KnnSearch& p);
template void knn_count<float>(const KnnCount& p);
template void knn_count<double>(const KnnCount& p);
template void knn_boundary<float>(const KnnBoundary& p);
template void knn_boundary<double>(const KnnBoundary& p);

}  // namespace echo_ext
