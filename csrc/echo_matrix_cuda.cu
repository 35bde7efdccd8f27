// Matrix Echo noise on CUDA. The circle is cut into arcs as on the CPU, but shorter ones, with a block for each: a warp
// for each row of a matrix forward, a thread for each column backward. Nobody can tell the host when all entries have
// settled, so that it launches a fixed number of rounds, in which settled arcs do nothing, and then one block that goes
// on by itself where they were not enough.
#include "cuda_support.h"
#include "echo_matrix.h"

namespace echo_ext {
namespace {

constexpr int kArcThreads = 256;
constexpr int kEntryThreads = 128;
constexpr int kOuterThreads = 128;
constexpr int64_t kArcSteps = 64;
constexpr int kRounds = 8;  // after the first: what is forgotten within as many arcs needs no more

int64_t num_arcs(const EchoMatrixProblem& problem) { return ceil_div(problem.rows, kArcSteps); }

template <typename T>
struct ArcEntries {
  T* values;        // (arcs, dim): the value before each arc, as it last was
  bool* is_active;  // whether it had changed

  ArcEntries(const EchoMatrixProblem& problem, Workspace& workspace)
      : values(workspace.take<T>(num_arcs(problem) * problem.dim)),
        is_active(workspace.take<bool>(num_arcs(problem))) {}
};

// What the threads of a block share.
template <typename T>
struct ArcShared {
  T *before, *now;  // a step's value and the next one's
  bool *is_settled, *goes_on, *is_active;

  __device__ explicit ArcShared(int dim)
      : before(reinterpret_cast<T*>(dynamic_shared_memory)),
        now(before + dim),
        is_settled(reinterpret_cast<bool*>(now + dim)),
        goes_on(is_settled + 1),
        is_active(is_settled + 2) {}
  static size_t bytes(int dim) { return 2 * static_cast<size_t>(dim) * sizeof(T) + 3 * sizeof(bool); }
};

// Takes over what now lies before an arc; whether it has changed.
template <typename T>
__device__ __forceinline__ bool enter_arc(const EchoMatrixProblem& problem, const EchoMatrixScan& io,
                                          const ArcEntries<T>& entries, int64_t arc, MatrixRounds& rounds) {
  const MatrixCircle circle{io.order, problem.rows, io.backward};
  const T* now = static_cast<const T*>(io.values) + circle.row(circle.before(arc * kArcSteps)) * problem.dim;
  T* entry = entries.values + arc * problem.dim;
  const bool has_changed = rounds.enter(entry, now, problem.dim);
  for (int i = 0; i < problem.dim; ++i) entry[i] = now[i];
  return has_changed;
}

// A block's walk along an arc from its entry, as far as values change where there are some from an earlier one.
template <typename T>
__device__ __forceinline__ void walk_arc(const EchoMatrixProblem& problem, const EchoMatrixScan& io,
                                         const ArcEntries<T>& entries, int64_t arc, bool is_first) {
  const int dim = problem.dim, thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp, warp = thread / kWarp, num_warps = kArcThreads / kWarp;
  const ArcShared<T> shared(dim);
  T *before = shared.before, *now = shared.now;
  const auto *source = static_cast<const T*>(io.source), *matrices = static_cast<const T*>(io.matrices);
  auto* values = static_cast<T*>(io.values);
  const MatrixCircle circle{io.order, problem.rows, io.backward};
  const int64_t end = (arc + 1) * kArcSteps < problem.rows ? (arc + 1) * kArcSteps : problem.rows;
  if (thread < dim) before[thread] = entries.values[arc * dim + thread];
  __syncthreads();
  for (int64_t step = arc * kArcSteps; step < end; ++step) {
    const int64_t row = circle.row(step);
    const T* matrix = matrices + circle.matrix_row(step) * dim * dim;
    if (io.backward) {
      if (thread < dim) {
        T sum = source[row * dim + thread];
        for (int i = 0; i < dim; ++i) sum += before[i] * matrix[i * dim + thread];
        now[thread] = sum;
      }
    } else {
      for (int i = warp; i < dim; i += num_warps) {
        T sum = 0;
        for (int j = lane; j < dim; j += kWarp) sum += matrix[i * dim + j] * before[j];
        for (int other = kWarp / 2; other > 0; other /= 2) sum += __shfl_xor_sync(kFullWarp, sum, other);
        if (lane == 0) now[i] = source[row * dim + i] + sum;
      }
    }
    __syncthreads();
    if (thread == 0) *shared.is_settled = !is_first && is_settled(values + row * dim, now, dim);
    __syncthreads();
    if (thread < dim) values[row * dim + thread] = before[thread] = now[thread];
    if (*shared.is_settled) return;
    __syncthreads();
  }
}

template <typename T>
__global__ void __launch_bounds__(kArcThreads, 3)
    matrix_arc_kernel(EchoMatrixProblem problem, EchoMatrixScan io, ArcEntries<T> entries, bool is_first) {
  const int64_t arc = blockIdx.x;
  if (is_first) {
    const int thread = static_cast<int>(threadIdx.x);
    if (thread < problem.dim) entries.values[arc * problem.dim + thread] = 0;
  } else if (!entries.is_active[arc]) {
    return;
  }
  walk_arc(problem, io, entries, arc, is_first);
}

template <typename T>
__global__ void __launch_bounds__(kEntryThreads)
    matrix_entry_kernel(EchoMatrixProblem problem, EchoMatrixScan io, ArcEntries<T> entries, int64_t arcs) {
  const int64_t arc = int64_t{blockIdx.x} * kEntryThreads + threadIdx.x;
  MatrixRounds rounds;  // only the last block counts them
  if (arc < arcs) entries.is_active[arc] = enter_arc(problem, io, entries, arc, rounds);
}

// One block: goes round arc by arc until no entry has changed. In its first turn arcs take what the rounds have left
// them, and none need have changed since.
template <typename T>
__global__ void __launch_bounds__(kArcThreads, 3)
    matrix_finish_kernel(EchoMatrixProblem problem, EchoMatrixScan io, ArcEntries<T> entries, int64_t arcs) {
  const ArcShared<T> shared(problem.dim);
  const bool is_first_thread = threadIdx.x == 0;
  if (is_first_thread) *shared.goes_on = false;
  __syncthreads();
  for (int64_t arc = threadIdx.x; arc < arcs; arc += kArcThreads)
    if (entries.is_active[arc]) *shared.goes_on = true;
  __syncthreads();
  MatrixRounds rounds;  // the first thread's
  for (int64_t terms = 0; *shared.goes_on && terms < kMaxMatrixTerms; terms += problem.rows) {
    for (int64_t arc = 0; arc < arcs; ++arc) {
      __syncthreads();
      if (is_first_thread) {
        const bool was_active = terms == 0 && entries.is_active[arc];
        *shared.is_active = enter_arc(problem, io, entries, arc, rounds) || was_active;
      }
      __syncthreads();
      if (*shared.is_active) walk_arc(problem, io, entries, arc, false);
    }
    __syncthreads();
    if (is_first_thread) *shared.goes_on = terms == 0 || rounds.go_on();
    __syncthreads();
  }
}

template <typename T>
const char* matrix_scan(const EchoMatrixProblem& problem, const EchoMatrixScan& io, cudaStream_t stream) {
  Workspace workspace(io.workspace);
  const ArcEntries<T> entries(problem, workspace);
  const int64_t arcs = num_arcs(problem);
  if (arcs > 0x7fffffff) return "echo_matrix_cuda: more rows than a grid has blocks for";
  const dim3 blocks(static_cast<unsigned>(arcs)), entry_blocks(static_cast<unsigned>(ceil_div(arcs, kEntryThreads)));
  const size_t shared_bytes = ArcShared<T>::bytes(problem.dim);
  const int rounds = arcs == 1 ? 0 : kRounds;  // one block goes round by itself
  for (int round = 0; round <= rounds; ++round) {
    ECHO_EXT_CUDA_CHECK(
        launch(matrix_arc_kernel<T>, blocks, kArcThreads, shared_bytes, stream, problem, io, entries, round == 0));
    ECHO_EXT_CUDA_CHECK(
        launch(matrix_entry_kernel<T>, entry_blocks, kEntryThreads, 0, stream, problem, io, entries, arcs));
  }
  ECHO_EXT_CUDA_CHECK(
      launch(matrix_finish_kernel<T>, dim3(1), kArcThreads, shared_bytes, stream, problem, io, entries, arcs));
  return nullptr;
}

template <typename T>
__global__ void __launch_bounds__(kOuterThreads) matrix_outer_kernel(EchoMatrixProblem problem, EchoMatrixOuter io) {
  const int dim = problem.dim;
  for (int64_t p = blockIdx.x; p < problem.rows; p += gridDim.x) {
    const int64_t row = io.order[p], next = io.order[p + 1 == problem.rows ? 0 : p + 1];
    const T* value = static_cast<const T*>(io.values) + row * dim;
    const T* noise = static_cast<const T*>(io.z) + next * dim;
    T* to = static_cast<T*>(io.grad_matrices) + row * dim * dim;
    for (int at = static_cast<int>(threadIdx.x); at < dim * dim; at += kOuterThreads)
      to[at] = value[at / dim] * noise[at % dim];
  }
}

}  // namespace

int64_t echo_matrix_cuda_workspace_bytes(const EchoMatrixProblem& problem) {
  Workspace sizes(nullptr);
  if (problem.single)
    ArcEntries<float>(problem, sizes);
  else
    ArcEntries<double>(problem, sizes);
  return sizes.used();
}

const char* echo_matrix_cuda_scan(const EchoMatrixProblem& problem, const EchoMatrixScan& io, int device,
                                  void* stream) {
  if (problem.rows == 0 || problem.dim == 0) return nullptr;
  const DeviceGuard guard(device);
  ECHO_EXT_CUDA_CHECK(guard.status());
  return (problem.single ? matrix_scan<float> : matrix_scan<double>)(problem, io, static_cast<cudaStream_t>(stream));
}

const char* echo_matrix_cuda_outer(const EchoMatrixProblem& problem, const EchoMatrixOuter& io, int device,
                                   void* stream) {
  if (problem.rows == 0 || problem.dim == 0) return nullptr;
  const DeviceGuard guard(device);
  ECHO_EXT_CUDA_CHECK(guard.status());
  const dim3 grid(static_cast<unsigned>(problem.rows < 0x7fffffff ? problem.rows : 0x7fffffff));
  ECHO_EXT_CUDA_CHECK(launch(problem.single ? matrix_outer_kernel<float> : matrix_outer_kernel<double>, grid,
                             kOuterThreads, 0, static_cast<cudaStream_t>(stream), problem, io));
  return nullptr;
}

}  // namespace echo_ext
