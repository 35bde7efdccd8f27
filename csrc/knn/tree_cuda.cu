// The keys of the spatial order, and the tree.
#include "knn/nearest_cuda.h"
#include "knn/tree_cuda.h"

namespace echo_ext {
namespace {

// ---- Keys ----------------------------------------------------------------------------------------------------------

constexpr int kThreads = 256;
constexpr int kKeyBits = 62;
constexpr int kMaxBits = 20;  // per column
constexpr int kMaxKeyColumns = 31;

template <typename T>
__global__ void __launch_bounds__(kThreads, 1) keys_kernel(KnnKeys p) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.batch * p.num_points) return;
  const T* point = static_cast<const T*>(p.points) + i * p.dim;
  const T* sample = static_cast<const T*>(p.sample) + i / p.num_points * p.dim * p.sample_size;
  const int columns = p.dim < kMaxKeyColumns ? p.dim : kMaxKeyColumns;
  const int bits = kKeyBits / columns < kMaxBits ? kKeyBits / columns : kMaxBits;
  uint64_t key = 0;
  for (int c = 0; c < columns; ++c, sample += p.sample_size) {
    int64_t low = 0, high = p.sample_size;  // bisection for the first sample value greater than the coordinate
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (sample[middle] <= point[c])
        low = middle + 1;
      else
        high = middle;
    }
    float place = static_cast<float>(low);
    if (low > 0 && low < p.sample_size)
      place += static_cast<float>((point[c] - sample[low - 1]) / (sample[low] - sample[low - 1]));
    const float cells = static_cast<float>(1 << bits);
    const float cell = place * (cells / static_cast<float>(p.sample_size + 2));
    const uint64_t coordinate = cell >= 0 && cell < cells ? static_cast<uint64_t>(cell) : 0;
    for (int b = 0; b < bits; ++b) key |= (coordinate >> b & 1) << (b * columns + c);
  }
  p.keys[i] = static_cast<int64_t>(key);
}

// ---- Tree ----------------------------------------------------------------------------------------------------------

template <typename T>
__device__ __forceinline__ void store_box(T* box, int dim, int column, T low, T high) {
  low = -warp_max(-low);
  high = warp_max(high);
  if (threadIdx.x % kWarp == 0) {
    box[column] = low;
    box[dim + column] = high;
  }
}

__device__ __forceinline__ void store_lowest(int32_t* lowest, int32_t row) {
  row = -warp_max(-row);
  if (threadIdx.x % kWarp == 0) *lowest = row;
}

// One warp for each tile. Places past the end repeat the tile's first point, and readers skip them.
template <typename T>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock, 1)
    tiles_kernel(KnnTree tree, const __grid_constant__ TreeView<T> all) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  if (warp >= tree.batch * all.num_tiles) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t item = warp / all.num_tiles, tile = warp % all.num_tiles;
  const ItemView<T> view(all, item);
  const int64_t place = tile * kWarp + lane < all.num_points ? tile * kWarp + lane : tile * kWarp;
  const int64_t row = tree.order[item * all.num_points + place];
  const T* point = static_cast<const T*>(tree.points) + (item * all.num_points + row) * view.dim;
  T* coordinates = view.tiles + tile * view.dim * kWarp + lane;
  T* box = view.boxes + tile * 2 * view.dim;
  for (int c = 0; c < view.dim; ++c) {
    coordinates[c * kWarp] = point[c];
    store_box(box, view.dim, c, point[c], point[c]);
  }
  view.order[tile * kWarp + lane] = static_cast<int32_t>(row);
  store_lowest(view.lowest + tile, static_cast<int32_t>(row));
}

// One warp for each node of a level above the tiles.
template <typename T>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock, 1)
    level_kernel(const __grid_constant__ TreeView<T> all, int64_t batch, int level) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  const int64_t nodes = all.nodes_at(level);
  if (warp >= batch * nodes) return;
  const ItemView<T> view(all, warp / nodes);
  const int64_t node = warp % nodes, lane = threadIdx.x % kWarp;
  const int64_t child = node * kWarp + lane < all.nodes_at(level - 1) ? node * kWarp + lane : node * kWarp;
  const T* from = view.box(level - 1, child);
  T* box = view.box(level, node);
  for (int c = 0; c < view.dim; ++c) store_box(box, view.dim, c, from[c], from[view.dim + c]);
  store_lowest(view.lowest_of(level, node), *view.lowest_of(level - 1, child));
}

// ---- Launches ------------------------------------------------------------------------------------------------------

dim3 blocks_of(int64_t work, int per_block) { return dim3(static_cast<unsigned>(ceil_div(work, per_block))); }

}  // namespace

int64_t knn_cuda_max_neighbors(int device) {
  DeviceLimits limits{};
  if (device_limits(device, &limits) != cudaSuccess) return -1;
  return limits.shared_bytes / nearest_bytes(1);
}

template <typename T>
int64_t knn_cuda_tree_bytes(const KnnTree& tree) {
  int64_t bytes = 0;
  view_of<T>(tree, &bytes);
  return bytes;
}

template <typename T>
const char* knn_cuda_keys(const KnnKeys& p, int device, void* stream) {
  if (p.batch * p.num_points == 0) return nullptr;
  const DeviceGuard guard(device);
  ECHO_EXT_CUDA_CHECK(guard.status());
  ECHO_EXT_CUDA_CHECK(launch(keys_kernel<T>, blocks_of(p.batch * p.num_points, kThreads), kThreads, 0,
                             static_cast<cudaStream_t>(stream), p));
  return nullptr;
}

template <typename T>
const char* knn_cuda_build(const KnnTree& tree, int device, void* stream_) {
  if (tree.batch * tree.num_points == 0) return nullptr;
  const DeviceGuard guard(device);
  ECHO_EXT_CUDA_CHECK(guard.status());
  const auto stream = static_cast<cudaStream_t>(stream_);
  const TreeView<T> view = view_of<T>(tree);
  constexpr int kBlock = kWarp * kWarpsPerBlock;
  ECHO_EXT_CUDA_CHECK(
      launch(tiles_kernel<T>, blocks_of(tree.batch * view.num_tiles, kWarpsPerBlock), kBlock, 0, stream, tree, view));
  for (int level = 1; level < view.num_levels; ++level) {
    const int64_t nodes = tree.batch * (view.first_node[level + 1] - view.first_node[level]);
    ECHO_EXT_CUDA_CHECK(
        launch(level_kernel<T>, blocks_of(nodes, kWarpsPerBlock), kBlock, 0, stream, view, tree.batch, level));
  }
  return nullptr;
}

#define ECHO_EXT_INSTANTIATE(T)                                      \
  template int64_t knn_cuda_tree_bytes<T>(const KnnTree&);           \
  template const char* knn_cuda_keys<T>(const KnnKeys&, int, void*); \
  template const char* knn_cuda_build<T>(const KnnTree&, int, void*);
ECHO_EXT_INSTANTIATE(float)
ECHO_EXT_INSTANTIATE(double)
#undef ECHO_EXT_INSTANTIATE

}  // namespace echo_ext
