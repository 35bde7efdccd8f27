// The exact method of ring sampling on CUDA: every window has exactly its terms, however slowly weights decay, in time
// that is linear in the number of rows. It is used where the scan (ring_cuda.cu) cannot establish that the weights
// vanish, and for circles that are too small for the scan.
//
// A step consists of a few consecutive positions, few enough for registers. A window from q in a step is the suffix of
// the step from q, as an affine map (tail, decay), followed by a prefix of what comes after the step:
//     tail + decay * prefix.
// The windows of a step have most of that prefix in common. It is the composition of precomputed maps of consecutive
// positions (ring_maps_cuda.h). Every sum is computed by one thread, so results are the same in every run.
#include "echo/ring_cuda.h"
#include "echo/ring_maps_cuda.h"

namespace echo_ext {
namespace {

constexpr int kThreads = 128;      // for steps
constexpr int kMapsThreads = 256;  // for maps
constexpr int kEnoughMaps = 64;    // on the highest level

// Whether any segment in the column blocks [first, first + count) of a circle must be computed. Called by all lanes of
// a warp, which get the same result.
struct ExactFlags {
  const bool* flags;  // null: compute everything
  int64_t num_segments, num_column_blocks;

  __device__ __forceinline__ bool any(int64_t circle, int64_t first, int64_t count) const {
    if (flags == nullptr) return true;
    bool found = false;
    for (int64_t i = threadIdx.x % kWarp; i < num_segments * count; i += kWarp)
      found = found || flags[(circle * num_segments + i / count) * num_column_blocks + first + i % count];
    return __any_sync(kFullWarp, found);
  }
  __device__ __forceinline__ bool any(const RingTeams& circles) const {
    if (flags == nullptr) return true;
    const int64_t all = num_segments * num_column_blocks;
    bool found = false;
    for (int64_t i = circles.begin * all + threadIdx.x % kWarp; i < circles.end * all; i += kWarp)
      found = found || flags[i];
    return __any_sync(kFullWarp, found);
  }
};

// What both passes share. MapOf<T> is the map that they compose of positions.
template <typename Io, template <typename> class MapOf, typename Storage>
struct ExactGroup : RingGroup<Storage> {
  using typename RingGroup<Storage>::T;
  using Map = MapOf<T>;
  const Io& io;
  const RingPlan& plan;
  MapTable<Map, T> maps;

  __device__ ExactGroup(const EchoProblem& problem, const Io& io_, const RingPlan& plan_, T* maps_)
      : RingGroup<Storage>(problem, io_.seed, io_.bank_f, io_.bank_s, windows_of(problem, has_rows(io_)), plan_.lanes),
        io(io_),
        plan(plan_),
        maps{maps_, problem.width} {}
};

// ---- Forward -------------------------------------------------------------------------------------------------------

template <typename Storage>
struct ExactForward : ExactGroup<EchoForward, AffineMap, Storage> {
  using Group = ExactGroup<EchoForward, AffineMap, Storage>;
  using Group::Group, Group::io, Group::plan, Group::maps;
  using typename Group::Map;
  using typename Group::T;

  // The map of at most kStepPositions positions.
  __device__ __forceinline__ Map map_of_positions(int64_t first, int count) {
    this->draw_rows(this->rows->following, first, count);
    Map map;
#pragma unroll
    for (int slot = 0; slot < kStepPositions<T>; slot += kLoadsInFlight<T>) {
      T term_f[kLoadsInFlight<T>], term_s[kLoadsInFlight<T>];
      this->load_terms(this->rows->following + slot, count - slot, term_f, term_s);
#pragma unroll
      for (int k = 0; k < kLoadsInFlight<T>; ++k)
        if (slot + k < count) map = map.then({{term_f[k], term_s[k]}});
    }
    return map;
  }

  // Adds the terms of `length` positions, or of fewer once the weights of all columns have vanished.
  __device__ __forceinline__ void add_terms(int64_t first_map, int64_t begin, int64_t length, T& sum, T& weight) {
    bool is_settled = false;
    for_each_run(plan.levels, this->problem.bank_rows, begin, length, [&](int level, int64_t first, int count) {
      for (int done = 0; done < count && !is_settled; done += kStepPositions<T>) {
        const int now = count - done < kStepPositions<T> ? count - done : kStepPositions<T>;
        Map all;
        if (level == 0) {
          all = map_of_positions(first + done, now);
        } else {
          const int64_t at = first_map + plan.levels.first[level] + first + done;
          all = map_of_maps(at, now);
        }
        sum += weight * all.numbers[0];
        weight *= all.numbers[1];
        is_settled = __all_sync(this->mask, has_vanished(weight));
      }
    });
  }

  __device__ __forceinline__ Map map_of_maps(int64_t at, int count) const {
    Map all;
#pragma unroll
    for (int i = 0; i < kStepPositions<T>; i += kLoadsInFlight<T>) {
      Map flight[kLoadsInFlight<T>];
#pragma unroll
      for (int k = 0; k < kLoadsInFlight<T>; ++k)
        if (i + k < count) flight[k] = maps.load(at + i + k, this->column);
#pragma unroll
      for (int k = 0; k < kLoadsInFlight<T>; ++k)
        if (i + k < count) all = all.then(flight[k]);
    }
    return all;
  }

  __device__ __forceinline__ int64_t num_starts(int64_t circle) const { return num_windows(this->problem, circle); }

  __device__ __forceinline__ void emit(int64_t q, int slot, T eps) {
    const int64_t at = this->owner(q, slot);
    if (at < 0 || !this->is_column) return;
    if (io.f != nullptr && !this->windows.at_own_row) eps = this->load(io.f, at) + this->load(io.s, at) * eps;
    static_cast<Storage*>(io.out)[at] = from_compute<Storage>(eps);
  }

  // Computes at most kStepPositions windows, each with its own end.
  __device__ __forceinline__ void step(int64_t first_map, int64_t first, int count) {
    const int64_t shared_terms = this->windows.num_terms - count;
    this->draw_here(first, count);
    T tails[kStepPositions<T>], decays[kStepPositions<T>], tail = 0, decay = 1;
#pragma unroll
    for (int k = kStepPositions<T> - 1; k >= 0; --k) {
      if (k >= count) continue;
      const T term_s = this->load(this->s, this->offset(this->row_here(k)));
      // The s of a window's last term is not a factor of anything.
      tail = this->load(this->f, this->offset(this->row_here(k))) + (k + 1 < count ? term_s * tail : 0);
      decay *= term_s;
      tails[k] = tail;
      decays[k] = decay;
    }
    T sum = 0, weight = 1;
    add_terms(first_map, first + count, shared_terms, sum, weight);
    this->draw_rows(this->rows->following, first + this->windows.num_terms, count - 1);
#pragma unroll
    for (int k = 0; k < kStepPositions<T>; ++k) {
      if (k >= count) continue;
      const bool ends_here = k == 0 && shared_terms == 0;
      emit(first + k, k, ends_here || decays[k] == 0 ? tails[k] : tails[k] + decays[k] * sum);
      if (k + 1 >= count || has_vanished(weight)) continue;
      sum += weight * this->load(this->f, this->offset(this->rows->following[k]));
      weight *= this->load(this->s, this->offset(this->rows->following[k]));
    }
  }
};

// ---- Backward ------------------------------------------------------------------------------------------------------

// The adjoint, position by position. With g_q the gradient of the window from q,
//     df_x = the sum, over all windows that contain x, of g_q * (the product of s from q to x),
//     ds_x = the same sum, where each summand is multiplied by the rest of its window after x.
template <typename Storage>
struct ExactBackward : ExactGroup<EchoBackward, WindowsMap, Storage> {
  using Group = ExactGroup<EchoBackward, WindowsMap, Storage>;
  using Group::io, Group::plan, Group::maps;
  using typename Group::Map;
  using typename Group::T;
  RingSums<T> sums;

  __device__ ExactBackward(const EchoProblem& problem, const EchoBackward& io_, const RingPlan& plan_, T* maps_,
                           const RingSums<T>& sums_ = {})
      : Group(problem, io_, plan_, maps_), sums(sums_) {}

  __device__ __forceinline__ int64_t num_starts(int64_t) const { return this->problem.bank_rows; }

  __device__ __forceinline__ T window_gradient(int64_t q, int slot) const {
    const int64_t at = this->owner(q, slot);
    if (at < 0) return 0;
    const T grad = this->load(io.grad, at);
    return has_grad_s(io, this->windows) ? grad * this->load(io.s, at) : grad;
  }

  __device__ __forceinline__ void emit(int slot, T to_f, T to_s) {
    if (this->is_column)
      store_gradients<Storage>(io, sums, this->circle, this->offset(this->row_here(slot)), to_f, to_s);
  }

  // Writes the gradient of the row's own s in f + s * eps.
  __device__ __forceinline__ void emit_row(int64_t q, int slot, T eps) {
    if (!has_grad_s(io, this->windows) || !this->is_column) return;
    const int64_t at = this->owner(q, slot);
    if (at >= 0) static_cast<Storage*>(io.grad_s)[at] = from_compute<Storage>(this->load(io.grad, at) * eps);
  }

  // The map of the windows that start at at most kStepPositions positions.
  __device__ __forceinline__ Map map_of_positions(int64_t first, int count) {
    this->draw_here(first, count);
    this->draw_rows(this->rows->following, first + this->windows.num_terms, count);
    Map map;
#pragma unroll
    for (int slot = 0; slot < kStepPositions<T>; slot += kLoadsInFlight<T> / 2) {
      Map flight[kLoadsInFlight<T> / 2];
#pragma unroll
      for (int k = 0; k < kLoadsInFlight<T> / 2; ++k) {
        if (slot + k >= count) continue;
        const int64_t here = this->offset(this->row_here(slot + k)),
                      following = this->offset(this->rows->following[slot + k]);
        const T term_s = this->load(this->s, here), grad = window_gradient(first + slot + k, slot + k);
        flight[k] = {{term_s, term_s * grad, this->load(this->f, following), this->load(this->s, following), 0}};
      }
#pragma unroll
      for (int k = 0; k < kLoadsInFlight<T> / 2; ++k)
        if (slot + k < count) map = map.then(flight[k]);
    }
    return map;
  }

  __device__ __forceinline__ Map map_of_maps(int64_t at, int count) const {
    Map all;
    for (int i = 0; i < count; ++i) all = all.then(maps.load(at + i, this->column));
    return all;
  }

  // Passes `length` windows. Returns the product of s at their starts.
  __device__ __forceinline__ T pass(int64_t first_map, int64_t begin, int64_t length, PassedWindows<T>& passed) {
    T weight = 1;
    for_each_run(plan.levels, this->problem.bank_rows, begin, length, [&](int level, int64_t first, int count) {
      if (level == 0) {
        for (int done = 0; done < count; done += kStepPositions<T>) {
          const Map map =
              map_of_positions(first + done, count - done < kStepPositions<T> ? count - done : kStepPositions<T>);
          weight *= map.numbers[0];
          map.pass(passed);
        }
        return;
      }
      const int64_t at = first_map + plan.levels.first[level] + first;
#pragma unroll 4
      for (int i = 0; i < count; ++i) {
        const Map map = maps.load(at + i, this->column);
        weight *= map.numbers[0];
        map.pass(passed);
      }
    });
    return weight;
  }

  // Computes the gradients of at most kStepPositions positions. A window that ends in the step is summed by itself. A
  // window that extends beyond the step is the suffix (tail, decay) of the step and a prefix of what follows it.
  __device__ __forceinline__ void step(int64_t first_map, int64_t begin, int count) {
    const int64_t num_terms = this->windows.num_terms, end = begin + count;
    PassedWindows<T> passed;
    const T weight = pass(first_map, end - num_terms, num_terms - count, passed);
    T to_f[kStepPositions<T>], to_s[kStepPositions<T>];
    if (__all_sync(this->mask, has_vanished(weight))) {
#pragma unroll
      for (int k = 0; k < kStepPositions<T>; ++k) to_f[k] = to_s[k] = 0;
    } else {
      add_ending_windows(begin, count, weight, to_f, to_s);
    }

    // The suffixes of the step that follow each position.
    this->draw_here(begin, count);
    this->draw_rows(this->rows->following, begin + num_terms, count);
    T tails[kStepPositions<T>], decays[kStepPositions<T>], tail = 0, decay = 1;
#pragma unroll
    for (int k = kStepPositions<T> - 1; k >= 0; --k) {
      if (k >= count) continue;
      tails[k] = tail;
      decays[k] = decay;
      const T term_s = this->load(this->s, this->offset(this->row_here(k)));
      tail = this->load(this->f, this->offset(this->row_here(k))) + term_s * tail;
      decay *= term_s;
    }
#pragma unroll
    for (int k = 0; k < kStepPositions<T>; ++k) {
      if (k >= count) continue;
      const T grad = window_gradient(begin + k, k), term_s = this->load(this->s, this->offset(this->row_here(k)));
      const T v = passed.v + grad, u = passed.u + grad * passed.sum;
      emit(k, to_f[k] + v, to_s[k] + (v * tails[k] + u * decays[k]));
      if (has_grad_s(io, this->windows))
        emit_row(begin + k, k,
                 this->load(this->f, this->offset(this->row_here(k))) + term_s * (tails[k] + decays[k] * passed.sum));
      passed.v = term_s * v;
      passed.u = term_s * u;
      if (has_vanished(passed.weight)) continue;
      passed.sum += passed.weight * this->load(this->f, this->offset(this->rows->following[k]));
      passed.weight *= this->load(this->s, this->offset(this->rows->following[k]));
    }
  }

  // The contribution of windows that end in the step: the window from begin + l + 1 - num_terms ends at begin + l.
  // `weight` is the product of s from the start of the first window that extends beyond the step to the beginning of
  // the step.
  __device__ __forceinline__ void add_ending_windows(int64_t begin, int count, T weight, T (&to_f)[kStepPositions<T>],
                                                     T (&to_s)[kStepPositions<T>]) {
    // First the products from the beginning of the step, stored in to_f. Then backward over the ends of the windows.
    this->draw_rows(this->rows->following, begin, count);
    T product = 1;
#pragma unroll
    for (int k = 0; k < kStepPositions<T>; ++k) {
      to_f[k] = product;
      to_s[k] = 0;
      if (k < count) product *= this->load(this->s, this->offset(this->rows->following[k]));
    }
    const int64_t first = begin + 1 - this->windows.num_terms;
    this->draw_here(first, count - 1);
    T reaching = 0, following = 0;  // the gradients that reach a position, and the same times the rest of their windows
#pragma unroll
    for (int k = kStepPositions<T> - 1; k >= 0; --k) {
      if (k >= count - 1) {
        to_f[k] = 0;
        continue;
      }
      const int64_t next = this->offset(this->rows->following[k + 1]);
      following = this->load(this->f, next) * reaching + this->load(this->s, next) * following;
      weight *= this->load(this->s, this->offset(this->row_here(k)));
      reaching += weight * window_gradient(first + k, k);
      to_s[k] = to_f[k] * following;
      to_f[k] *= reaching;
    }
  }
};

// ---- Kernels -------------------------------------------------------------------------------------------------------

template <typename Io, typename Storage>
struct ExactOf;
template <typename Storage>
struct ExactOf<EchoForward, Storage> {
  using type = ExactForward<Storage>;
};
template <typename Storage>
struct ExactOf<EchoBackward, Storage> {
  using type = ExactBackward<Storage>;
};
template <typename Io, typename Storage>
using Exact = typename ExactOf<Io, Storage>::type;

// Computes the two levels above `level`: each group composes kStepPositions children, and each block composes the maps
// of its groups.
template <typename Io, typename Storage>
__global__ void __launch_bounds__(kMapsThreads, sizeof(Compute<Storage>) == 8 ? 1 : 2)
    ring_maps_kernel(EchoProblem problem, Io io, RingPlan plan, ExactFlags flags, Compute<Storage>* maps, int level,
                     RingTeams teams) {
  using T = Compute<Storage>;
  using Group = Exact<Io, Storage>;
  using Map = typename Group::Map;
  if (!flags.any(teams)) return;
  Group group(problem, io, plan, maps);
  const int groups = kMapsThreads / plan.lanes, index = static_cast<int>(threadIdx.x) / plan.lanes;
  auto* composed = reinterpret_cast<T*>(reinterpret_cast<GroupRows<T>*>(dynamic_shared_memory) + groups);
  const int64_t children = maps_of_level(plan.levels, level, problem.bank_rows);
  const int64_t tiles = maps_of_level(plan.levels, level + 2, problem.bank_rows);
  for_each_item(teams, tiles * plan.num_column_blocks, 0, 1, [&](int64_t circle, int64_t item) {
    const int64_t tile = item / plan.num_column_blocks, column_block = item % plan.num_column_blocks;
    if (!flags.any(circle, column_block * plan.lanes / plan.scan_columns, 1)) return;
    group.start(circle, column_block);
    const int64_t first_map = (circle - teams.begin) * plan.levels.num_maps;
    const int64_t at = tile * groups + index, first = at * kStepPositions<T>;
    const int count = static_cast<int>(children - first < kStepPositions<T> ? children - first : kStepPositions<T>);
    Map map;
    if (count > 0) {
      map = level == 0 ? group.map_of_positions(first, count)
                       : group.map_of_maps(first_map + plan.levels.first[level] + first, count);
      if (group.is_column) group.maps.store(first_map + plan.levels.first[level + 1] + at, group.column, map);
    }
#pragma unroll
    for (int i = 0; i < Map::kNumbers; ++i) composed[i * kMapsThreads + threadIdx.x] = map.numbers[i];
    __syncthreads();
    if (index == 0) {
      for (int other = 1; other < groups; ++other) {
        Map next;
#pragma unroll
        for (int i = 0; i < Map::kNumbers; ++i)
          next.numbers[i] = composed[i * kMapsThreads + other * plan.lanes + group.lane];
        map = map.then(next);
      }
      if (group.is_column) group.maps.store(first_map + plan.levels.first[level + 2] + tile, group.column, map);
    }
    __syncthreads();
  });
}

// Computes a group's share of the steps of all circles.
template <typename Group>
__device__ __forceinline__ void do_steps(Group& group, const ExactFlags& flags, const RingTeams& teams) {
  const RingPlan& plan = group.plan;
  for_each_item(teams, plan.num_steps * plan.num_column_blocks, static_cast<int>(threadIdx.x) / plan.lanes,
                kThreads / plan.lanes, [&](int64_t circle, int64_t item) {
                  const int64_t begin = item / plan.num_column_blocks * plan.step,
                                column_block = item % plan.num_column_blocks;
                  if (flags.flags != nullptr &&
                      !flags.flags[(circle * plan.num_segments + begin / plan.segment) * plan.num_scan_column_blocks +
                                   column_block * plan.lanes / plan.scan_columns])
                    return;
                  const int64_t left = group.num_starts(circle) - begin;
                  if (left <= 0) return;
                  group.start(circle, column_block);
                  group.step((circle - teams.begin) * plan.levels.num_maps, begin,
                             static_cast<int>(left < plan.step ? left : plan.step));
                });
}

template <typename Storage>
__global__ void __launch_bounds__(kThreads, 2)
    ring_forward_exact_kernel(EchoProblem problem, EchoForward io, RingPlan plan, ExactFlags flags,
                              Compute<Storage>* maps, RingTeams teams) {
  if (!flags.any(teams)) return;
  ExactForward<Storage> group(problem, io, plan, maps);
  do_steps(group, flags, teams);
}

template <typename Storage>
__global__ void __launch_bounds__(kThreads, 2)
    ring_backward_exact_kernel(EchoProblem problem, EchoBackward io, RingPlan plan, ExactFlags flags,
                               Compute<Storage>* maps, RingSums<Compute<Storage>> sums, RingTeams teams) {
  if (!flags.any(teams)) return;
  ExactBackward<Storage> group(problem, io, plan, maps, sums);
  do_steps(group, flags, teams);
}

// ---- Launches ------------------------------------------------------------------------------------------------------

template <typename Storage, typename Io>
cudaError_t make_maps(const EchoProblem& problem, const Io& io, const RingPlan& plan, const RingTeams& circles,
                      const ExactFlags& flags, Compute<Storage>* maps, const DeviceLimits& limits,
                      cudaStream_t stream) {
  using Map = typename Exact<Io, Storage>::Map;
  const int groups = kMapsThreads / plan.lanes;
  const size_t shared_bytes = sizeof(GroupRows<Compute<Storage>>) * static_cast<size_t>(groups) +
                              sizeof(Compute<Storage>) * Map::kNumbers * static_cast<size_t>(kMapsThreads);
  for (int level = 0; level < plan.levels.count; level += 2) {
    const int64_t tiles = maps_of_level(plan.levels, level + 2, problem.bank_rows) * plan.num_column_blocks;
    const cudaError_t status = launch_teams(ring_maps_kernel<Io, Storage>, kMapsThreads, shared_bytes, plan, circles,
                                            tiles, limits, stream, problem, io, plan, flags, maps, level);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

template <typename T>
int log_of_step() {
  return sizeof(T) == 8 ? 3 : 4;
}

template <typename T>
void plan_exact(const EchoProblem& problem, const Windows& windows, bool backward, RingPlan* plan) {
  const int64_t num_starts = backward || problem.rows > problem.bank_rows ? problem.bank_rows : problem.rows;
  plan->step = windows.num_terms < kStepPositions<T> ? static_cast<int>(windows.num_terms) : kStepPositions<T>;
  plan->num_steps = ceil_div(num_starts, plan->step);
  plan->lanes = lanes_for(problem.width, 1);
  plan->num_column_blocks = ceil_div(problem.width, plan->lanes);
  RingLevels& levels = plan->levels;
  levels = {};
  const auto grow = [&](int by) {
    const int level = ++levels.count;
    levels.log_size[level] = levels.log_size[level - 1] + by;
    levels.first[level] = levels.num_maps;
    levels.num_maps += maps_of_level(levels, level, problem.bank_rows);
  };
  int log_groups = 0;
  while (1 << log_groups < kMapsThreads / plan->lanes) ++log_groups;
  // Add levels as long as there are many maps and each covers fewer positions than a window.
  while (windows.num_terms > kStepPositions<T> && levels.count + 2 < RingLevels::kMaxLevels &&
         int64_t{1} << levels.log_size[levels.count] < windows.num_terms &&
         maps_of_level(levels, levels.count, problem.bank_rows) > kEnoughMaps) {
    grow(log_of_step<T>());
    grow(log_groups);
  }
}

}  // namespace

int64_t ring_maps_bytes(const EchoProblem& problem, const RingPlan& plan, bool backward, int64_t num_circles) {
  const int64_t numbers = backward ? WindowsMap<float>::kNumbers : AffineMap<float>::kNumbers;
  return num_circles * plan.levels.num_maps * numbers * problem.width * (problem.dtype == DType::float64 ? 8 : 4);
}

void plan_ring_exact(const EchoProblem& problem, const Windows& windows, bool backward, RingPlan* plan) {
  if (problem.dtype == DType::float64)
    plan_exact<double>(problem, windows, backward, plan);
  else
    plan_exact<float>(problem, windows, backward, plan);
}

template <typename Storage>
cudaError_t ring_forward_exact(const EchoProblem& problem, const EchoForward& io, const RingPlan& plan,
                               const RingTeams& circles, const bool* needs_exact, void* maps,
                               const DeviceLimits& limits, cudaStream_t stream) {
  auto* numbers = static_cast<Compute<Storage>*>(maps);
  const ExactFlags flags{needs_exact, plan.num_segments, plan.num_scan_column_blocks};
  const cudaError_t status = make_maps<Storage>(problem, io, plan, circles, flags, numbers, limits, stream);
  if (status != cudaSuccess) return status;
  const int groups = kThreads / plan.lanes;
  const size_t shared_bytes = sizeof(GroupRows<Compute<Storage>>) * static_cast<size_t>(groups);
  const int64_t blocks = ceil_div(plan.num_steps * plan.num_column_blocks, groups);
  return launch_teams(ring_forward_exact_kernel<Storage>, kThreads, shared_bytes, plan, circles, blocks, limits, stream,
                      problem, io, plan, flags, numbers);
}

template <typename Storage>
cudaError_t ring_backward_exact(const EchoProblem& problem, const EchoBackward& io, const RingPlan& plan,
                                const RingTeams& circles, const bool* needs_exact, void* maps,
                                const RingSums<Compute<Storage>>& sums, const DeviceLimits& limits,
                                cudaStream_t stream) {
  auto* numbers = static_cast<Compute<Storage>*>(maps);
  const ExactFlags flags{needs_exact, plan.num_segments, plan.num_scan_column_blocks};
  const cudaError_t status = make_maps<Storage>(problem, io, plan, circles, flags, numbers, limits, stream);
  if (status != cudaSuccess) return status;
  const int groups = kThreads / plan.lanes;
  const size_t shared_bytes = sizeof(GroupRows<Compute<Storage>>) * static_cast<size_t>(groups);
  const int64_t blocks = ceil_div(plan.num_steps * plan.num_column_blocks, groups);
  return launch_teams(ring_backward_exact_kernel<Storage>, kThreads, shared_bytes, plan, circles, blocks, limits,
                      stream, problem, io, plan, flags, numbers, sums);
}

#define ECHO_EXT_RING_EXACT(Storage)                                                                          \
  template cudaError_t ring_forward_exact<Storage>(const EchoProblem&, const EchoForward&, const RingPlan&,   \
                                                   const RingTeams&, const bool*, void*, const DeviceLimits&, \
                                                   cudaStream_t);                                             \
  template cudaError_t ring_backward_exact<Storage>(                                                          \
      const EchoProblem&, const EchoBackward&, const RingPlan&, const RingTeams&, const bool*, void*,         \
      const RingSums<Compute<Storage>>&, const DeviceLimits&, cudaStream_t);
ECHO_EXT_RING_EXACT(double)
ECHO_EXT_RING_EXACT(float)
ECHO_EXT_RING_EXACT(BFloat16)
ECHO_EXT_RING_EXACT(Float16)
#undef ECHO_EXT_RING_EXACT

}  // namespace echo_ext
