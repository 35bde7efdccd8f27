// Echo noise with ring sampling on CUDA: noises are windows on a circle of bank rows, so that neighbours differ by one
// term and one scan makes them all.
//
// The circle is cut into segments; a group of lanes scans one segment of adjacent columns. What lies behind a segment
// enters as one number, summed up until its weight has vanished. Where that needs more terms than every window of
// the segment has, the windows' ends matter: the segment is flagged, and a second kernel does it exactly, in steps
// short enough for registers:
//     a window from q = suffix of the step from q, (tail, decay): tail + decay * prefix of what follows the step.
// Nothing is added up by two threads: results are the same in every run.
#include "echo_cuda.h"
#include "echo_ring_cuda.h"

namespace echo_ext {
namespace {

// ---- Forward --------------------------------------------------------------------------------------------------------

template <typename Storage>
struct RingForward : RingGroup<Storage> {
  using Group = RingGroup<Storage>;
  using typename Group::T;
  const EchoForward& io;

  __device__ RingForward(const EchoProblem& problem, const EchoForward& io_, const RingPlan& plan)
      : Group(problem, io_.seed, io_.bank_f, io_.bank_s, windows_of(problem, io_.f != nullptr), plan), io(io_) {}

  __device__ __forceinline__ void emit(int64_t q, int slot, T eps) {
    const int64_t at = this->owner(q, slot);
    if (at < 0 || !this->is_column) return;
    if (io.f != nullptr && !this->windows.at_own_row) eps = this->load(io.f, at) + this->load(io.s, at) * eps;
    static_cast<Storage*>(io.out)[at] = from_compute<Storage>(eps);
  }

  // False where the windows' ends matter; else each value is read once and each result written once.
  __device__ __forceinline__ bool scan() {
    const int64_t spare = this->windows.num_terms - (this->end - this->begin);
    T eps = 0, weight = 1;
    if (this->add_terms(this->end, spare, eps, weight) > spare) return false;
    for (int64_t first = this->end; first > this->begin;) {
      const int count = first - this->begin < kBatch ? static_cast<int>(first - this->begin) : kBatch;
      first -= count;
      this->draw_here(first, count);
      for (int slot = (count - 1) / kFlight<T> * kFlight<T>; slot >= 0; slot -= kFlight<T>) {
        T term_f[kFlight<T>], term_s[kFlight<T>];
        this->load_terms(this->rows->here + 1 + slot, count - slot, term_f, term_s);
#pragma unroll
        for (int k = kFlight<T> - 1; k >= 0; --k) {
          if (slot + k >= count) continue;
          eps = term_f[k] + term_s[k] * eps;
          emit(first + slot + k, slot + k, eps);
        }
      }
    }
    return true;
  }

  // At most kStep windows, each with its own end.
  __device__ __forceinline__ void exact_step(int64_t first, int count) {
    const int64_t shared_terms = this->windows.num_terms - count;
    this->draw_here(first, count);
    T tails[kStep<T>], decays[kStep<T>], tail = 0, decay = 1;
#pragma unroll
    for (int k = kStep<T> - 1; k >= 0; --k) {
      if (k >= count) continue;
      const T term_s = this->load(this->s, this->offset(this->row_here(k)));
      tail = this->load(this->f, this->offset(this->row_here(k))) + term_s * tail;
      decay *= term_s;
      tails[k] = tail;
      decays[k] = decay;
    }
    T sum = 0, weight = 1;
    this->add_terms(first + count, shared_terms, sum, weight);
    this->draw_rows(this->rows->behind, first + this->windows.num_terms, count - 1);
#pragma unroll
    for (int k = 0; k < kStep<T>; ++k) {
      if (k >= count) continue;
      emit(first + k, k, decays[k] == 0 ? tails[k] : tails[k] + decays[k] * sum);
      if (k + 1 >= count || has_vanished(weight)) continue;
      sum += weight * this->load(this->f, this->offset(this->rows->behind[k]));
      weight *= this->load(this->s, this->offset(this->rows->behind[k]));
    }
  }
};

template <typename Storage>
__global__ void __launch_bounds__(kThreads, 4)
    ring_forward_kernel(EchoProblem problem, EchoForward io, RingPlan plan, bool* is_exact) {
  RingForward<Storage> group(problem, io, plan);
  for_each_item(plan, plan.num_circles * plan.items_of_circle(), [&](int64_t item) {
    group.start(item / plan.items_of_circle(), item % plan.items_of_circle(), plan);
    const bool done = group.scan();
    if (group.lane == 0) is_exact[item] = !done;
  });
}

template <typename Storage>
__global__ void __launch_bounds__(kThreads, 2)
    ring_forward_exact_kernel(EchoProblem problem, EchoForward io, RingPlan plan, const bool* is_exact) {
  RingForward<Storage> group(problem, io, plan);
  const int64_t num_items = plan.num_circles * plan.items_of_circle();
  for_each_item(plan, num_items * plan.steps_of_segment, [&](int64_t step) {
    const int64_t item = step % num_items;
    if (!is_exact[item]) return;
    group.start(item / plan.items_of_circle(), item % plan.items_of_circle(), plan);
    const int count = group.clip_to_step(step / num_items);
    if (count > 0) group.exact_step(group.begin, count);
  });
}

// ---- Backward -------------------------------------------------------------------------------------------------------

// The adjoint, seen from the positions: with g_p the gradient of the window from p,
//     v_x = g_x + s_{x-1} * v_{x-1},   df_x = v_x,   ds_x = v_x * (the window from x + 1),
// where what lies before a segment enters as one number too.
template <typename Storage>
struct RingBackward : RingGroup<Storage> {
  using Group = RingGroup<Storage>;
  using typename Group::T;
  const EchoBackward& io;
  T* checkpoints;
  T* accumulators;

  __device__ RingBackward(const EchoProblem& problem, const EchoBackward& io_, const RingPlan& plan,
                          const RingWorkspace<T>& workspace)
      : Group(problem, io_.seed, io_.bank_f, io_.bank_s, windows_of(problem, io_.s != nullptr), plan),
        io(io_),
        checkpoints(workspace.checkpoints),
        accumulators(workspace.accumulators) {}

  __device__ __forceinline__ bool has_grad_s() const { return io.s != nullptr && !this->windows.at_own_row; }

  __device__ __forceinline__ T window_gradient(int64_t q, int slot) const {
    const int64_t at = this->owner(q, slot);
    if (at < 0) return 0;
    const T grad = this->load(io.grad, at);
    return has_grad_s() ? grad * this->load(io.s, at) : grad;
  }

  __device__ __forceinline__ void emit(int slot, T to_f, T to_s) {
    if (!this->is_column) return;
    const int64_t at = this->offset(this->row_here(slot));
    if (accumulators != nullptr) {
      accumulators[at] += to_f;
      accumulators[this->problem.bank_rows * this->width + at] += to_s;
    } else {
      static_cast<Storage*>(io.grad_bank_f)[at] = from_compute<Storage>(to_f);
      static_cast<Storage*>(io.grad_bank_s)[at] = from_compute<Storage>(to_s);
    }
  }

  // The gradient of the row's own s in f + s * eps.
  __device__ __forceinline__ void emit_row(int64_t q, int slot, T eps) {
    if (!has_grad_s() || !this->is_column) return;
    const int64_t at = this->owner(q, slot);
    if (at >= 0) static_cast<Storage*>(io.grad_s)[at] = from_compute<Storage>(this->load(io.grad, at) * eps);
  }

  // What windows from before `position` bring to it, at most `limit` of them; their number as in add_terms. `weight` is
  // the product of s over them.
  __device__ __forceinline__ int64_t add_earlier(int64_t position, int64_t limit, T& carry, T& weight) {
    for (int64_t done = 0; done < limit; done += kBatch) {
      const int count = limit - done < kBatch ? static_cast<int>(limit - done) : kBatch;
      const int64_t first = position - done - count;
      this->draw_here(first, count);
      for (int end = count; end > 0; end -= kFlight<T>) {
        T term_s[kFlight<T>], grad[kFlight<T>];
#pragma unroll
        for (int k = 0; k < kFlight<T>; ++k) {
          const int slot = end - 1 - k;
          if (slot < 0) continue;
          term_s[k] = this->load(this->s, this->offset(this->row_here(slot)));
          grad[k] = window_gradient(first + slot, slot);
        }
#pragma unroll
        for (int k = 0; k < kFlight<T>; ++k) {
          if (end - 1 - k < 0) continue;
          weight *= term_s[k];
          carry += weight * grad[k];
        }
        if (__all_sync(this->mask, has_vanished(weight)))
          return done + count - (end > kFlight<T> ? end - kFlight<T> : 0);
      }
    }
    return limit + 1;
  }

  // False where the windows' ends matter; else down for the windows' sums, one of which is kept for each flight, then
  // up.
  __device__ __forceinline__ bool scan(const RingPlan& plan) {
    // Every window that counts must end beyond what counts behind the segment.
    const int64_t begin = this->begin, end = this->end, spare = this->windows.num_terms - (end - begin);
    T eps = 0, carry = 0, weight = 1;
    const int64_t num_behind = this->add_terms(end, spare, eps, weight);
    if (num_behind > spare) return false;
    weight = 1;
    if (add_earlier(begin, spare - num_behind, carry, weight) > spare - num_behind) return false;

    T* checkpoint = checkpoints + begin / plan.segment * plan.flights_of_segment * this->width + this->column;
    T term_f[kFlight<T>], term_s[kFlight<T>], grad[kFlight<T>];
    for (int64_t first = end, before; first > begin;) {
      before = begin + (first - 1 - begin) / kBatch * kBatch;
      const int count = static_cast<int>(first - before);
      first = before;
      this->draw_here(first, count);
      for (int slot = (count - 1) / kFlight<T> * kFlight<T>; slot >= 0; slot -= kFlight<T>) {
        if (this->is_column) checkpoint[(first - begin + slot) / kFlight<T> * this->width] = eps;
        this->load_terms(this->rows->here + 1 + slot, count - slot, term_f, term_s);
#pragma unroll
        for (int k = kFlight<T> - 1; k >= 0; --k)
          if (slot + k < count) eps = term_f[k] + term_s[k] * eps;
      }
    }
    for (int64_t first = begin; first < end; first += kBatch) {
      const int count = end - first < kBatch ? static_cast<int>(end - first) : kBatch;
      this->draw_here(first, count);
      for (int slot = 0; slot < count; slot += kFlight<T>) {
        this->load_terms(this->rows->here + 1 + slot, count - slot, term_f, term_s);
#pragma unroll
        for (int k = 0; k < kFlight<T>; ++k)
          if (slot + k < count) grad[k] = window_gradient(first + slot + k, slot + k);
        eps = checkpoint[(first - begin + slot) / kFlight<T> * this->width];
#pragma unroll
        for (int k = kFlight<T> - 1; k >= 0; --k) {
          if (slot + k >= count) continue;
          const T here = term_f[k] + term_s[k] * eps;
          term_f[k] = eps;  // from now on the window from behind
          eps = here;
          emit_row(first + slot + k, slot + k, here);
        }
#pragma unroll
        for (int k = 0; k < kFlight<T>; ++k) {
          if (slot + k >= count) continue;
          const T value = grad[k] + carry;
          emit(slot + k, value, value * term_f[k]);
          carry = term_s[k] * value;
        }
      }
    }
    return true;
  }

  // At most kStep positions, when windows' ends matter. A window that ends in the step has its own sum there; one that
  // goes beyond it has (tail, decay) of the step and a prefix of what is behind.
  __device__ __forceinline__ void exact_step(int64_t begin, int count) {
    const int64_t num_terms = this->windows.num_terms, end = begin + count;
    // Windows from [begin - num_earlier, begin) reach the step, up to weights of zero.
    T ignored = 0, weight = 1;
    const int64_t through = num_terms - count;  // of those, the windows that go beyond the step
    int64_t num_earlier = add_earlier(begin, through, ignored, weight);
    T to_f[kStep<T>], to_s[kStep<T>];
    if (num_earlier > through) {
      add_ending_windows(begin, count, weight, to_f, to_s);
      num_earlier = through;
    } else {
#pragma unroll
      for (int k = 0; k < kStep<T>; ++k) to_f[k] = to_s[k] = 0;
    }

    // Suffixes of the step behind each position.
    this->draw_here(begin, count);
    T tails[kStep<T>], decays[kStep<T>], tail = 0, decay = 1;
#pragma unroll
    for (int k = kStep<T> - 1; k >= 0; --k) {
      if (k >= count) continue;
      tails[k] = tail;
      decays[k] = decay;
      const T term_s = this->load(this->s, this->offset(this->row_here(k)));
      tail = this->load(this->f, this->offset(this->row_here(k))) + term_s * tail;
      decay *= term_s;
    }

    // Upwards over the windows' starts; with them goes the prefix that their windows see.
    T prefix = 0, prefix_weight = 1, tail_carry = 0, decay_carry = 0;
    int64_t start = begin - num_earlier;
    this->add_terms(end, start + num_terms - end, prefix, prefix_weight);
    for (; start < begin; start += kBatch) {
      const int now = begin - start < kBatch ? static_cast<int>(begin - start) : kBatch;
      this->draw_here(start, now);
      this->draw_rows(this->rows->behind, start + num_terms, now);
#pragma unroll 4
      for (int slot = 0; slot < now; ++slot) {
        const T grad = window_gradient(start + slot, slot),
                term_s = this->load(this->s, this->offset(this->row_here(slot)));
        tail_carry = term_s * (tail_carry + grad);
        decay_carry = term_s * (decay_carry + grad * prefix);
        add_term(slot, prefix, prefix_weight);
      }
    }
    this->draw_here(begin, count);
    this->draw_rows(this->rows->behind, begin + num_terms, count);
#pragma unroll
    for (int k = 0; k < kStep<T>; ++k) {
      if (k >= count) continue;
      const T grad = window_gradient(begin + k, k), term_s = this->load(this->s, this->offset(this->row_here(k)));
      const T through_tail = tail_carry + grad, through_decay = decay_carry + grad * prefix;
      emit(k, to_f[k] + through_tail, to_s[k] + (through_tail * tails[k] + through_decay * decays[k]));
      if (has_grad_s())
        emit_row(begin + k, k,
                 this->load(this->f, this->offset(this->row_here(k))) + term_s * (tails[k] + decays[k] * prefix));
      tail_carry = term_s * through_tail;
      decay_carry = term_s * through_decay;
      add_term(k, prefix, prefix_weight);
    }
  }

  __device__ __forceinline__ void add_term(int slot, T& sum, T& weight) {
    if (has_vanished(weight)) return;
    sum += weight * this->load(this->f, this->offset(this->rows->behind[slot]));
    weight *= this->load(this->s, this->offset(this->rows->behind[slot]));
  }

  // Of the windows that end in the step: the one from begin + l + 1 - num_terms ends at begin + l. `weight` is the
  // product of s from the first window that goes through the step to its begin.
  __device__ __forceinline__ void add_ending_windows(int64_t begin, int count, T weight, T (&to_f)[kStep<T>],
                                                     T (&to_s)[kStep<T>]) {
    // Products from the step's begin, in to_f; then downwards over the windows' ends.
    this->draw_rows(this->rows->behind, begin, count);
    T product = 1;
#pragma unroll
    for (int k = 0; k < kStep<T>; ++k) {
      to_f[k] = product;
      to_s[k] = 0;
      if (k < count) product *= this->load(this->s, this->offset(this->rows->behind[k]));
    }
    const int64_t first = begin + 1 - this->windows.num_terms;
    this->draw_here(first, count - 1);
    T reaching = 0, sums = 0;  // gradients that reach a position, and with the windows' sums behind it
#pragma unroll
    for (int k = kStep<T> - 1; k >= 0; --k) {
      if (k >= count - 1) {
        to_f[k] = 0;
        continue;
      }
      const int64_t next = this->offset(this->rows->behind[k + 1]);
      sums = this->load(this->f, next) * reaching + this->load(this->s, next) * sums;
      weight *= this->load(this->s, this->offset(this->row_here(k)));
      reaching += weight * window_gradient(first + k, k);
      to_s[k] = to_f[k] * sums;
      to_f[k] *= reaching;
    }
  }
};

template <typename Storage>
__global__ void __launch_bounds__(kThreads, 3) ring_backward_kernel(EchoProblem problem, EchoBackward io, RingPlan plan,
                                                                    RingWorkspace<Compute<Storage>> workspace) {
  RingBackward<Storage> group(problem, io, plan, workspace);
  for (int64_t circle = 0; circle < plan.num_circles; ++circle) {
    for_each_item(plan, plan.items_of_circle(), [&](int64_t item) {
      group.start(circle, item, plan);
      const bool done = group.scan(plan);
      if (group.lane == 0) workspace.is_exact[circle * plan.items_of_circle() + item] = !done;
    });
    __syncthreads();
  }
}

template <typename Storage>
__global__ void __launch_bounds__(kThreads, 2)
    ring_backward_exact_kernel(EchoProblem problem, EchoBackward io, RingPlan plan,
                               RingWorkspace<Compute<Storage>> workspace) {
  RingBackward<Storage> group(problem, io, plan, workspace);
  for (int64_t circle = 0; circle < plan.num_circles; ++circle) {
    for_each_item(plan, plan.items_of_circle() * plan.steps_of_segment, [&](int64_t step) {
      const int64_t item = step % plan.items_of_circle();
      if (!workspace.is_exact[circle * plan.items_of_circle() + item]) return;
      group.start(circle, item, plan);
      const int count = group.clip_to_step(step / plan.items_of_circle());
      if (count > 0) group.exact_step(group.begin, count);
    });
    __syncthreads();
  }
}

template <typename Storage>
__global__ void __launch_bounds__(kThreads)
    ring_finish_kernel(EchoBackward io, const Compute<Storage>* accumulators, int64_t count) {
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < count;
       at += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    static_cast<Storage*>(io.grad_bank_f)[at] = from_compute<Storage>(accumulators[at]);
    static_cast<Storage*>(io.grad_bank_s)[at] = from_compute<Storage>(accumulators[count + at]);
  }
}

// ---- Launch ---------------------------------------------------------------------------------------------------------

constexpr int64_t kMaxSegment = 1024;
constexpr int64_t kThreadsOfMultiprocessor = 512;  // enough to keep memory busy
constexpr int64_t kMaxBlocks = 0x7fffffff;

template <typename T>
RingPlan make_plan(const EchoProblem& problem, bool has_rows, bool backward, const DeviceLimits& limits) {
  const int64_t num_terms = windows_of(problem, has_rows).num_terms;
  RingPlan plan{};
  plan.num_circles = problem.exclude_self ? 1 : ceil_div(problem.rows, problem.bank_rows);
  // Long segments read little twice, short ones keep the device busy; windows must be longer.
  int64_t segment = problem.bank_rows * problem.width / (kThreadsOfMultiprocessor * limits.multiprocessors);
  if (segment > kMaxSegment) segment = kMaxSegment;
  if (segment > num_terms / 4) segment = num_terms / 4;
  segment = segment / kStep<T> * kStep<T>;
  if (segment < kStep<T>) segment = kStep<T>;
  plan.segment = segment < num_terms ? segment : num_terms;
  plan.num_segments = ceil_div(problem.bank_rows, plan.segment);
  plan.steps_of_segment = ceil_div(plan.segment, kStep<T>);
  plan.flights_of_segment = ceil_div(plan.segment, kFlight<T>);
  plan.lanes = 1;
  while (plan.lanes < kWarp && plan.lanes < problem.width) plan.lanes *= 2;
  plan.num_column_blocks = ceil_div(problem.width, plan.lanes);
  plan.blocks_own_columns = backward && plan.num_circles != 1;
  return plan;
}

template <typename T>
RingWorkspace<T> take_workspace(Workspace& memory, const EchoProblem& problem, const RingPlan& plan, bool backward) {
  RingWorkspace<T> workspace{};
  workspace.is_exact = memory.take<bool>(plan.num_circles * plan.items_of_circle());
  if (backward) workspace.checkpoints = memory.take<T>(plan.num_segments * plan.flights_of_segment * problem.width);
  if (plan.blocks_own_columns) workspace.accumulators = memory.take<T>(2 * problem.bank_rows * problem.width);
  return workspace;
}

template <typename T>
int64_t workspace_bytes(const EchoProblem& problem, bool backward, const DeviceLimits& limits) {
  // With the rows' own terms or without, whichever needs more.
  int64_t most = 0;
  for (const bool has_rows : {false, true}) {
    Workspace memory(nullptr);
    take_workspace<T>(memory, problem, make_plan<T>(problem, has_rows, backward, limits), backward);
    if (memory.used() > most) most = memory.used();
  }
  return most;
}

// With one group of lanes for each item, unless blocks own columns.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_items(void (*kernel)(Parameters...), int64_t num_items, const RingPlan& plan, cudaStream_t stream,
                         const Arguments&... arguments) {
  const int groups = kThreads / plan.lanes;
  int64_t blocks = plan.blocks_own_columns ? plan.num_column_blocks : ceil_div(num_items, groups);
  if (blocks > kMaxBlocks) blocks = kMaxBlocks;
  return launch(kernel, dim3(static_cast<unsigned>(blocks)), kThreads, sizeof(DrawnRows) * static_cast<size_t>(groups),
                stream, arguments...);
}

template <typename Storage>
const char* ring_forward(const EchoProblem& problem, const EchoForward& io, const DeviceLimits& limits,
                         cudaStream_t stream) {
  using T = Compute<Storage>;
  const RingPlan plan = make_plan<T>(problem, io.f != nullptr, false, limits);
  Workspace memory(io.workspace);
  bool* is_exact = take_workspace<T>(memory, problem, plan, false).is_exact;
  const int64_t items = plan.num_circles * plan.items_of_circle();
  ECHO_EXT_CUDA_CHECK(launch_items(ring_forward_kernel<Storage>, items, plan, stream, problem, io, plan, is_exact));
  ECHO_EXT_CUDA_CHECK(launch_items(ring_forward_exact_kernel<Storage>, items * plan.steps_of_segment, plan, stream,
                                   problem, io, plan, is_exact));
  return nullptr;
}

template <typename Storage>
const char* ring_backward(const EchoProblem& problem, const EchoBackward& io, const DeviceLimits& limits,
                          cudaStream_t stream) {
  using T = Compute<Storage>;
  const RingPlan plan = make_plan<T>(problem, io.s != nullptr, true, limits);
  Workspace memory(io.workspace);
  const RingWorkspace<T> workspace = take_workspace<T>(memory, problem, plan, true);
  const int64_t count = problem.bank_rows * problem.width, items = plan.items_of_circle();
  if (plan.blocks_own_columns)
    ECHO_EXT_CUDA_CHECK(cudaMemsetAsync(workspace.accumulators, 0, static_cast<size_t>(2 * count) * sizeof(T), stream));
  ECHO_EXT_CUDA_CHECK(launch_items(ring_backward_kernel<Storage>, items, plan, stream, problem, io, plan, workspace));
  ECHO_EXT_CUDA_CHECK(launch_items(ring_backward_exact_kernel<Storage>, items * plan.steps_of_segment, plan, stream,
                                   problem, io, plan, workspace));
  if (plan.blocks_own_columns) {
    const int64_t blocks = ceil_div(count, kThreads), most_blocks = static_cast<int64_t>(limits.multiprocessors) * 16;
    const dim3 grid(static_cast<unsigned>(blocks < most_blocks ? blocks : most_blocks));
    ECHO_EXT_CUDA_CHECK(
        launch(ring_finish_kernel<Storage>, grid, kThreads, 0, stream, io, workspace.accumulators, count));
  }
  return nullptr;
}

}  // namespace

int64_t echo_ring_cuda_workspace_bytes(const EchoProblem& problem, bool backward, const DeviceLimits& limits) {
  return problem.dtype == DType::float64 ? workspace_bytes<double>(problem, backward, limits)
                                         : workspace_bytes<float>(problem, backward, limits);
}

const char* echo_ring_cuda_forward(const EchoProblem& problem, const EchoForward& io, const DeviceLimits& limits,
                                   cudaStream_t stream) {
  switch (problem.dtype) {
    case DType::float64: return ring_forward<double>(problem, io, limits, stream);
    case DType::float32: return ring_forward<float>(problem, io, limits, stream);
    case DType::bfloat16: return ring_forward<BFloat16>(problem, io, limits, stream);
    case DType::float16: return ring_forward<Float16>(problem, io, limits, stream);
  }
  return "echo_cuda_forward: unknown dtype";
}

const char* echo_ring_cuda_backward(const EchoProblem& problem, const EchoBackward& io, const DeviceLimits& limits,
                                    cudaStream_t stream) {
  switch (problem.dtype) {
    case DType::float64: return ring_backward<double>(problem, io, limits, stream);
    case DType::float32: return ring_backward<float>(problem, io, limits, stream);
    case DType::bfloat16: return ring_backward<BFloat16>(problem, io, limits, stream);
    case DType::float16: return ring_backward<Float16>(problem, io, limits, stream);
  }
  return "echo_cuda_backward: unknown dtype";
}

}  // namespace echo_ext
