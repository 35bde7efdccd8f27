// Matrix Echo noise on CUDA, see matrix.h. As on the CPU, the circle is cut into arcs; here each arc has its own block.
//
// A step of the recurrence needs the value of the preceding step and little arithmetic, so latency dominates. Therefore
// matrices are copied to shared memory a few steps ahead, four lanes compute one output, and a separate warp does
// everything that the next step need not wait for. A step then takes a single barrier.
//
// The host cannot find out whether the iteration has converged without a synchronization. It therefore launches a fixed
// number of rounds, in which converged arcs do nothing, and then a single block that continues until convergence if
// those rounds were not enough.
#include <algorithm>

#include "common/cuda_support.h"
#include "echo/matrix.h"

namespace echo_ext {
namespace {

constexpr int kOutputsPerWarp = 8, kLanesPerOutput = kWarp / kOutputsPerWarp;
constexpr int kMaxThreads = (kMaxMatrixDim / kOutputsPerWarp + 1) * kWarp;
constexpr int kOuterThreads = 128;
constexpr int kMaxStages = 3;
constexpr unsigned kVectorSlots = kMaxStages + 1;  // a vector is used one step longer than a matrix
// After the first round. An influence that decays within this many arcs needs no more rounds.
constexpr int64_t kMaxRounds = 32;

int threads_of(int dim) { return (static_cast<int>(ceil_div(dim, kOutputsPerWarp)) + 1) * kWarp; }

// The length of an arc. It should be about the distance over which a starting value has influence, because that many
// steps are repeated, but long enough that the number of arcs does not exceed what keeps a device busy. It depends only
// on the problem's shape, and so do the results.
int64_t arc_steps(const EchoMatrixProblem& problem) {
  constexpr int64_t kMin = 64, kEnough = 1 << 14;
  return std::max(kMin, ceil_div(problem.rows * problem.dim, kEnough));
}

template <typename T>
struct Arcs {
  int64_t count, steps;
  T* entries;             // (arcs, dim): the value before each arc, from which it was last processed
  T* outputs;             // (2, arcs, dim): the last value of each arc, after even and after odd rounds
  bool* needs_finishing;  // whether any arc was processed in the last round
  int stages = 0;

  Arcs(const EchoMatrixProblem& problem, Workspace& workspace)
      : count(ceil_div(problem.rows, arc_steps(problem))),
        steps(arc_steps(problem)),
        entries(workspace.take<T>(count * problem.dim)),
        outputs(workspace.take<T>(2 * count * problem.dim)),
        needs_finishing(workspace.take<bool>(1)) {}
};

// Calls body(i) for the elements of a vector that belong to this lane.
template <typename Body>
__device__ __forceinline__ void for_each_of_lane(int dim, const Body& body) {
#pragma unroll
  for (int first = 0; first < kMaxMatrixDim; first += kWarp) {
    const int i = first + static_cast<int>(threadIdx.x) % kWarp;
    if (i < dim) body(i);
  }
}

// The function of matrix.h for all values of a row. Called by all lanes of a warp, which get the same result.
template <typename T>
__device__ __forceinline__ bool row_has_converged(const T* before, const T* now, int dim) {
  T largest = 0;
  for_each_of_lane(dim, [&](int i) { largest = fabs(now[i]) > largest ? fabs(now[i]) : largest; });
  for (int other = kWarp / 2; other > 0; other /= 2) {
    const T others = __shfl_xor_sync(kFullWarp, largest, other);
    largest = others > largest ? others : largest;
  }
  bool converged = true;
  for_each_of_lane(dim, [&](int i) { converged = converged && has_converged(before[i], now[i], largest); });
  return __all_sync(kFullWarp, converged);
}

// Computes the steps of one arc after another. All warps except the last compute outputs. The last one, the storing
// warp, prepares what the other warps copy, stores the values that they have computed, and checks whether these have
// converged.
template <typename T>
class ArcWalker {
 public:
  static size_t bytes(int dim, bool backward, int stages) {
    const auto side = static_cast<size_t>(side_of(dim)), stride = static_cast<size_t>(stride_of(dim, backward));
    return sizeof(Shared) + (static_cast<size_t>(stages) * side * stride + (2 * kVectorSlots + 2) * side) * sizeof(T);
  }

  __device__ ArcWalker(const EchoMatrixProblem& problem, const EchoMatrixScan& io, int stages)
      : dim_(problem.dim),
        side_(side_of(problem.dim)),
        stride_(stride_of(problem.dim, io.backward)),
        stages_(stages),
        is_storing_warp_(threadIdx.x / kWarp == blockDim.x / kWarp - 1),
        copies_vectors_(dim_ % kVector == 0 && reinterpret_cast<uintptr_t>(io.matrices) % sizeof(float4) == 0),
        circle_{io.order, problem.rows, io.backward},
        source_(static_cast<const T*>(io.source)),
        all_matrices_(static_cast<const T*>(io.matrices)),
        values_(static_cast<T*>(io.values)),
        shared_(reinterpret_cast<Shared*>(dynamic_shared_memory)),
        matrices_(reinterpret_cast<T*>(shared_ + 1)),
        sources_(matrices_ + stages * side_ * stride_),
        previous_(sources_ + kVectorSlots * side_),
        now_(previous_ + kVectorSlots * side_) {
    const int columns = copies_vectors_ ? dim_ / kVector : dim_, thread = static_cast<int>(threadIdx.x);
    int lanes = 1;  // that copy one row
    while (lanes < columns && lanes < kWarp) lanes *= 2;
    row_ = thread % lanes < columns ? thread / lanes : dim_;
    column_ = thread % lanes * (copies_vectors_ ? kVector : 1);
    row_stride_ = (static_cast<int>(blockDim.x) - kWarp) / lanes;
    const int elements = stages * side_ * stride_ + (2 * kVectorSlots + 2) * side_;
    // The padding of matrices and vectors remains zero.
    for (int i = thread; i < elements; i += static_cast<int>(blockDim.x)) matrices_[i] = 0;
    __syncthreads();
  }

  // The value before the first step of the next run must be stored here.
  __device__ T* entry() const { return now_; }
  __device__ const T* value_at(int64_t step) const { return values_ + circle_.row(step) * dim_; }

  // Computes the steps [first, end). Unless this is the first round, stops early at a value that has converged. Returns
  // the last value, in shared memory, or null if it stopped early.
  __device__ __forceinline__ const T* run(int64_t first, int64_t end, bool is_first) {
    const int count = static_cast<int>(end - first), thread = static_cast<int>(threadIdx.x);
    if (thread < stages_ && thread < count) shared_->steps[thread] = step_of(rows_at(first + thread));
    Rows ahead{};
    if (stages_ < count) ahead = rows_at(first + stages_);
    __syncthreads();
    bool row_has_converged = false;
    for (int n = 1 - stages_, stage = 0; n <= count; ++n) {
      if (n >= 0) wait_and_synchronize();  // step n has arrived, and the buffers of step n - 1 are free
      if (n + stages_ - 1 < count) copy_step(n + stages_ - 1, stage, is_first);
      commit_copies();
      stage = stage + 1 == stages_ ? 0 : stage + 1;  // the stage of step n
      if (n < 0) continue;
      if (stages_ == 1) wait_and_synchronize();  // with a single stage, step n has only just been copied
      row_has_converged = !is_first && n > 1 && shared_->row_has_converged[(n - 1) % 2];
      if (row_has_converged) break;
      T *now = now_ + n % 2 * side_, *then = now_ + (n + 1) % 2 * side_;
      if (!is_storing_warp_) {
        if (n < count) multiply(matrices_ + stage * side_ * stride_, sources_ + n % kVectorSlots * side_, now, then);
      } else {
        if (n + stages_ < count && thread % kWarp == 0) shared_->steps[(n + stages_) % kKnownSteps] = step_of(ahead);
        if (n + stages_ + 1 < count) ahead = rows_at(first + n + stages_ + 1);  // loaded while this warp works
        if (n > 0) store_and_compare(now, n - 1, is_first);
      }
    }
    wait_for_copies<0>();
    __syncthreads();
    return row_has_converged ? nullptr : now_ + count % 2 * side_;
  }

 private:
  static constexpr int kVector = sizeof(float4) / sizeof(T), kUnroll = 8;
  // Steps whose addresses are known: those in flight, the next one and the last one.
  static constexpr unsigned kKnownSteps = 8;
  struct Rows {
    int64_t matrix, value;
  };
  struct Step {
    const T* matrix;
    int64_t at;  // offset of the step's vectors and value
  };
  struct alignas(sizeof(float4)) Shared {
    Step steps[kKnownSteps];
    bool row_has_converged[2];  // for the value before an even step, and before an odd step
  };

  // The padded size of a matrix in shared memory, and the distance between its rows. With this distance, the elements
  // that a warp reads at once are in different banks.
  __host__ __device__ static int side_of(int dim) {
    constexpr int kWhole = kLanesPerOutput * kUnroll;
    return (dim + kWhole - 1) / kWhole * kWhole;
  }
  __host__ __device__ static int stride_of(int dim, bool backward) {
    const int beyond = backward ? kOutputsPerWarp : kLanesPerOutput;
    return (side_of(dim) - beyond + kWarp - 1) / kWarp * kWarp + beyond;
  }

  __device__ Rows rows_at(int64_t step) const { return {circle_.matrix_row(step), circle_.row(step)}; }
  __device__ Step step_of(const Rows& rows) const {
    return {all_matrices_ + rows.matrix * dim_ * dim_, rows.value * dim_};
  }

  // Waits until all threads have arrived, along with their copies for the next step. Copies for later steps may remain
  // in flight.
  __device__ __forceinline__ void wait_and_synchronize() const {
    if (stages_ > 2)
      wait_for_copies<1>();
    else
      wait_for_copies<0>();
    __syncthreads();
  }

  __device__ __forceinline__ void copy_step(int n, int stage, bool is_first) const {
    const Step step = shared_->steps[n % kKnownSteps];
    if (is_storing_warp_) {
      T *source = sources_ + n % kVectorSlots * side_, *previous = previous_ + n % kVectorSlots * side_;
      for_each_of_lane(dim_, [&](int i) { copy_async<sizeof(T)>(source + i, source_ + step.at + i); });
      if (is_first) return;
      for_each_of_lane(dim_, [&](int i) { copy_async<sizeof(T)>(previous + i, values_ + step.at + i); });
      return;
    }
    T* to = matrices_ + stage * side_ * stride_ + row_ * stride_ + column_;
    const T* from = step.matrix + row_ * dim_ + column_;
#pragma unroll 1
    for (int row = row_; row < dim_; row += row_stride_) {
      if (copies_vectors_) {
        copy_async(to, from);
      } else {
        copy_async<sizeof(T)>(to, from);
        if (column_ + kWarp < dim_) copy_async<sizeof(T)>(to + kWarp, from + kWarp);
      }
      to += row_stride_ * stride_;
      from += row_stride_ * dim_;
    }
  }

  // Computes the next value from the one before. A warp computes eight outputs, with four lanes for each.
  __device__ __forceinline__ void multiply(const T* matrix, const T* source, const T* before, T* next) const {
    const bool backward = circle_.backward;  // then outputs are columns, which are contiguous
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    const int output = warp * kOutputsPerWarp + (backward ? lane % kOutputsPerWarp : lane / kLanesPerOutput);
    const int part = backward ? lane / kOutputsPerWarp : lane % kLanesPerOutput;
    const int apart = (backward ? stride_ : 1) * kLanesPerOutput;  // distance between the inputs of a lane
    const T* element = matrix + (backward ? part * stride_ + output : output * stride_ + part);
    T sum = 0;
#pragma unroll 1
    for (int i = part; i < side_; i += kLanesPerOutput * kUnroll, element += kUnroll * apart)
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) sum += element[k * apart] * before[i + k * kLanesPerOutput];
    const int other = backward ? kOutputsPerWarp : 1;  // distance to another lane of the same output
    sum += __shfl_xor_sync(kFullWarp, sum, other);
    sum += __shfl_xor_sync(kFullWarp, sum, 2 * other);
    if (output < dim_ && part == 0) next[output] = source[output] + sum;
  }

  // Stores the value of a step, and compares it with the value of the last round.
  __device__ __forceinline__ void store_and_compare(const T* value, int n, bool is_first) const {
    T* to = values_ + shared_->steps[n % kKnownSteps].at;
    for_each_of_lane(dim_, [&](int i) { to[i] = value[i]; });
    if (is_first) return;
    const bool is_old = row_has_converged(previous_ + n % kVectorSlots * side_, value, dim_);
    if (threadIdx.x % kWarp == 0) shared_->row_has_converged[(n + 1) % 2] = is_old;
  }

  int dim_, side_, stride_, stages_;
  bool is_storing_warp_, copies_vectors_;
  int row_, column_, row_stride_;  // the part of a matrix that this thread copies
  MatrixCircle circle_;
  const T *source_, *all_matrices_;
  T* values_;
  Shared* shared_;
  // In shared memory: the matrices of the steps in flight, what is added to the products, the values of the last round,
  // and the values before and after a step.
  T *matrices_, *sources_, *previous_, *now_;
};

// One round of one arc. It starts from the last value that the preceding arc had in the round before.
template <typename T>
__global__ void __launch_bounds__(kMaxThreads, 3)
    matrix_arc_kernel(EchoMatrixProblem problem, EchoMatrixScan io, Arcs<T> arcs, int round, bool is_last) {
  const int dim = problem.dim, thread = static_cast<int>(threadIdx.x);
  const int64_t arc = blockIdx.x, arc_before = arc == 0 ? arcs.count - 1 : arc - 1;
  T *entry = arcs.entries + arc * dim, *outputs = arcs.outputs + (round % 2 * arcs.count + arc) * dim;
  T value = 0;
  if (round > 0) {
    const T *former = arcs.outputs + (round - 1) % 2 * arcs.count * dim, *before = former + arc_before * dim;
    if (thread < dim) {
      value = before[thread];
      outputs[thread] = former[arc * dim + thread];
    }
    if (row_has_converged(entry, before, dim)) return;  // the same in all warps
  }
  if (thread == 0 && (is_last || (round == 0 && arc == 0))) *arcs.needs_finishing = is_last;
  ArcWalker<T> walker(problem, io, arcs.stages);  // has a barrier, after which all warps have read the entry
  if (thread < dim) entry[thread] = walker.entry()[thread] = value;
  const int64_t first = arc * arcs.steps, end = first + arcs.steps;
  const T* last = walker.run(first, end < problem.rows ? end : problem.rows, round == 0);
  if (last != nullptr && thread < dim) outputs[thread] = last[thread];
}

// The same as in matrix_cpu.cpp. Called by all lanes of a warp, which get the same result.
template <typename T>
__device__ __forceinline__ bool entry_changed(MatrixRounds& rounds, const T* before, const T* now, int dim) {
  double squared_norm = 0, squared_change = 0;
  for_each_of_lane(dim, [&](int i) {
    const double value = static_cast<double>(now[i]), change = value - static_cast<double>(before[i]);
    squared_norm += value * value;
    squared_change += change * change;
  });
  for (int other = kWarp / 2; other > 0; other /= 2) {
    squared_norm += __shfl_xor_sync(kFullWarp, squared_norm, other);
    squared_change += __shfl_xor_sync(kFullWarp, squared_change, other);
  }
  const bool converged = row_has_converged(before, now, dim);
  rounds.add_arc(squared_norm, squared_change, converged);
  return !converged;
}

// A single block, which processes arc by arc until no starting value changes any more.
template <typename T>
__global__ void __launch_bounds__(kMaxThreads, 1)
    matrix_finish_kernel(EchoMatrixProblem problem, EchoMatrixScan io, Arcs<T> arcs) {
  if (!*arcs.needs_finishing) return;
  const int dim = problem.dim, thread = static_cast<int>(threadIdx.x);
  const MatrixCircle circle{io.order, problem.rows, io.backward};
  ArcWalker<T> walker(problem, io, arcs.stages);
  MatrixRounds rounds;  // every thread has its own, with the same contents
  int64_t terms = 0;
  do {
    for (int64_t arc = 0; arc < arcs.count; ++arc) {
      const int64_t first = arc * arcs.steps, end = first + arcs.steps;
      const T* now = walker.value_at(circle.before(first));
      T* entry = arcs.entries + arc * dim;
      if (!entry_changed(rounds, entry, now, dim)) continue;
      __syncthreads();  // all warps have read the entry
      if (thread < dim) entry[thread] = walker.entry()[thread] = now[thread];
      walker.run(first, end < problem.rows ? end : problem.rows, false);
    }
    terms += problem.rows;
  } while (rounds.needs_another_round() && terms < kMaxMatrixTerms);
}

// Chooses the deepest pipeline with which all arcs are resident. Otherwise matrices are copied one step ahead, or not
// ahead if two of them do not fit.
template <typename T>
cudaError_t choose_stages(const EchoMatrixProblem& problem, bool backward, const DeviceLimits& limits, Arcs<T>* arcs) {
  const auto bytes = [&](int stages) { return ArcWalker<T>::bytes(problem.dim, backward, stages); };
  const auto fits = [&](int stages) { return bytes(stages) <= static_cast<size_t>(limits.shared_bytes); };
  arcs->stages = fits(2) ? 2 : 1;
  if (!fits(kMaxStages)) return cudaSuccess;
  int blocks = 0;
  const auto status = resident_blocks(matrix_arc_kernel<T>, threads_of(problem.dim), bytes(kMaxStages), &blocks);
  if (int64_t{blocks} * limits.multiprocessors >= arcs->count) arcs->stages = kMaxStages;
  return status;
}

template <typename T>
const char* matrix_scan(const EchoMatrixProblem& problem, const EchoMatrixScan& io, const DeviceLimits& limits,
                        cudaStream_t stream) {
  Workspace workspace(io.workspace);
  Arcs<T> arcs(problem, workspace);
  ECHO_EXT_CUDA_CHECK(choose_stages(problem, io.backward, limits, &arcs));
  const dim3 blocks(static_cast<unsigned>(arcs.count));
  const int threads = threads_of(problem.dim);
  const size_t shared_bytes = ArcWalker<T>::bytes(problem.dim, io.backward, arcs.stages);
  // A single arc is left to the finishing block.
  const int rounds = arcs.count == 1 ? 0 : static_cast<int>(std::min(arcs.count, kMaxRounds));
  for (int round = 0; round <= rounds; ++round)
    ECHO_EXT_CUDA_CHECK(
        launch(matrix_arc_kernel<T>, blocks, threads, shared_bytes, stream, problem, io, arcs, round, round == rounds));
  ECHO_EXT_CUDA_CHECK(launch(matrix_finish_kernel<T>, dim3(1), threads, shared_bytes, stream, problem, io, arcs));
  return nullptr;
}

template <typename T>
__global__ void __launch_bounds__(kOuterThreads, 8) matrix_outer_kernel(EchoMatrixProblem problem, EchoMatrixOuter io) {
  const int dim = problem.dim;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int64_t p = blockIdx.x; p < problem.rows; p += gridDim.x) {
    const int64_t row = io.order[p], next = io.order[p + 1 == problem.rows ? 0 : p + 1];
    const T* value = static_cast<const T*>(io.values) + row * dim;
    const T* noise = static_cast<const T*>(io.z) + next * dim;
    T* to = static_cast<T*>(io.grad_matrices) + row * dim * dim;
    for (int i = warp; i < dim; i += kOuterThreads / kWarp)
      for_each_of_lane(dim, [&](int j) { to[i * dim + j] = value[i] * noise[j]; });
  }
}

}  // namespace

int64_t echo_matrix_cuda_workspace_bytes(const EchoMatrixProblem& problem) {
  Workspace sizes(nullptr);
  if (problem.dtype == DType::float64)
    Arcs<double>(problem, sizes);
  else
    Arcs<float>(problem, sizes);
  return sizes.bytes();
}

const char* echo_matrix_cuda_scan(const EchoMatrixProblem& problem, const EchoMatrixScan& io, int device,
                                  void* stream) {
  if (problem.rows == 0 || problem.dim == 0) return nullptr;
  if (problem.dim > kMaxMatrixDim) return "echo_matrix_cuda: a matrix must have at most 64 rows";
  const DeviceGuard guard(device);
  ECHO_EXT_CUDA_CHECK(guard.status());
  DeviceLimits limits{};
  ECHO_EXT_CUDA_CHECK(device_limits(device, &limits));
  return (problem.dtype == DType::float64 ? matrix_scan<double>
                                          : matrix_scan<float>)(problem, io, limits, static_cast<cudaStream_t>(stream));
}

const char* echo_matrix_cuda_outer(const EchoMatrixProblem& problem, const EchoMatrixOuter& io, int device,
                                   void* stream) {
  if (problem.rows == 0 || problem.dim == 0) return nullptr;
  const DeviceGuard guard(device);
  ECHO_EXT_CUDA_CHECK(guard.status());
  const dim3 grid(static_cast<unsigned>(problem.rows < 0x7fffffff ? problem.rows : 0x7fffffff));
  ECHO_EXT_CUDA_CHECK(launch(problem.dtype == DType::float64 ? matrix_outer_kernel<double> : matrix_outer_kernel<float>,
                             grid, kOuterThreads, 0, static_cast<cudaStream_t>(stream), problem, io));
  return nullptr;
}

}  // namespace echo_ext
