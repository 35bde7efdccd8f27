// The first estimator of Kraskov, Stögbauer and Grassberger for many pairs of columns with a few thousand rows each. A
// block computes one pair at a time, which fits into its shared memory.
#include "knn/nearest_cuda.h"
#include "knn/tree_cuda.h"

namespace echo_ext {
namespace {

constexpr int kMaxWarps = 32;

// Longer lists of neighbors take more registers, which leaves fewer threads.
constexpr int max_threads(int slots) { return slots > 10 ? 256 : 1024; }

template <typename T>
struct alignas(2 * sizeof(T)) Point {
  T along, across;
};

// One pair of columns in shared memory. The points are sorted by one of the columns, `along`, and end in an infinity on
// either side. The other column, `across`, is stored with the points and once more in its own order.
template <typename T>
struct Pair {
  double* sums;      // one for each warp
  Point<T>* points;  // places -1 to num_points may be read
  T* sorted;         // the values of `across`
  uint16_t* chosen;  // the places of the points that search along this column

  __device__ __forceinline__ explicit Pair(int num_points)
      : sums(reinterpret_cast<double*>(dynamic_shared_memory)),
        points(reinterpret_cast<Point<T>*>(sums + kMaxWarps) + 1),
        sorted(reinterpret_cast<T*>(points + num_points + 1)),
        chosen(reinterpret_cast<uint16_t*>(sorted + num_points)) {}
};

constexpr int64_t kFixedBytes = (kMaxWarps + 4) * sizeof(double);

template <typename T>
constexpr int64_t bytes_of_point() {
  return sizeof(Point<T>) + sizeof(T) + sizeof(uint16_t);
}

// The first step of a bisection: the largest power of two that does not exceed the size.
__device__ __forceinline__ int first_step(int size) {
  int step = 1;
  while (step <= size / 2) step *= 2;
  return step;
}

// The number of ascending values strictly within a radius of one of them, which is itself counted.
template <typename T, typename ValueAt>
__device__ __forceinline__ int count_near(int size, T value, T radius, const ValueAt& value_at) {
  int too_low = 0, not_too_high = 0;
  for (int step = first_step(size); step > 0; step /= 2) {
    if (too_low + step <= size && !(value_at(too_low + step - 1) - value > -radius)) too_low += step;
    if (not_too_high + step <= size && value_at(not_too_high + step - 1) - value < radius) not_too_high += step;
  }
  return not_too_high - too_low;
}

// psi(nx + 1) + psi(ny + 1) for the point at a place. Searches outward on both sides, until the difference along the
// sorted column alone is at least the distance to the k-th neighbor so far.
template <typename T, int kSlots>
__device__ __forceinline__ double psi_of_counts(const Pair<T>& pair, int num_points, int k, const double* psi,
                                                int place) {
  Nearest<T, kSlots, false> nearest(k);
  const Point<T> own = pair.points[place];
  const Point<T>* low = pair.points + place - 1;
  const Point<T>* high = pair.points + place + 1;
  for (;;) {
    const Point<T> lower = *low, higher = *high;
    const T gap_below = own.along - lower.along, gap_above = higher.along - own.along;
    const bool below = gap_below < nearest.bound(), above = gap_above < nearest.bound();
    if (!below && !above) break;
    // A side that has ended does not advance: its point is tried again, but no longer enters the list.
    const T key_below = maximum(gap_below, std::fabs(lower.across - own.across));
    const T key_above = maximum(gap_above, std::fabs(higher.across - own.across));
    if (key_below < nearest.bound()) nearest.insert(key_below, 0);
    if (key_above < nearest.bound()) nearest.insert(key_above, 0);
    low -= below;
    high += above;
  }
  const T radius = nearest.bound();
  if (!(radius > 0)) return 2 * psi[0];  // not even points at distance 0 are strictly within
  const int size = static_cast<int>(high - low) - 1;
  const int along = count_near(size, own.along, radius, [&](int i) { return low[i + 1].along; });
  const int across = count_near(num_points, own.across, radius, [&](int i) { return pair.sorted[i]; });
  return psi[along - 1] + psi[across - 1];
}

// The sum over the block, valid in thread 0. The order of summation depends only on the number of threads.
__device__ __forceinline__ double block_sum(double value, double* sums) {
  for (int other = kWarp / 2; other > 0; other /= 2) value += __shfl_xor_sync(kFullWarp, value, other);
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = value;
  __syncthreads();
  double total = 0;
  if (threadIdx.x == 0)
    for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) total += sums[warp];
  return total;
}

// Loads a pair and selects the points that search along this column: those whose gap is larger here than in the other
// column, because then fewer points lie within a distance. If the gaps are equal, the point searches along x. Each warp
// stores the selected places in the memory of its own places. Returns the warp's number of them.
template <typename T>
__device__ __forceinline__ int load_pair(const Pair<T>& pair, const KnnPairs& p, int64_t x, int64_t y, bool x_along) {
  const int n = static_cast<int>(p.num_points), lane = static_cast<int>(threadIdx.x) % kWarp;
  const KnnColumns& along = x_along ? p.x : p.y;
  const KnnColumns& across = x_along ? p.y : p.x;
  const int64_t first_along = (x_along ? x : y) * n, first_across = (x_along ? y : x) * n;
  const int first = static_cast<int>(threadIdx.x) - lane;  // the warp's first place
  int count = 0;
  for (int begin = first; begin < n; begin += blockDim.x) {
    const int place = begin + lane;
    bool is_chosen = false;
    if (place < n) {
      const int64_t row = along.order[first_along + place];
      pair.points[place] = {static_cast<const T*>(along.sorted)[first_along + place],
                            static_cast<const T*>(across.values)[first_across + row]};
      pair.sorted[place] = static_cast<const T*>(across.sorted)[first_across + place];
      const T gap_x = static_cast<const T*>(p.x.gaps)[x * n + row],
              gap_y = static_cast<const T*>(p.y.gaps)[y * n + row];
      is_chosen = (gap_x >= gap_y) == x_along;
    }
    const unsigned chosen = __ballot_sync(kFullWarp, is_chosen);
    const int at = count + __popc(chosen & ((1u << lane) - 1));
    if (is_chosen) pair.chosen[first + at / kWarp * blockDim.x + at % kWarp] = static_cast<uint16_t>(place);
    count += __popc(chosen);
  }
  if (threadIdx.x == 0) {
    pair.points[-1] = {-static_cast<T>(INFINITY), 0};
    pair.points[n] = {static_cast<T>(INFINITY), 0};
  }
  return count;
}

template <typename T, int kSlots>
__global__ void __launch_bounds__(max_threads(kSlots), 1) pairs_kernel(const __grid_constant__ KnnPairs p) {
  const int n = static_cast<int>(p.num_points), lane = static_cast<int>(threadIdx.x) % kWarp;
  const Pair<T> pair(n);
  for (int64_t x = blockIdx.y; x < p.batch * p.x.count; x += gridDim.y) {
    const int64_t y = x / p.x.count * p.y.count + blockIdx.x;
    if (p.symmetric && blockIdx.x < x % p.x.count) continue;
    double sum = 0;
    for (int pass = 0; pass < 2; ++pass) {
      __syncthreads();  // other warps may still read the previous pair
      const int count = load_pair(pair, p, x, y, pass == 0);
      __syncthreads();
      for (int i = 0; i * kWarp + lane < count; ++i)
        sum += psi_of_counts<T, kSlots>(pair, n, p.k, p.psi, pair.chosen[threadIdx.x + i * blockDim.x]);
    }
    const double total = block_sum(sum, pair.sums);
    if (threadIdx.x == 0) p.estimates[x * p.y.count + blockIdx.x] = p.psi[p.k - 1] + p.psi[n - 1] - total / n;
  }
}

// Chooses the block size for which the most threads run at once, and of equally good ones the smallest.
template <typename T, int kSlots>
cudaError_t launch_pairs(const KnnPairs& p, cudaStream_t stream) {
  constexpr int kMaxRows = 65535;
  const auto kernel = pairs_kernel<T, kSlots>;
  const auto shared_bytes = static_cast<size_t>(kFixedBytes + bytes_of_point<T>() * p.num_points);
  int threads = 0, max_resident = 0;
  for (int candidate = 128; candidate <= max_threads(kSlots); candidate += 128) {
    int blocks = 0;
    const cudaError_t status = resident_blocks(kernel, candidate, shared_bytes, &blocks);
    if (status != cudaSuccess) return status;
    if (blocks * candidate > max_resident) {
      max_resident = blocks * candidate;
      threads = candidate;
    }
  }
  const int64_t rows = p.batch * p.x.count;
  const dim3 grid(static_cast<unsigned>(p.y.count), static_cast<unsigned>(rows < kMaxRows ? rows : kMaxRows));
  return launch(kernel, grid, threads, shared_bytes, stream, p);
}

}  // namespace

template <typename T>
int64_t knn_cuda_pairs_max_points(int device) {
  DeviceLimits limits{};
  if (device_limits(device, &limits) != cudaSuccess) return -1;
  return (limits.shared_bytes - kFixedBytes) / bytes_of_point<T>();
}

template <typename T>
const char* knn_cuda_pairs(const KnnPairs& p, int device, void* stream) {
  if (p.batch * p.x.count * p.y.count == 0) return nullptr;
  const DeviceGuard guard(device);
  ECHO_EXT_CUDA_CHECK(guard.status());
  const auto run = p.k <= 3    ? launch_pairs<T, 3>
                   : p.k <= 5  ? launch_pairs<T, 5>
                   : p.k <= 10 ? launch_pairs<T, 10>
                               : launch_pairs<T, kKnnPairsMaxNeighbors>;
  ECHO_EXT_CUDA_CHECK(run(p, static_cast<cudaStream_t>(stream)));
  return nullptr;
}

template int64_t knn_cuda_pairs_max_points<float>(int);
template int64_t knn_cuda_pairs_max_points<double>(int);
template const char* knn_cuda_pairs<float>(const KnnPairs&, int, void*);
template const char* knn_cuda_pairs<double>(const KnnPairs&, int, void*);

}  // namespace echo_ext
