// Permutation and replacement sampling on CUDA. Every row gathers bank rows in its own order. First the draws are
// written to memory. A block then copies a tile of the bank's columns to shared memory, or reads a packed tile through
// L2 if the bank has too many rows. A group of lanes processes the draws of one row, with one 16-byte load for each
// lane and term, until the lanes of the warp agree that no further term can change a result.
#include "echo/kernels_cuda.h"
#include "echo/rows_plan_cuda.h"

namespace echo_ext {
namespace {

// ---- Forward -------------------------------------------------------------------------------------------------------

template <typename T, int kLanes, bool kStaged>
__global__ void __launch_bounds__(kMaxThreads, 1)
    forward_kernel(EchoProblem problem, EchoForward io, PackedBank<T> bank, DrawnRows drawn) {
  RowWalk<T, kLanes, kStaged> walk(problem, io.seed, io.bank_f, io.bank_s, bank, drawn);
  const uint32_t num_terms = static_cast<uint32_t>(problem.num_terms);
  const int64_t rows_of_block = blockDim.x / kLanes, stride = rows_of_block * gridDim.y;

  // The rows of a warp start together. Groups after the last row repeat it and write nothing.
  const int64_t first_of_warp = blockIdx.y * rows_of_block + threadIdx.x / kWarp * (kWarp / kLanes);
  for (int64_t first_row = first_of_warp; first_row < problem.rows; first_row += stride) {
    const int64_t row = first_row + threadIdx.x % kWarp / kLanes;
    walk.start_row(row < problem.rows ? row : problem.rows - 1);
    T sum[kColumns<T>] = {}, weight[kColumns<T>], largest[kColumns<T>] = {}, bound[kColumns<T>];
#pragma unroll
    for (int v = 0; v < kColumns<T>; ++v) {
      weight[v] = 1;
      bound[v] = walk.bounds(v).bound;
    }

    StepRows<kStaged> next = walk.rows_of_step(0);
    bool more = true;
    for (uint32_t first = 0; more && first < num_terms; first += kStepTerms) {
      const StepRows<kStaged> rows = next;
      if (first + kStepTerms < num_terms) next = walk.rows_of_step(first + kStepTerms);
      walk.visit_step(rows, at_most(num_terms - first, kStepTerms), [&](const Cell<T>& cell) {
#pragma unroll
        for (int v = 0; v < kColumns<T>; ++v) {
          sum[v] += weight[v] * cell.f[v];
          weight[v] *= cell.s[v];
        }
      });
      bool done = true;
#pragma unroll
      for (int v = 0; v < kColumns<T>; ++v) {
        if (magnitude(sum[v]) > largest[v]) largest[v] = magnitude(sum[v]);
        done = done && is_negligible(weight[v], bound[v], Traits<T>::kNegligible * largest[v]);
      }
      more = !__all_sync(kFullWarp, done);
    }

    if (row >= problem.rows) continue;
#pragma unroll
    for (int v = 0; v < kColumns<T>; ++v) {
      if (walk.column(v) >= problem.width) continue;
      const int64_t at = row * problem.width + walk.column(v);
      T result = sum[v];
      if (io.f != nullptr)
        result = load_element<T>(problem.dtype, io.f, at) + load_element<T>(problem.dtype, io.s, at) * result;
      store_element(problem.dtype, io.out, at, result);
    }
  }
}

// ---- Backward ------------------------------------------------------------------------------------------------------

template <typename T>
struct alignas(sizeof(T) * kColumns<T>) Weights {
  T value[kColumns<T>];
};

// The backward pass needs the weights of the terms in reverse order, and cannot recover them by division. It stores the
// weights before each step of terms: for all steps if memory suffices, and otherwise for one interval of
// 2^interval_bits steps at a time and for the first step of every interval.
template <typename T>
struct Checkpoints {
  Weights<T>* steps;      // [step of the interval][thread]
  Weights<T>* intervals;  // [interval except the first][thread]
  int64_t threads;
  int interval_bits;
};

// The gradients of the bank in the compute type, in the same layout as its cells: [copy][tile][bank row][lane].
template <typename T>
struct BankGradients {
  typename Traits<T>::Vector* values;
  int64_t copies;
  int64_t size;  // of one copy
};

// The backward pass of one row: forward through its terms, and backward again.
template <typename T, int kLanes, bool kStaged>
struct BackwardRow {
  using Vector = typename Traits<T>::Vector;

  const RowWalk<T, kLanes, kStaged>& walk;
  Checkpoints<T> checkpoints;  // this thread's
  Vector* gradient;            // this lane's element for bank row 0
  bool is_row;                 // otherwise nothing is added
  T grad_eps[kColumns<T>];
  T tail[kColumns<T>] = {};

  __device__ __forceinline__ Weights<T>& weights_ahead_of(uint32_t step) const {
    return checkpoints.steps[(step & ((1u << checkpoints.interval_bits) - 1)) * checkpoints.threads];
  }

  // Goes forward until no further term matters. Returns the number of terms that do.
  __device__ __forceinline__ uint32_t walk_forward(uint32_t num_terms) {
    T sum[kColumns<T>] = {}, largest[kColumns<T>] = {}, left_out[kColumns<T>] = {};
    Bounds<T> bounds[kColumns<T>];
    Weights<T> weight;
#pragma unroll
    for (int v = 0; v < kColumns<T>; ++v) {
      bounds[v] = walk.bounds(v);
      weight.value[v] = 1;
    }
    StepRows<kStaged> next = walk.rows_of_step(0);
    for (uint32_t first = 0;; first += kStepTerms) {
      const StepRows<kStaged> rows = next;
      if (first + kStepTerms < num_terms) next = walk.rows_of_step(first + kStepTerms);
      const uint32_t step = first / kStepTerms, interval = step >> checkpoints.interval_bits;
      weights_ahead_of(step) = weight;
      if (interval > 0 && interval << checkpoints.interval_bits == step)
        checkpoints.intervals[(interval - 1) * checkpoints.threads] = weight;
      walk.visit_step(rows, at_most(num_terms - first, kStepTerms), [&](const Cell<T>& cell) {
#pragma unroll
        for (int v = 0; v < kColumns<T>; ++v) {
          sum[v] += weight.value[v] * cell.f[v];
          const T leaving_out_earlier = left_out[v] * magnitude(cell.s[v]),
                  leaving_out_this = magnitude(weight.value[v]);
          left_out[v] = leaving_out_earlier > leaving_out_this ? leaving_out_earlier : leaving_out_this;
          weight.value[v] *= cell.s[v];
        }
      });
      if (num_terms - first <= kStepTerms) return num_terms;
      // The remaining terms must be negligible for the gradients as well. A term's own s is missing from the product in
      // its gradient. The gradient of f consists of weights, which must not be dropped before they are negligible
      // themselves.
      bool done = true;
#pragma unroll
      for (int v = 0; v < kColumns<T>; ++v) {
        if (magnitude(sum[v]) > largest[v]) largest[v] = magnitude(sum[v]);
        done = done && is_negligible(left_out[v], bounds[v].bound, Traits<T>::kNegligible * largest[v]) &&
               is_negligible(left_out[v], bounds[v].reach, Traits<T>::kNegligible);
      }
      if (__all_sync(kFullWarp, done)) return first + kStepTerms;
    }
  }

  // Stores the weights of an earlier interval again. It has only complete steps.
  __device__ __forceinline__ void restore_weights(uint32_t interval) {
    Weights<T> weight;
#pragma unroll
    for (int v = 0; v < kColumns<T>; ++v) weight.value[v] = 1;
    if (interval > 0) weight = checkpoints.intervals[(interval - 1) * checkpoints.threads];
    for (uint32_t step = interval << checkpoints.interval_bits; step >> checkpoints.interval_bits == interval; ++step) {
      weights_ahead_of(step) = weight;
      walk.visit_step(walk.rows_of_step(step * kStepTerms), kStepTerms, [&](const Cell<T>& cell) {
#pragma unroll
        for (int v = 0; v < kColumns<T>; ++v) weight.value[v] *= cell.s[v];
      });
    }
  }

  // Adds the gradients of eight terms of a step, terms [from, from + 8), last term first. `weight` is the weight before
  // them. In the last step, only the first `count` terms exist. The s of the row's very last term is not a factor of
  // anything, not even if it is NaN.
  template <bool kLast>
  __device__ __forceinline__ void add_eight_gradients(const StepRows<kStaged>& rows, int from, Weights<T> weight,
                                                      int count, bool is_row_end) {
    Cell<T> cell[8];
    walk.load_eight(rows, from, cell);
    T weights[8][kColumns<T>];
#pragma unroll
    for (int k = 0; k < 8; ++k) {
#pragma unroll
      for (int v = 0; v < kColumns<T>; ++v) {
        weights[k][v] = weight.value[v];
        weight.value[v] *= cell[k].s[v];
      }
    }
#pragma unroll
    for (int k = 7; k >= 0; --k) {
      if (kLast && from + k >= count) continue;
      Cell<T> added;
#pragma unroll
      for (int v = 0; v < kColumns<T>; ++v) {
        added.f[v] = grad_eps[v] * weights[k][v];
        added.s[v] = added.f[v] * tail[v];
        const T f = cell[k].f[v], with_tail = f + cell[k].s[v] * tail[v];
        tail[v] = kLast && is_row_end && from + k == count - 1 ? f : with_tail;
      }
      if (is_row) atomic_add(gradient + static_cast<int64_t>(rows.get(from + k)) * kLanes, pack(added));
    }
  }

  __device__ __forceinline__ bool is_first_of_interval(uint32_t step) const {
    return (step & ((1u << checkpoints.interval_bits) - 1)) == 0;
  }

  // The same for a whole step. Between its two halves, where the fewest registers are in use, `rows` and `weight` are
  // replaced by those of the preceding step.
  template <bool kLast>
  __device__ __forceinline__ void walk_step_backward(uint32_t step, StepRows<kStaged>& rows, Weights<T>& weight,
                                                     int count, bool is_row_end) {
    if (!kLast || count > 8) {
      Weights<T> middle = weight;
      Cell<T> cell[8];
      walk.load_eight(rows, 0, cell);
#pragma unroll
      for (int k = 0; k < 8; ++k)
#pragma unroll
        for (int v = 0; v < kColumns<T>; ++v) middle.value[v] *= cell[k].s[v];
      add_eight_gradients<kLast>(rows, 8, middle, count, is_row_end);
    }
    const StepRows<kStaged> low_rows = rows;
    const Weights<T> low_weight = weight;
    if (step > 0) rows = walk.rows_of_step((step - 1) * kStepTerms);
    if (!is_first_of_interval(step)) weight = weights_ahead_of(step - 1);
    add_eight_gradients<kLast>(low_rows, 0, low_weight, count, is_row_end);
  }

  // Adds the gradients of the `used` terms of the row. Afterwards `tail` is eps.
  __device__ __forceinline__ void walk_backward(uint32_t used, bool is_row_end) {
    const uint32_t last = (used - 1) / kStepTerms;
    StepRows<kStaged> rows = walk.rows_of_step(last * kStepTerms);
    Weights<T> weight = weights_ahead_of(last);
    for (uint32_t step = last;; --step) {
      if (step == last)
        walk_step_backward<true>(step, rows, weight, static_cast<int>(used - last * kStepTerms), is_row_end);
      else
        walk_step_backward<false>(step, rows, weight, kStepTerms, false);
      if (step == 0) return;
      if (!is_first_of_interval(step)) continue;
      restore_weights((step - 1) >> checkpoints.interval_bits);
      weight = weights_ahead_of(step - 1);
    }
  }
};

// Gradients are summed by atomic additions, which treat subnormal float32 numbers as zero. If each row in flight has
// its own copy of the gradients, all additions to one element come from the same thread, and so happen in a fixed
// order.
template <typename T, int kLanes, bool kStaged>
__global__ void __launch_bounds__(kMaxThreads, 1)
    backward_kernel(EchoProblem problem, EchoBackward io, PackedBank<T> bank, DrawnRows drawn,
                    BankGradients<T> gradients, Checkpoints<T> checkpoints) {
  RowWalk<T, kLanes, kStaged> walk(problem, io.seed, io.bank_f, io.bank_s, bank, drawn);
  const uint32_t num_terms = static_cast<uint32_t>(problem.num_terms);
  const int64_t rows_of_block = blockDim.x / kLanes, stride = rows_of_block * gridDim.y;
  const int64_t thread = (static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t first_row = blockIdx.y * rows_of_block + threadIdx.x / kLanes;

  BackwardRow<T, kLanes, kStaged> backward_row{walk, checkpoints, gradients.values, false, {}};
  backward_row.checkpoints.steps += thread;
  backward_row.checkpoints.intervals += thread;
  backward_row.gradient += blockIdx.x * problem.bank_rows * kLanes + walk.lane;
  if (gradients.copies > 1) backward_row.gradient += first_row * gradients.size;

  // Groups after the last row repeat it while other groups of their warp have rows.
  const int64_t ahead = threadIdx.x % kWarp / kLanes;
  for (int64_t row = first_row; row - ahead < problem.rows; row += stride) {
    backward_row.is_row = row < problem.rows;
    walk.start_row(backward_row.is_row ? row : problem.rows - 1);
    T grad[kColumns<T>];
    bool is_column[kColumns<T>];
#pragma unroll
    for (int v = 0; v < kColumns<T>; ++v) {
      is_column[v] = walk.column(v) < problem.width;
      const int64_t at = walk.row * problem.width + walk.column(v);
      grad[v] = is_column[v] ? load_element<T>(problem.dtype, io.grad, at) : 0;
      backward_row.grad_eps[v] = grad[v];
      if (is_column[v] && io.s != nullptr) backward_row.grad_eps[v] *= load_element<T>(problem.dtype, io.s, at);
      backward_row.tail[v] = 0;
    }
    const uint32_t used = backward_row.walk_forward(num_terms);
    backward_row.walk_backward(used, used == num_terms);

    // The contribution of f + s * eps itself.
    if (io.s == nullptr || !backward_row.is_row) continue;
    Cell<T> own;
#pragma unroll
    for (int v = 0; v < kColumns<T>; ++v) {
      own.f[v] = grad[v];
      own.s[v] = grad[v] * backward_row.tail[v];
      if (!problem.exclude_self && is_column[v])
        store_element(problem.dtype, io.grad_s, row * problem.width + walk.column(v), own.s[v]);
    }
    if (problem.exclude_self) atomic_add(backward_row.gradient + row * kLanes, pack(own));
  }
}

constexpr int kFinishThreads = 256;

// Adds up the copies, and writes the gradients in the caller's dtype. Blocks are indexed by (tile, bank rows).
template <typename T>
__global__ void __launch_bounds__(kFinishThreads)
    finish_kernel(EchoProblem problem, EchoBackward io, BankGradients<T> gradients, int lanes) {
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int64_t rows_of_block = blockDim.x / lanes;
  for (int64_t row = blockIdx.y * rows_of_block + threadIdx.x / lanes; row < problem.bank_rows;
       row += gridDim.y * rows_of_block) {
    const auto* from = gradients.values + (blockIdx.x * problem.bank_rows + row) * lanes + lane;
    Cell<T> sum = {};
#pragma unroll 8
    for (int64_t copy = 0; copy < gradients.copies; ++copy, from += gradients.size) {
      const Cell<T> one = unpack(*from);
#pragma unroll
      for (int v = 0; v < kColumns<T>; ++v) {
        sum.f[v] += one.f[v];
        sum.s[v] += one.s[v];
      }
    }
#pragma unroll
    for (int v = 0; v < kColumns<T>; ++v) {
      const int64_t column = column_of<T>(blockIdx.x, v, lanes, lane);
      if (column >= problem.width) continue;
      store_element(problem.dtype, io.grad_bank_f, row * problem.width + column, sum.f[v]);
      store_element(problem.dtype, io.grad_bank_s, row * problem.width + column, sum.s[v]);
    }
  }
}

// ---- Launches ------------------------------------------------------------------------------------------------------

template <typename T>
auto forward_kernel_of(const RowsPlan& plan) {
  if (!plan.staged)
    return plan.lanes == kWideLanes ? forward_kernel<T, kWideLanes, false> : forward_kernel<T, kStagedLanes, false>;
  return plan.lanes == 8   ? forward_kernel<T, 8, true>
         : plan.lanes == 4 ? forward_kernel<T, 4, true>
                           : forward_kernel<T, 2, true>;
}

template <typename T>
auto backward_kernel_of(const RowsPlan& plan) {
  if (!plan.staged)
    return plan.lanes == kWideLanes ? backward_kernel<T, kWideLanes, false> : backward_kernel<T, kStagedLanes, false>;
  return plan.lanes == 8   ? backward_kernel<T, 8, true>
         : plan.lanes == 4 ? backward_kernel<T, 4, true>
                           : backward_kernel<T, 2, true>;
}

template <typename T>
cudaError_t make_plan(const EchoProblem& problem, const DeviceLimits& limits, bool is_backward, bool deterministic,
                      RowsPlan* plan) {
  *plan = tiles_of<T>(problem, limits);
  if (!is_backward) return choose_blocks<T>(problem, limits, forward_kernel_of<T>(*plan), false, plan);
  plan->copies = deterministic ? deterministic_copies<T>(problem, plan->lanes) : 1;
  return choose_blocks<T>(problem, limits, backward_kernel_of<T>(*plan), deterministic, plan);
}

template <typename T>
PackedBank<T> take_bank(Workspace& workspace, const EchoProblem& problem, const RowsPlan& plan) {
  PackedBank<T> bank{};
  if (plan.staged) return bank;
  bank.cells = workspace.take<typename Traits<T>::Vector>(plan.tiles * problem.bank_rows * plan.lanes);
  bank.largest = workspace.take<typename Traits<T>::Bits>(plan.tiles * plan.lanes * kColumns<T> * 2);
  bank.lanes = plan.lanes;
  return bank;
}

template <typename T>
BankGradients<T> take_gradients(Workspace& workspace, const EchoProblem& problem, const RowsPlan& plan) {
  BankGradients<T> gradients{};
  gradients.copies = plan.copies;
  gradients.size = plan.tiles * problem.bank_rows * plan.lanes;
  gradients.values = workspace.take<typename Traits<T>::Vector>(gradients.copies * gradients.size);
  return gradients;
}

// Per multiprocessor. This is enough for all steps of 1024 terms with any block size. Intervals are halved until their
// weights fit, or until halving would increase the total. For example, 2^20 terms are 2^16 steps, for which each thread
// stores about 2^9 weights.
constexpr int64_t kCheckpointBytes = int64_t{256} << 10;

template <typename T>
Checkpoints<T> take_checkpoints(Workspace& workspace, const EchoProblem& problem, const RowsPlan& plan,
                                const DeviceLimits& limits) {
  const int64_t steps = ceil_div(problem.num_terms, kStepTerms), bytes = kCheckpointBytes * limits.multiprocessors;
  const int64_t fitting = bytes / (plan.num_threads() * static_cast<int64_t>(sizeof(Weights<T>)));
  const auto num_step_weights = [&](int bits) { return steps < int64_t{1} << bits ? steps : int64_t{1} << bits; };
  const auto num_interval_weights = [&](int bits) { return ceil_div(steps, int64_t{1} << bits) - 1; };
  const auto num_weights = [&](int bits) { return num_step_weights(bits) + num_interval_weights(bits); };
  Checkpoints<T> checkpoints{};
  int& bits = checkpoints.interval_bits;
  while (int64_t{1} << bits < steps) ++bits;
  while (bits > 0 && num_weights(bits) > fitting && num_weights(bits - 1) < num_weights(bits)) --bits;
  checkpoints.threads = plan.num_threads();
  checkpoints.steps = workspace.take<Weights<T>>(num_step_weights(bits) * checkpoints.threads);
  checkpoints.intervals = workspace.take<Weights<T>>(num_interval_weights(bits) * checkpoints.threads);
  return checkpoints;
}

// Writes the draws to memory, and packs the bank if it does not fit into shared memory.
template <typename T>
cudaError_t prepare(const EchoProblem& problem, const RowsPlan& plan, const PackedBank<T>& bank, const DrawnRows& drawn,
                    const int64_t* seed, const void* f, const void* s, const DeviceLimits& limits,
                    cudaStream_t stream) {
  if (plan.staged) return write_draws<T, true>(problem, seed, s, drawn, limits, stream);
  cudaError_t status = write_draws<T, false>(problem, seed, s, drawn, limits, stream);
  const int64_t columns = plan.tiles * plan.lanes * kColumns<T>;
  const size_t bytes = static_cast<size_t>(columns) * 2 * sizeof(typename Traits<T>::Bits);
  if (status == cudaSuccess) status = cudaMemsetAsync(bank.largest, 0, bytes, stream);
  if (status != cudaSuccess) return status;
  const int64_t blocks = ceil_div(problem.bank_rows, kPackRows);
  const dim3 grid(static_cast<unsigned>(plan.tiles), static_cast<unsigned>(blocks < kMaxGroups ? blocks : kMaxGroups));
  return launch(pack_kernel<T>, grid, kPackThreads, 0, stream, bank, problem, f, s);
}

dim3 grid_of(const RowsPlan& plan) {
  return dim3(static_cast<unsigned>(plan.tiles), static_cast<unsigned>(plan.groups));
}

template <typename T>
const char* forward(const EchoProblem& problem, const EchoForward& io, const DeviceLimits& limits,
                    cudaStream_t stream) {
  RowsPlan plan{};
  ECHO_EXT_CUDA_CHECK(make_plan<T>(problem, limits, false, false, &plan));
  Workspace workspace(io.workspace);
  const DrawnRows drawn = take_draws(workspace, problem, plan.staged);
  const PackedBank<T> bank = take_bank<T>(workspace, problem, plan);
  ECHO_EXT_CUDA_CHECK(prepare(problem, plan, bank, drawn, io.seed, io.bank_f, io.bank_s, limits, stream));
  ECHO_EXT_CUDA_CHECK(launch(forward_kernel_of<T>(plan), grid_of(plan), plan.threads, plan.shared_bytes, stream,
                             problem, io, bank, drawn));
  return nullptr;
}

template <typename T>
const char* backward(const EchoProblem& problem, const EchoBackward& io, bool deterministic, const DeviceLimits& limits,
                     cudaStream_t stream) {
  RowsPlan plan{};
  ECHO_EXT_CUDA_CHECK(make_plan<T>(problem, limits, true, deterministic, &plan));
  Workspace workspace(io.workspace);
  const DrawnRows drawn = take_draws(workspace, problem, plan.staged);
  const PackedBank<T> bank = take_bank<T>(workspace, problem, plan);
  const BankGradients<T> gradients = take_gradients<T>(workspace, problem, plan);
  const Checkpoints<T> checkpoints = take_checkpoints<T>(workspace, problem, plan, limits);

  const size_t gradient_bytes =
      static_cast<size_t>(gradients.copies * gradients.size) * sizeof(typename Traits<T>::Vector);
  ECHO_EXT_CUDA_CHECK(cudaMemsetAsync(gradients.values, 0, gradient_bytes, stream));
  if (problem.rows > 0) {
    ECHO_EXT_CUDA_CHECK(prepare(problem, plan, bank, drawn, io.seed, io.bank_f, io.bank_s, limits, stream));
    ECHO_EXT_CUDA_CHECK(launch(backward_kernel_of<T>(plan), grid_of(plan), plan.threads, plan.shared_bytes, stream,
                               problem, io, bank, drawn, gradients, checkpoints));
  }
  const int64_t blocks = ceil_div(problem.bank_rows, kFinishThreads / plan.lanes);
  const dim3 grid(static_cast<unsigned>(plan.tiles), static_cast<unsigned>(blocks < kMaxGroups ? blocks : kMaxGroups));
  ECHO_EXT_CUDA_CHECK(launch(finish_kernel<T>, grid, kFinishThreads, 0, stream, problem, io, gradients, plan.lanes));
  return nullptr;
}

template <typename T>
int64_t workspace_bytes(const EchoProblem& problem, const DeviceLimits& limits, bool is_backward, bool deterministic) {
  RowsPlan plan{};
  if (make_plan<T>(problem, limits, is_backward, deterministic, &plan) != cudaSuccess) return -1;
  Workspace workspace(nullptr);
  take_draws(workspace, problem, plan.staged);
  take_bank<T>(workspace, problem, plan);
  if (is_backward) {
    take_gradients<T>(workspace, problem, plan);
    take_checkpoints<T>(workspace, problem, plan, limits);
  }
  return workspace.bytes();
}

}  // namespace

int64_t echo_rows_cuda_workspace_bytes(const EchoProblem& problem, bool backward, bool deterministic,
                                       const DeviceLimits& limits) {
  return problem.dtype == DType::float64 ? workspace_bytes<double>(problem, limits, backward, deterministic)
                                         : workspace_bytes<float>(problem, limits, backward, deterministic);
}

const char* echo_rows_cuda_forward(const EchoProblem& problem, const EchoForward& io, const DeviceLimits& limits,
                                   cudaStream_t stream) {
  switch (problem.dtype) {
    case DType::float64: return forward<double>(problem, io, limits, stream);
    case DType::float32:
    case DType::bfloat16:
    case DType::float16: return forward<float>(problem, io, limits, stream);
  }
  return "echo_cuda_forward: unknown dtype";
}

const char* echo_rows_cuda_backward(const EchoProblem& problem, const EchoBackward& io, bool deterministic,
                                    const DeviceLimits& limits, cudaStream_t stream) {
  switch (problem.dtype) {
    case DType::float64: return backward<double>(problem, io, deterministic, limits, stream);
    case DType::float32:
    case DType::bfloat16:
    case DType::float16: return backward<float>(problem, io, deterministic, limits, stream);
  }
  return "echo_cuda_backward: unknown dtype";
}

}  // namespace echo_ext
