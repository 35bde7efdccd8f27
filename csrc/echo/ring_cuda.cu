// Echo noise with ring sampling on CUDA: noises are windows on a circle of bank rows, so that neighbors differ by one
// term and one scan makes them all.
//
// The circle is cut into segments, one for each block that runs at once. What lies behind a segment enters as one
// number for each column, added up until its weight has vanished; then the block goes back through the segment, and
// reads each value once and writes each result once. Where the weights have not vanished after a while, or windows end
// before, the segment is flagged, and done exactly (echo_ring_exact_cuda.cu). Nothing is added up by two threads:
// results are the same in every run.
//
// Traffic, in units of one tensor: 3 + 2 a forward and 7 + 4 a backward, where 3 and 5 are the minimum; a is the part
// of a segment that is read beyond it, in whole tiles. 2^20 x 64 float32 on 132 multiprocessors: segments of 7,952
// positions and tiles of 256, so that a is 0.03 where weights soon vanish, and 0.39 with s = 0.97, whose weight is
// 2^-126 after 2,867 terms.
#include <initializer_list>

#include "echo/kernels_cuda.h"
#include "echo/ring_cuda.h"
#include "echo/ring_scan_cuda.h"

namespace echo_ext {
namespace {

// ---- Forward -------------------------------------------------------------------------------------------------------

// With the terms of this group's positions; those it does not have change nothing.
template <typename Storage, int kColumns, int kPositions, int kNumbers>
struct ScanTerms : ScanBlock<Storage, kColumns, kPositions, kNumbers> {
  using Block = ScanBlock<Storage, kColumns, kPositions, kNumbers>;
  using typename Block::Exchanged;
  using typename Block::T;
  using typename Block::Value;
  const void* bank_f;
  const void* bank_s;
  Value f[kPositions], s[kPositions];

  __device__ ScanTerms(const EchoProblem& problem, const int64_t* seed, const void* bank_f_, const void* bank_s_,
                       const Windows& windows, int lanes)
      : Block(problem, seed, windows, lanes), bank_f(bank_f_), bank_s(bank_s_) {}

  __device__ __forceinline__ void load(int k, const int32_t* row, int share) {
    if (k < share) {
      const int64_t at = this->offset(row[k]);
      f[k] = load_columns<Storage, kColumns>(bank_f, at);
      s[k] = load_columns<Storage, kColumns>(bank_s, at);
    } else {
      f[k] = filled<kColumns, T>(0);
      s[k] = filled<kColumns, T>(1);
    }
  }
  __device__ __forceinline__ void load(int set, int count) {
    const int32_t* row = this->drawn(set);
    const int share = this->share(count);
#pragma unroll
    for (int k = 0; k < kPositions; ++k) load(k, row, share);
  }

  // t -> first + second * t: from what follows the group's positions to the window from the first of them.
  __device__ __forceinline__ void compose(Exchanged* own) const {
    own->numbers[0] = filled<kColumns, T>(0);
    own->numbers[1] = filled<kColumns, T>(1);
#pragma unroll
    for (int k = kPositions - 1; k >= 0; --k) {
      own->numbers[0] = plus_product(f[k], s[k], own->numbers[0]);
      own->numbers[1] = product(s[k], own->numbers[1]);
    }
  }

  // Adds terms from `position` on to sum until all weights have vanished; how many are in, or limit + 1 where the
  // weights have not vanished at the limit.
  __device__ __forceinline__ int64_t add_ahead(int64_t position, int64_t limit, Value* sum) {
    Value weight = filled<kColumns, T>(1);
    for (int64_t done = 0; done < limit; done += this->tile()) {
      const int count = static_cast<int>(limit - done < this->tile() ? limit - done : this->tile());
      this->draw(0, position + done, count);
      load(0, count);
      Exchanged own{};
      compose(&own);
      const Exchanged* all = this->meet(own);
#pragma unroll 4
      for (int g = 0; g < this->groups; ++g) {
        const Exchanged one = all[g * this->lanes];
        *sum = plus_product(*sum, weight, one.numbers[0]);
        weight = product(weight, one.numbers[1]);
      }
      if (this->all_vanished(weight)) return done + count;
    }
    return limit + 1;
  }

  // What enters a group, given what follows the tile, in place of which is left what the tile hands on.
  __device__ __forceinline__ Value enter_from_behind(const Exchanged* all, Value* eps) const {
    Value own = *eps;
#pragma unroll 4
    for (int g = this->groups - 1; g >= 0; --g) {
      const Exchanged one = all[g * this->lanes];
      if (g == this->group) own = *eps;
      *eps = plus_product(one.numbers[0], one.numbers[1], *eps);
    }
    return own;
  }
};

template <typename Storage, int kColumns>
struct ScanForward : ScanTerms<Storage, kColumns, kStep<Compute<Storage>>, 2> {
  static constexpr int kPositions = kStep<Compute<Storage>>;
  using Terms = ScanTerms<Storage, kColumns, kPositions, 2>;
  using typename Terms::Exchanged;
  using typename Terms::T;
  using typename Terms::Value;
  const EchoForward& io;

  __device__ ScanForward(const EchoProblem& problem, const EchoForward& io_, const RingPlan& plan)
      : Terms(problem, io_.seed, io_.bank_f, io_.bank_s, windows_of(problem, io_.f != nullptr), plan.scan_lanes),
        io(io_) {}

  __device__ __forceinline__ void emit(int64_t q, const int32_t* row, Value eps) {
    if (!this->is_column) return;
    if (this->problem.exclude_self) {
      store_columns<Storage, kColumns>(io.out, this->offset(row[this->own_row]), eps);
      return;
    }
    const int64_t at = (this->circle * this->problem.bank_rows + q) * this->problem.width + this->column;
    if (io.f != nullptr)
      eps = plus_product(load_columns<Storage, kColumns>(io.f, at), load_columns<Storage, kColumns>(io.s, at), eps);
    store_columns<Storage, kColumns>(io.out, at, eps);
  }

  // Windows [begin, end); false where their ends matter.
  __device__ __forceinline__ bool scan(int64_t begin, int64_t end, int64_t most_ahead) {
    const int64_t spare = this->windows.num_terms - (end - begin), limit = spare < most_ahead ? spare : most_ahead;
    Value eps = filled<kColumns, T>(0);
    if (this->add_ahead(end, limit, &eps) > limit) return false;
    const int tile = this->tile();
    int64_t first = begin + (end - 1 - begin) / tile * tile;
    int set = 0, share = this->share(static_cast<int>(end - first));
    this->draw(set, first, static_cast<int>(end - first));
    this->load(set, static_cast<int>(end - first));
    for (; first >= begin; first -= tile) {
      const bool is_last = first == begin;
      if (!is_last) this->draw(set ^ 1, first - tile, tile);
      Exchanged own;
      this->compose(&own);
      Value noise = this->enter_from_behind(this->meet(own), &eps);
      const int32_t *row = this->drawn(set), *next_row = this->drawn(set ^ 1);
      // The next tile's terms take the place of those that are done.
#pragma unroll
      for (int k = kPositions - 1; k >= 0; --k) {
        noise = plus_product(this->f[k], this->s[k], noise);
        if (k < share) emit(first + this->group * kPositions + k, row + k, noise);
        if (!is_last) Terms::load(k, next_row, kPositions);
      }
      set ^= 1;
      share = kPositions;
    }
    return true;
  }
};

template <typename Storage, int kColumns>
__global__ void __launch_bounds__(kScanThreads, 1)
    ring_forward_kernel(EchoProblem problem, EchoForward io, RingPlan plan, bool* is_exact, RingTeams teams) {
  ScanForward<Storage, kColumns> block(problem, io, plan);
  for_each_item(teams, plan.num_flags(), 0, 1, [&](int64_t circle, int64_t item) {
    block.start(circle, item % plan.num_scan_blocks);
    const int64_t begin = item / plan.num_scan_blocks * plan.segment, windows = num_windows(problem, circle);
    const int64_t end = begin + plan.segment < windows ? begin + plan.segment : windows;
    const bool done = begin >= end || block.scan(begin, end, plan.most_ahead);
    if (threadIdx.x == 0) is_exact[circle * plan.num_flags() + item] = !done;
  });
}

// ---- Backward ------------------------------------------------------------------------------------------------------

// The adjoint, seen from the positions: with g_p the gradient of the window from p,
//     v_x = g_x + s_{x-1} * v_{x-1},   df_x = v_x,   ds_x = v_x * (the window from x + 1),
// where what lies before a segment enters as one number too.
template <typename Storage, int kColumns>
struct ScanBackward : ScanTerms<Storage, kColumns, kFlight<Compute<Storage>>, 3> {
  static constexpr int kPositions = kFlight<Compute<Storage>>;
  using Terms = ScanTerms<Storage, kColumns, kPositions, 3>;
  using typename Terms::Exchanged;
  using typename Terms::T;
  using typename Terms::Value;
  const EchoBackward& io;
  RingSums<T> sums;
  T* checkpoints;  // of this block: what follows each tile of a segment
  Value grad[kPositions];

  __device__ ScanBackward(const EchoProblem& problem, const EchoBackward& io_, const RingPlan& plan,
                          const RingSums<T>& sums_, T* checkpoints_)
      : Terms(problem, io_.seed, io_.bank_f, io_.bank_s, windows_of(problem, io_.s != nullptr), plan.scan_lanes),
        io(io_),
        sums(sums_),
        checkpoints(checkpoints_ + blockIdx.x * plan.tiles_of_segment * plan.scan_columns + this->lane * kColumns) {}

  __device__ __forceinline__ bool has_grad_s() const { return io.s != nullptr && !this->windows.at_own_row; }

  __device__ __forceinline__ void load_gradient(int k, int64_t q, const int32_t* row, int share) {
    grad[k] = filled<kColumns, T>(0);
    if (k >= share) return;
    const int64_t at = this->owner(q, row + k);
    if (at < 0) return;
    grad[k] = load_columns<Storage, kColumns>(io.grad, at);
    if (has_grad_s()) grad[k] = product(grad[k], load_columns<Storage, kColumns>(io.s, at));
  }

  __device__ __forceinline__ int64_t position(int64_t first) const { return first + this->group * kPositions; }

  // v -> third + second * v: from what comes before the group's positions to what they hand on.
  __device__ __forceinline__ void compose_gradients(Exchanged* own) const {
    own->numbers[1] = filled<kColumns, T>(1);
    own->numbers[2] = filled<kColumns, T>(0);
#pragma unroll
    for (int k = 0; k < kPositions; ++k) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
        own->numbers[2].at[c] = this->s[k].at[c] * (own->numbers[2].at[c] + grad[k].at[c]);
      own->numbers[1] = product(own->numbers[1], this->s[k]);
    }
  }

  // As add_ahead, of the windows that start before `position`.
  __device__ __forceinline__ int64_t add_earlier(int64_t position, int64_t limit, Value* carry) {
    Value weight = filled<kColumns, T>(1);
    for (int64_t done = 0; done < limit; done += this->tile()) {
      const int count = static_cast<int>(limit - done < this->tile() ? limit - done : this->tile());
      const int64_t first = position - done - count;
      this->draw(0, first, count);
      const int32_t* row = this->drawn(0);
      const int share = this->share(count);
#pragma unroll
      for (int k = 0; k < kPositions; ++k) {
        this->s[k] =
            k < share ? load_columns<Storage, kColumns>(this->bank_s, this->offset(row[k])) : filled<kColumns, T>(1);
        load_gradient(k, this->position(first) + k, row, share);
      }
      Exchanged own{};
      compose_gradients(&own);
      const Exchanged* all = this->meet(own);
#pragma unroll 4
      for (int g = this->groups - 1; g >= 0; --g) {
        const Exchanged one = all[g * this->lanes];
        *carry = plus_product(*carry, weight, one.numbers[2]);
        weight = product(weight, one.numbers[1]);
      }
      if (this->all_vanished(weight)) return done + count;
    }
    return limit + 1;
  }

  // Down through the segment; leaves what follows each tile.
  __device__ __forceinline__ void scan_down(int64_t begin, int64_t end, Value eps) {
    const int tile = this->tile();
    int64_t first = begin + (end - 1 - begin) / tile * tile;
    int set = 0;
    this->draw(set, first, static_cast<int>(end - first));
    Terms::load(set, static_cast<int>(end - first));
    for (; first >= begin; first -= tile) {
      Exchanged own{};
      this->compose(&own);
      if (first > begin) {
        set ^= 1;
        this->draw(set, first - tile, tile);
        Terms::load(set, tile);
      }
      if (this->group == 0) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c)
          checkpoints[(first - begin) / tile * (this->lanes * kColumns) + c] = eps.at[c];
      }
      this->enter_from_behind(this->meet(own), &eps);
    }
    __syncthreads();
  }

  __device__ __forceinline__ void load_all(int k, int64_t first, const int32_t* row, int share) {
    Terms::load(k, row, share);
    load_gradient(k, position(first) + k, row, share);
  }

  __device__ __forceinline__ void emit(const int32_t* row, const Value& to_f, const Value& to_s) {
    const int64_t at = this->offset(*row);
    if (!this->is_column) return;
    if (sums.f == nullptr) {
      store_columns<Storage, kColumns>(io.grad_bank_f, at, to_f);
      store_columns<Storage, kColumns>(io.grad_bank_s, at, to_s);
      return;
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) store_gradients<Storage>(io, sums, this->circle, at + c, to_f.at[c], to_s.at[c]);
  }

  // The gradient of the row's own s in f + s * eps.
  __device__ __forceinline__ void emit_row(int64_t q, const int32_t* row, const Value& eps) {
    if (!has_grad_s() || !this->is_column) return;
    const int64_t at = this->owner(q, row);
    if (at >= 0)
      store_columns<Storage, kColumns>(io.grad_s, at, product(load_columns<Storage, kColumns>(io.grad, at), eps));
  }

  // What enters a group from before, given what comes before the tile, in place of which is left what it hands on.
  __device__ __forceinline__ Value enter_from_before(const Exchanged* all, Value* carry) const {
    Value own = *carry;
#pragma unroll 4
    for (int g = 0; g < this->groups; ++g) {
      const Exchanged one = all[g * this->lanes];
      if (g == this->group) own = *carry;
      *carry = plus_product(one.numbers[2], one.numbers[1], *carry);
    }
    return own;
  }

  __device__ __forceinline__ void scan_up(int64_t begin, int64_t end, Value carry) {
    const int tile = this->tile();
    int set = 0;
    const auto count_at = [&](int64_t first) { return static_cast<int>(end - first < tile ? end - first : tile); };
    this->draw(set, begin, count_at(begin));
#pragma unroll
    for (int k = 0; k < kPositions; ++k) load_all(k, begin, this->drawn(set), this->share(count_at(begin)));
    for (int64_t first = begin; first < end; first += tile) {
      const bool is_last = first + tile >= end;
      const int share = this->share(count_at(first)), next_share = is_last ? 0 : this->share(count_at(first + tile));
      if (!is_last) this->draw(set ^ 1, first + tile, count_at(first + tile));
      Exchanged own;
      this->compose(&own);
      compose_gradients(&own);
      Value eps;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) eps.at[c] = checkpoints[(first - begin) / tile * (this->lanes * kColumns) + c];
      const Exchanged* all = this->meet(own);
      eps = this->enter_from_behind(all, &eps);
      Value v = enter_from_before(all, &carry);
      const int32_t *row = this->drawn(set), *next_row = this->drawn(set ^ 1);
#pragma unroll
      for (int k = kPositions - 1; k >= 0; --k) {
        const Value here = plus_product(this->f[k], this->s[k], eps);
        if (k < share) emit_row(position(first) + k, row + k, here);
        this->f[k] = eps;  // from now on the window from behind
        eps = here;
      }
      // The next tile's terms take the place of those that are done.
#pragma unroll
      for (int k = 0; k < kPositions; ++k) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) v.at[c] += grad[k].at[c];
        if (k < share) emit(row + k, v, product(v, this->f[k]));
        v = product(this->s[k], v);
        if (!is_last) load_all(k, first + tile, next_row, next_share);
      }
      set ^= 1;
    }
  }

  // The gradients of positions [begin, end); false where windows' ends matter.
  __device__ __forceinline__ bool scan(int64_t begin, int64_t end, int64_t most_ahead) {
    // Every window that counts must end beyond what counts behind the segment.
    const int64_t spare = this->windows.num_terms - (end - begin);
    const auto smaller = [](int64_t a, int64_t b) { return a < b ? a : b; };
    Value eps = filled<kColumns, T>(0), carry = filled<kColumns, T>(0);
    const int64_t limit = smaller(spare, most_ahead), num_behind = this->add_ahead(end, limit, &eps);
    if (num_behind > limit) return false;
    const int64_t limit_before = smaller(spare - num_behind, most_ahead);
    if (add_earlier(begin, limit_before, &carry) > limit_before) return false;
    scan_down(begin, end, eps);
    scan_up(begin, end, carry);
    return true;
  }
};

template <typename Storage, int kColumns>
__global__ void __launch_bounds__(kScanThreads, 1)
    ring_backward_kernel(EchoProblem problem, EchoBackward io, RingPlan plan, RingSums<Compute<Storage>> sums,
                         Compute<Storage>* checkpoints, bool* is_exact, RingTeams teams) {
  ScanBackward<Storage, kColumns> block(problem, io, plan, sums, checkpoints);
  for_each_item(teams, plan.num_flags(), 0, 1, [&](int64_t circle, int64_t item) {
    block.start(circle, item % plan.num_scan_blocks);
    const int64_t begin = item / plan.num_scan_blocks * plan.segment, bank_rows = problem.bank_rows;
    const int64_t end = begin + plan.segment < bank_rows ? begin + plan.segment : bank_rows;
    const bool done = block.scan(begin, end, plan.most_ahead);
    if (threadIdx.x == 0) is_exact[circle * plan.num_flags() + item] = !done;
  });
}

// ---- Launch --------------------------------------------------------------------------------------------------------

constexpr int64_t kMostLaunchedCircles = 16;  // of one call, in launches of their own

// Read behind a segment until it is flagged.
constexpr int kMostSegmentsAhead = 2, kMostTilesAhead = 16;

// Cuts circles into a segment for each block that runs at once, where windows are long enough for that and the bank is
// not so small that maps of it cost no more. `num_starts` are all that a launch scans, `most` those of a circle.
void plan_segments(int64_t num_starts, int64_t most, int64_t bank_rows, int64_t num_terms, int64_t tile, int step,
                   RingPlan* plan) {
  const int64_t blocks = plan->scan_blocks > plan->num_scan_blocks ? plan->scan_blocks / plan->num_scan_blocks : 1;
  const int64_t positions = num_starts < bank_rows ? bank_rows : num_starts;
  if (num_terms < 2 * tile || 2 * positions < blocks * tile) return;
  int64_t segment = ceil_div(num_starts, blocks);
  if (segment < tile) segment = tile;
  if (segment > num_terms / 2) segment = num_terms / 2;
  if (segment > most) segment = most;
  plan->segment = ceil_div(segment, step) * step;
  plan->num_segments = ceil_div(most, plan->segment);
  plan->tiles_of_segment = ceil_div(plan->segment, tile);
  // Few segments of a large bank may look further, in all about as far as maps would.
  plan->most_ahead = bank_rows / plan->num_segments;
  if (plan->most_ahead > kMostTilesAhead * tile) plan->most_ahead = kMostTilesAhead * tile;
  if (plan->most_ahead < kMostSegmentsAhead * plan->segment) plan->most_ahead = kMostSegmentsAhead * plan->segment;
}

// Many circles that do not fill the device one by one are done side by side, for copies of the gradients.
void plan_copies(const EchoProblem& problem, int64_t tile, const DeviceLimits& limits, RingPlan* plan) {
  if (plan->num_circles == 1) return;
  const bool fills = 2 * problem.bank_rows * plan->num_scan_blocks >= plan->scan_blocks * tile;
  plan->blocks_own_copies = plan->num_circles > kMostLaunchedCircles && !fills;
  plan->num_copies = plan->blocks_own_copies ? ceil_div(plan->num_circles, 2) : 1;
  if (plan->num_copies > limits.multiprocessors) plan->num_copies = limits.multiprocessors;
}

// For so many columns a lane.
template <typename Storage, int kColumns>
cudaError_t make_plan(const EchoProblem& problem, bool has_rows, bool backward, const DeviceLimits& limits,
                      RingPlan* plan) {
  using Forward = ScanForward<Storage, kColumns>;
  using Backward = ScanBackward<Storage, kColumns>;
  const Windows windows = windows_of(problem, has_rows);
  *plan = {};
  plan->num_circles = num_circles(draws_of(problem, 0), problem.rows);
  if (plan->num_circles == 0) plan->num_circles = 1;  // a bank that nothing is drawn from has gradients of zero
  plan_ring_exact(problem, windows, backward, plan);
  plan->scan_lanes = lanes_for(ceil_div(problem.width, kColumns), kLeastScanLanes);
  plan->scan_columns = plan->scan_lanes * kColumns;
  plan->num_scan_blocks = ceil_div(problem.width, plan->scan_columns);
  const size_t shared_bytes =
      backward ? Backward::shared_bytes(plan->scan_lanes) : Forward::shared_bytes(plan->scan_lanes);
  int resident = 0;
  const cudaError_t status =
      backward ? resident_blocks(ring_backward_kernel<Storage, kColumns>, kScanThreads, shared_bytes, &resident)
               : resident_blocks(ring_forward_kernel<Storage, kColumns>, kScanThreads, shared_bytes, &resident);
  if (status != cudaSuccess) return status;
  plan->scan_blocks = static_cast<int64_t>(resident > 0 ? resident : 1) * limits.multiprocessors;
  const int64_t tile = kScanThreads / plan->scan_lanes * (backward ? Backward::kPositions : Forward::kPositions);
  int64_t most = problem.bank_rows, num_starts = problem.bank_rows;  // of a launch
  if (backward) {
    plan_copies(problem, tile, limits, plan);
    if (plan->blocks_own_copies) num_starts *= limits.multiprocessors;
  } else {
    num_starts = problem.rows;
    if (most > num_starts) most = num_starts;
  }
  if (resident == 0 || shared_bytes > static_cast<size_t>(limits.shared_bytes)) return cudaSuccess;
  plan_segments(num_starts, most, problem.bank_rows, windows.num_terms, tile, kStep<Compute<Storage>>, plan);
  return cudaSuccess;
}

template <typename T>
struct RingWorkspace {
  bool* is_exact;  // [circle][segment][block of columns]
  void* maps;
  T* checkpoints;  // [block][tile of a segment][column of a block]
  T* sums;         // [f, s][copy][row][column]
};

template <typename Storage>
RingWorkspace<Compute<Storage>> take_workspace(Workspace& memory, const EchoProblem& problem, const RingPlan& plan,
                                               bool backward) {
  using T = Compute<Storage>;
  RingWorkspace<T> workspace{};
  if (plan.num_segments > 0) workspace.is_exact = memory.take<bool>(plan.num_circles * plan.num_flags());
  const bool is_one_circle = backward && !plan.blocks_own_copies;
  workspace.maps = memory.take<char>(ring_maps_bytes(problem, plan, backward, is_one_circle ? 1 : plan.num_circles));
  if (backward) workspace.checkpoints = memory.take<T>(plan.scan_blocks * plan.tiles_of_segment * plan.scan_columns);
  // One copy adds up in the results, where they are precise enough.
  if (plan.num_copies > 1 || (plan.num_copies == 1 && sizeof(Storage) < sizeof(T)))
    workspace.sums = memory.take<T>(2 * plan.num_copies * problem.bank_rows * problem.width);
  return workspace;
}

// Adjacent columns of a lane; doubles fill its registers alone.
template <typename Storage>
constexpr int kWide = sizeof(Storage) == 8 ? 1 : 2;

// Whether adjacent columns of each can be loaded together.
template <typename Storage>
bool are_aligned(const EchoProblem& problem, std::initializer_list<const void*> tensors) {
  bool all = problem.width % kWide<Storage> == 0;
  for (const void* tensor : tensors)
    all = all && reinterpret_cast<uintptr_t>(tensor) % (kWide<Storage> * sizeof(Storage)) == 0;
  return all;
}

template <typename Storage>
int64_t workspace_bytes(const EchoProblem& problem, bool backward, const DeviceLimits& limits) {
  // With the rows' own terms or without, whatever the tensors' alignment, whichever needs more.
  int64_t most = 0;
  for (const bool has_rows : {false, true}) {
    for (const bool is_aligned : {false, true}) {
      RingPlan plan;
      const bool is_wide = is_aligned && are_aligned<Storage>(problem, {});
      const auto make = is_wide ? make_plan<Storage, kWide<Storage>> : make_plan<Storage, 1>;
      if (make(problem, has_rows, backward, limits, &plan) != cudaSuccess) return -1;
      Workspace memory(nullptr);
      take_workspace<Storage>(memory, problem, plan, backward);
      if (memory.bytes() > most) most = memory.bytes();
    }
  }
  return most;
}

constexpr int kFinishThreads = 256;

// Adds up the copies of each of the gradients' elements.
template <typename Storage>
__global__ void __launch_bounds__(kFinishThreads) ring_finish_kernel(EchoBackward io, RingSums<Compute<Storage>> sums) {
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < sums.copy_stride;
       at += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    Compute<Storage> to_f = 0, to_s = 0;
    for (int64_t copy = 0; copy < sums.num_copies; ++copy) {
      to_f += sums.f[copy * sums.copy_stride + at];
      to_s += sums.s[copy * sums.copy_stride + at];
    }
    static_cast<Storage*>(io.grad_bank_f)[at] = from_compute<Storage>(to_f);
    static_cast<Storage*>(io.grad_bank_s)[at] = from_compute<Storage>(to_s);
  }
}

template <typename Storage, int kColumns>
const char* ring_forward(const EchoProblem& problem, const EchoForward& io, const DeviceLimits& limits,
                         cudaStream_t stream) {
  RingPlan plan;
  ECHO_EXT_CUDA_CHECK((make_plan<Storage, kColumns>(problem, io.f != nullptr, false, limits, &plan)));
  Workspace memory(io.workspace);
  const auto workspace = take_workspace<Storage>(memory, problem, plan, false);
  const RingTeams circles{0, plan.num_circles, 1};
  if (plan.num_segments > 0)
    ECHO_EXT_CUDA_CHECK(launch_teams(ring_forward_kernel<Storage, kColumns>, kScanThreads,
                                     ScanForward<Storage, kColumns>::shared_bytes(plan.scan_lanes), plan, circles,
                                     plan.num_flags(), limits, stream, problem, io, plan, workspace.is_exact));
  ECHO_EXT_CUDA_CHECK(
      ring_forward_exact<Storage>(problem, io, plan, circles, workspace.is_exact, workspace.maps, limits, stream));
  return nullptr;
}

template <typename Storage, int kColumns>
const char* ring_backward(const EchoProblem& problem, const EchoBackward& io, const DeviceLimits& limits,
                          cudaStream_t stream) {
  using T = Compute<Storage>;
  RingPlan plan;
  ECHO_EXT_CUDA_CHECK((make_plan<Storage, kColumns>(problem, io.s != nullptr, true, limits, &plan)));
  Workspace memory(io.workspace);
  const RingWorkspace<T> workspace = take_workspace<Storage>(memory, problem, plan, true);
  const int64_t count = problem.bank_rows * problem.width;
  RingSums<T> sums{nullptr, nullptr, count, plan.num_copies};
  if (workspace.sums != nullptr) {
    sums.f = workspace.sums;
    sums.s = workspace.sums + plan.num_copies * count;
  } else if (plan.num_copies == 1) {
    sums.f = static_cast<T*>(io.grad_bank_f);
    sums.s = static_cast<T*>(io.grad_bank_s);
  }
  const int64_t circles_of_launch = plan.blocks_own_copies ? plan.num_circles : 1;
  for (int64_t circle = 0; circle < plan.num_circles; circle += circles_of_launch) {
    const RingTeams circles{circle, circle + circles_of_launch, 1};
    if (plan.num_segments > 0)
      ECHO_EXT_CUDA_CHECK(launch_teams(ring_backward_kernel<Storage, kColumns>, kScanThreads,
                                       ScanBackward<Storage, kColumns>::shared_bytes(plan.scan_lanes), plan, circles,
                                       plan.num_flags(), limits, stream, problem, io, plan, sums, workspace.checkpoints,
                                       workspace.is_exact));
    ECHO_EXT_CUDA_CHECK(ring_backward_exact<Storage>(problem, io, plan, circles, workspace.is_exact, workspace.maps,
                                                     sums, limits, stream));
  }
  if (workspace.sums != nullptr) {
    const int64_t blocks = ceil_div(count, kFinishThreads),
                  most_blocks = static_cast<int64_t>(limits.multiprocessors) * 8;
    const dim3 grid(static_cast<unsigned>(blocks < most_blocks ? blocks : most_blocks));
    ECHO_EXT_CUDA_CHECK(launch(ring_finish_kernel<Storage>, grid, kFinishThreads, 0, stream, io, sums));
  }
  return nullptr;
}

template <typename Storage>
const char* ring_forward(const EchoProblem& problem, const EchoForward& io, const DeviceLimits& limits,
                         cudaStream_t stream) {
  const bool own_rows = io.f != nullptr && !problem.exclude_self;
  return are_aligned<Storage>(problem,
                              {io.bank_f, io.bank_s, io.out, own_rows ? io.f : nullptr, own_rows ? io.s : nullptr})
             ? ring_forward<Storage, kWide<Storage>>(problem, io, limits, stream)
             : ring_forward<Storage, 1>(problem, io, limits, stream);
}

template <typename Storage>
const char* ring_backward(const EchoProblem& problem, const EchoBackward& io, const DeviceLimits& limits,
                          cudaStream_t stream) {
  const bool own_rows = io.s != nullptr && !problem.exclude_self;
  return are_aligned<Storage>(problem, {io.bank_f, io.bank_s, io.grad, io.grad_bank_f, io.grad_bank_s,
                                        own_rows ? io.s : nullptr, own_rows ? io.grad_s : nullptr})
             ? ring_backward<Storage, kWide<Storage>>(problem, io, limits, stream)
             : ring_backward<Storage, 1>(problem, io, limits, stream);
}

}  // namespace

int64_t echo_ring_cuda_workspace_bytes(const EchoProblem& problem, bool backward, const DeviceLimits& limits) {
  switch (problem.dtype) {
    case DType::float64: return workspace_bytes<double>(problem, backward, limits);
    case DType::float32: return workspace_bytes<float>(problem, backward, limits);
    case DType::bfloat16: return workspace_bytes<BFloat16>(problem, backward, limits);
    case DType::float16: return workspace_bytes<Float16>(problem, backward, limits);
  }
  return -1;
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
