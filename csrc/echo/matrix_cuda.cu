// Matrix Echo noise on CUDA. The circle is cut into arcs as on the CPU, with a block for each. A step needs the value
// of the step before and little arithmetic, so that time goes by waiting: matrices are copied to shared memory some
// steps ahead, four lanes add up an output, and one warp does what the next step need not wait for, so that a step
// takes one barrier. Nobody can tell the host when all entries have converged, so that it launches a fixed number of
// rounds, in which converged arcs do nothing, and then one block that goes on by itself where they were not enough.
#include <algorithm>

#include "common/cuda_support.h"
#include "echo/matrix.h"

namespace echo_ext {
namespace {

constexpr int kOutputsPerWarp = 8,
              kLanesPerOutput = kWarp / kOutputsPerWarp;  // of a warp, and the lanes that add up one of them
constexpr int kMaxThreads = (kMaxMatrixDim / kOutputsPerWarp + 1) * kWarp;
constexpr int kOuterThreads = 128;
constexpr int kMaxStages = 3;
constexpr unsigned kVectorSlots = kMaxStages + 1;  // vectors are looked at a step later than matrices are used
constexpr int64_t kMaxRounds = 32;  // after the first: what is forgotten within as many arcs needs no more

int threads_of(int dim) { return (static_cast<int>(ceil_div(dim, kOutputsPerWarp)) + 1) * kWarp; }

// As short as the steps that an entry matters for, which are walked run again, or as long as leaves enough of them to
// store_and_compare a device busy; a number that depends on the shape alone, so that results do as well.
int64_t arc_steps(const EchoMatrixProblem& problem) {
  constexpr int64_t kMin = 64, kEnough = 1 << 14;
  return std::max(kMin, ceil_div(problem.rows * problem.dim, kEnough));
}

template <typename T>
struct Arcs {
  int64_t count, steps;
  T* entries;             // (arcs, dim): the value before each arc that it was last walked run from
  T* outputs;             // (2, arcs, dim): the last value of each arc, after rounds of even and of odd number
  bool* needs_finishing;  // whether an arc was walked run in the last round
  int stages = 0;

  Arcs(const EchoMatrixProblem& problem, Workspace& workspace)
      : count(ceil_div(problem.rows, arc_steps(problem))),
        steps(arc_steps(problem)),
        entries(workspace.take<T>(count * problem.dim)),
        outputs(workspace.take<T>(2 * count * problem.dim)),
        needs_finishing(workspace.take<bool>(1)) {}
};

// Calls body(i) for this lane's elements of a vector.
template <typename Body>
__device__ __forceinline__ void for_each_of_lane(int dim, const Body& body) {
#pragma unroll
  for (int first = 0; first < kMaxMatrixDim; first += kWarp) {
    const int i = first + static_cast<int>(threadIdx.x) % kWarp;
    if (i < dim) body(i);
  }
}

// Found by a warp, for all its lanes.
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

// A block's walker run one arc after another. Every warp but the last makes outputs of the steps; the last one, the
// keeper, makes ready what the others copy, stores what they have made and looks whether it has converged.
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
    int lanes = 1;  // of a row that is copied
    while (lanes < columns && lanes < kWarp) lanes *= 2;
    row_ = thread % lanes < columns ? thread / lanes : dim_;
    column_ = thread % lanes * (copies_vectors_ ? kVector : 1);
    row_stride_ = (static_cast<int>(blockDim.x) - kWarp) / lanes;
    const int elements = stages * side_ * stride_ + (2 * kVectorSlots + 2) * side_;
    // Beyond a matrix and a vector it stays zero.
    for (int i = thread; i < elements; i += static_cast<int>(blockDim.x)) matrices_[i] = 0;
    __syncthreads();
  }

  // Where the value before the next walker belongs.
  __device__ T* entry() const { return now_; }
  __device__ const T* value_at(int64_t step) const { return values_ + circle_.row(step) * dim_; }

  // Goes run the steps [first, end), as far as values change where there are some from an earlier walker. The last
  // value, in shared memory, or null where it has not got there.
  __device__ __forceinline__ const T* run(int64_t first, int64_t end, bool is_first) {
    const int count = static_cast<int>(end - first), thread = static_cast<int>(threadIdx.x);
    if (thread < stages_ && thread < count) shared_->steps[thread] = step_of(rows_at(first + thread));
    Rows ahead{};
    if (stages_ < count) ahead = rows_at(first + stages_);
    __syncthreads();
    bool row_has_converged = false;
    for (int n = 1 - stages_, stage = 0; n <= count; ++n) {
      if (n >= 0) wait_and_synchronize();  // what is behind is not needed any more, and step n is there
      if (n + stages_ - 1 < count) copy_step(n + stages_ - 1, stage, is_first);
      commit_copies();
      stage = stage + 1 == stages_ ? 0 : stage + 1;  // that of step n
      if (n < 0) continue;
      if (stages_ == 1) wait_and_synchronize();  // step n has only now been copied
      row_has_converged = !is_first && n > 1 && shared_->row_has_converged[(n - 1) % 2];
      if (row_has_converged) break;
      T *now = now_ + n % 2 * side_, *then = now_ + (n + 1) % 2 * side_;
      if (!is_storing_warp_) {
        if (n < count) multiply(matrices_ + stage * side_ * stride_, sources_ + n % kVectorSlots * side_, now, then);
      } else {
        if (n + stages_ < count && thread % kWarp == 0) shared_->steps[(n + stages_) % kKnownSteps] = step_of(ahead);
        if (n + stages_ + 1 < count) ahead = rows_at(first + n + stages_ + 1);  // comes while this warp works
        if (n > 0) store_and_compare(now, n - 1, is_first);
      }
    }
    wait_for_copies<0>();
    __syncthreads();
    return row_has_converged ? nullptr : now_ + count % 2 * side_;
  }

 private:
  static constexpr int kVector = sizeof(float4) / sizeof(T), kUnroll = 8;
  static constexpr unsigned kKnownSteps = 8;  // that are known at a time: those in flight, one ahead and one behind
  struct Rows {
    int64_t matrix, value;
  };
  struct Step {
    const T* matrix;
    int64_t at;  // of its vectors and value
  };
  struct alignas(sizeof(float4)) Shared {
    Step steps[kKnownSteps];
    bool row_has_converged[2];  // the value before a step of even, and of odd number
  };

  // A matrix has this many rows and columns in shared memory, and rows that lie this far apart, so that what a warp
  // reads at once lies in different banks.
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

  // All threads, with what they have copied so far but for the step after the next.
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

  // The next value from the one before: eight outputs to a warp, four lanes to an output.
  __device__ __forceinline__ void multiply(const T* matrix, const T* source, const T* before, T* next) const {
    const bool backward = circle_.backward;  // then outputs are columns, and lie side by side
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    const int output = warp * kOutputsPerWarp + (backward ? lane % kOutputsPerWarp : lane / kLanesPerOutput);
    const int part = backward ? lane / kOutputsPerWarp : lane % kLanesPerOutput;
    const int apart = (backward ? stride_ : 1) * kLanesPerOutput;  // a lane's inputs
    const T* element = matrix + (backward ? part * stride_ + output : output * stride_ + part);
    T sum = 0;
#pragma unroll 1
    for (int i = part; i < side_; i += kLanesPerOutput * kUnroll, element += kUnroll * apart)
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) sum += element[k * apart] * before[i + k * kLanesPerOutput];
    const int other = backward ? kOutputsPerWarp : 1;  // lane of the same output
    sum += __shfl_xor_sync(kFullWarp, sum, other);
    sum += __shfl_xor_sync(kFullWarp, sum, 2 * other);
    if (output < dim_ && part == 0) next[output] = source[output] + sum;
  }

  // Stores the value of a step and looks whether it is what was there.
  __device__ __forceinline__ void store_and_compare(const T* value, int n, bool is_first) const {
    T* to = values_ + shared_->steps[n % kKnownSteps].at;
    for_each_of_lane(dim_, [&](int i) { to[i] = value[i]; });
    if (is_first) return;
    const bool is_old = row_has_converged(previous_ + n % kVectorSlots * side_, value, dim_);
    if (threadIdx.x % kWarp == 0) shared_->row_has_converged[(n + 1) % 2] = is_old;
  }

  int dim_, side_, stride_, stages_;
  bool is_storing_warp_, copies_vectors_;
  int row_, column_, row_stride_;  // of a matrix, that this thread copies
  MatrixCircle circle_;
  const T *source_, *all_matrices_;
  T* values_;
  Shared* shared_;
  // In shared memory: matrices of the steps in flight, what is added to their products and the values there were, and
  // the values before and after a step.
  T *matrices_, *sources_, *previous_, *now_;
};

// A round of an arc: takes over what the arc before it has outputs on in the round before.
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
    if (row_has_converged(entry, before, dim)) return;  // in every warp, or in none
  }
  if (thread == 0 && (is_last || (round == 0 && arc == 0))) *arcs.needs_finishing = is_last;
  ArcWalker<T> walker(problem, io, arcs.stages);  // in which all wait_and_synchronize: they have seen the entry
  if (thread < dim) entry[thread] = walker.entry()[thread] = value;
  const int64_t first = arc * arcs.steps, end = first + arcs.steps;
  const T* last = walker.run(first, end < problem.rows ? end : problem.rows, round == 0);
  if (last != nullptr && thread < dim) outputs[thread] = last[thread];
}

// By a warp, for all its lanes: tells what now lies before an arc and what did; whether it must be walked run again.
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

// One block: goes round arc by arc until no entry has changed.
template <typename T>
__global__ void __launch_bounds__(kMaxThreads, 1)
    matrix_finish_kernel(EchoMatrixProblem problem, EchoMatrixScan io, Arcs<T> arcs) {
  if (!*arcs.needs_finishing) return;
  const int dim = problem.dim, thread = static_cast<int>(threadIdx.x);
  const MatrixCircle circle{io.order, problem.rows, io.backward};
  ArcWalker<T> walker(problem, io, arcs.stages);
  MatrixRounds rounds;  // every thread's own, and the same
  int64_t terms = 0;
  do {
    for (int64_t arc = 0; arc < arcs.count; ++arc) {
      const int64_t first = arc * arcs.steps, end = first + arcs.steps;
      const T* now = walker.value_at(circle.before(first));
      T* entry = arcs.entries + arc * dim;
      if (!entry_changed(rounds, entry, now, dim)) continue;
      __syncthreads();  // all have seen the entry
      if (thread < dim) entry[thread] = walker.entry()[thread] = now[thread];
      walker.run(first, end < problem.rows ? end : problem.rows, false);
    }
    terms += problem.rows;
  } while (rounds.needs_another_round() && terms < kMaxMatrixTerms);
}

// The deepest pipeline with which all arcs run at once; else one step ahead, or none where two matrices do not fit.
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
  // One arc goes round by itself.
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
