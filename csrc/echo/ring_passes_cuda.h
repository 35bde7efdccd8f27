// The forward and the backward scan of one segment, see ring_cuda.cu.
#pragma once

#include "echo/ring_scan_cuda.h"

namespace echo_ext {
namespace {

// ---- Forward -------------------------------------------------------------------------------------------------------

// A block with the terms of its groups' positions. Missing positions are neutral: f = 0 and s = 1.
template <typename Io, typename Storage, int kColumns, int kPositions, int kNumbers>
struct ScanTerms : ScanBlock<Storage, kColumns, kPositions, kNumbers> {
  using Block = ScanBlock<Storage, kColumns, kPositions, kNumbers>;
  using typename Block::Exchanged;
  using typename Block::T;
  using typename Block::Value;
  const Io& io;
  Value f[kPositions], s[kPositions];

  __device__ ScanTerms(const EchoProblem& problem, const Io& io_, const RingPlan& plan)
      : Block(problem, io_.seed, windows_of(problem, has_rows(io_)), plan.scan_lanes), io(io_) {}

  __device__ __forceinline__ void load(int k, const int32_t* row, int share) {
    if (k < share) {
      const int64_t at = this->offset(row[k]);
      f[k] = load_columns<Storage, kColumns>(io.bank_f, at);
      s[k] = load_columns<Storage, kColumns>(io.bank_s, at);
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

  // The map t -> numbers[0] + numbers[1] * t, from the value after the group's positions to the window from the first
  // of them.
  __device__ __forceinline__ void compose(Exchanged* own) const {
    own->numbers[0] = filled<kColumns, T>(0);
    own->numbers[1] = filled<kColumns, T>(1);
#pragma unroll
    for (int k = kPositions - 1; k >= 0; --k) {
      own->numbers[0] = plus_product(f[k], s[k], own->numbers[0]);
      own->numbers[1] = product(s[k], own->numbers[1]);
    }
  }

  // Adds the terms from `position` on to `sum` until all weights have vanished. Returns the number of terms added, or
  // limit + 1 if the weights have not vanished at the limit.
  __device__ __forceinline__ int64_t add_following(int64_t position, int64_t limit, Value* sum) {
    Value weight = filled<kColumns, T>(1);
    for (int64_t done = 0; done < limit; done += this->tile()) {
      const int count = static_cast<int>(limit - done < this->tile() ? limit - done : this->tile());
      this->draw(0, position + done, count);
      load(0, count);
      Exchanged own{};
      compose(&own);
      const Exchanged* all = this->exchange_maps(own);
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

  // On entry, `eps` is the value after the tile; on return, the value at its beginning. Returns the value after this
  // group's positions.
  __device__ __forceinline__ Value incoming_from_following(const Exchanged* all, Value* eps) const {
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
struct ScanForward : ScanTerms<EchoForward, Storage, kColumns, kStepPositions<Compute<Storage>>, 2> {
  static constexpr int kPositions = kStepPositions<Compute<Storage>>;
  using Terms = ScanTerms<EchoForward, Storage, kColumns, kPositions, 2>;
  using Terms::io;
  using Terms::Terms;
  using typename Terms::Exchanged;
  using typename Terms::T;
  using typename Terms::Value;

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

  // Computes the windows [begin, end). Returns false, without a result, if the ends of windows matter.
  __device__ __forceinline__ bool scan(int64_t begin, int64_t end, int64_t max_ahead) {
    const int64_t margin = this->windows.num_terms - (end - begin), limit = margin < max_ahead ? margin : max_ahead;
    Value eps = filled<kColumns, T>(0);
    if (this->add_following(end, limit, &eps) > limit) return false;
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
      Value noise = this->incoming_from_following(this->exchange_maps(own), &eps);
      const int32_t *row = this->drawn(set), *next_row = this->drawn(set ^ 1);
      // Load the next tile's terms into the registers of those that are done.
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
    ring_forward_kernel(EchoProblem problem, EchoForward io, RingPlan plan, bool* needs_exact, RingTeams teams) {
  ScanForward<Storage, kColumns> block(problem, io, plan);
  for_each_item(teams, plan.num_flags(), 0, 1, [&](int64_t circle, int64_t item) {
    block.start(circle, item % plan.num_scan_column_blocks);
    const int64_t begin = item / plan.num_scan_column_blocks * plan.segment, windows = num_windows(problem, circle);
    const int64_t end = begin + plan.segment < windows ? begin + plan.segment : windows;
    const bool done = begin >= end || block.scan(begin, end, plan.max_ahead);
    if (threadIdx.x == 0) needs_exact[circle * plan.num_flags() + item] = !done;
  });
}

// ---- Backward ------------------------------------------------------------------------------------------------------

// The adjoint, position by position. With g_p the gradient of the window from p,
//     v_x = g_x + s_{x-1} * v_{x-1},   df_x = v_x,   ds_x = v_x * (the window from x + 1).
// What precedes a segment enters as one number for each column, too.
template <typename Storage, int kColumns>
struct ScanBackward : ScanTerms<EchoBackward, Storage, kColumns, kLoadsInFlight<Compute<Storage>>, 3> {
  static constexpr int kPositions = kLoadsInFlight<Compute<Storage>>;
  using Terms = ScanTerms<EchoBackward, Storage, kColumns, kPositions, 3>;
  using Terms::io;
  using typename Terms::Exchanged;
  using typename Terms::T;
  using typename Terms::Value;
  RingSums<T> sums;
  T* checkpoints;  // of this block: the value after each tile of a segment
  Value grad[kPositions];

  __device__ ScanBackward(const EchoProblem& problem, const EchoBackward& io_, const RingPlan& plan,
                          const RingSums<T>& sums_, T* checkpoints_)
      : Terms(problem, io_, plan),
        sums(sums_),
        checkpoints(checkpoints_ + blockIdx.x * plan.tiles_of_segment * plan.scan_columns + this->lane * kColumns) {}

  __device__ __forceinline__ void load_gradient(int k, int64_t q, const int32_t* row, int share) {
    grad[k] = filled<kColumns, T>(0);
    if (k >= share) return;
    const int64_t at = this->owner(q, row + k);
    if (at < 0) return;
    grad[k] = load_columns<Storage, kColumns>(io.grad, at);
    if (has_grad_s(io, this->windows)) grad[k] = product(grad[k], load_columns<Storage, kColumns>(io.s, at));
  }

  __device__ __forceinline__ int64_t position(int64_t first) const { return first + this->group * kPositions; }

  // The map v -> numbers[2] + numbers[1] * v, from the value before the group's positions to the one after them.
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

  // The same as add_following, for the windows that start before `position`.
  __device__ __forceinline__ int64_t add_preceding(int64_t position, int64_t limit, Value* carry) {
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
            k < share ? load_columns<Storage, kColumns>(io.bank_s, this->offset(row[k])) : filled<kColumns, T>(1);
        load_gradient(k, this->position(first) + k, row, share);
      }
      Exchanged own{};
      compose_gradients(&own);
      const Exchanged* all = this->exchange_maps(own);
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

  // Goes backward through the segment and stores the value after each tile.
  __device__ __forceinline__ void save_checkpoints(int64_t begin, int64_t end, Value eps) {
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
      this->incoming_from_following(this->exchange_maps(own), &eps);
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

  // Writes the gradient of the row's own s in f + s * eps.
  __device__ __forceinline__ void emit_row(int64_t q, const int32_t* row, const Value& eps) {
    if (!has_grad_s(io, this->windows) || !this->is_column) return;
    const int64_t at = this->owner(q, row);
    if (at >= 0)
      store_columns<Storage, kColumns>(io.grad_s, at, product(load_columns<Storage, kColumns>(io.grad, at), eps));
  }

  // On entry, `carry` is the value before the tile; on return, the value after it. Returns the value before this
  // group's positions.
  __device__ __forceinline__ Value incoming_from_preceding(const Exchanged* all, Value* carry) const {
    Value own = *carry;
#pragma unroll 4
    for (int g = 0; g < this->groups; ++g) {
      const Exchanged one = all[g * this->lanes];
      if (g == this->group) own = *carry;
      *carry = plus_product(one.numbers[2], one.numbers[1], *carry);
    }
    return own;
  }

  __device__ __forceinline__ void scan_gradients(int64_t begin, int64_t end, Value carry) {
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
      const Exchanged* all = this->exchange_maps(own);
      eps = this->incoming_from_following(all, &eps);
      Value v = incoming_from_preceding(all, &carry);
      const int32_t *row = this->drawn(set), *next_row = this->drawn(set ^ 1);
#pragma unroll
      for (int k = kPositions - 1; k >= 0; --k) {
        const Value here = plus_product(this->f[k], this->s[k], eps);
        if (k < share) emit_row(position(first) + k, row + k, here);
        this->f[k] = eps;  // from here on, f holds the window from the next position
        eps = here;
      }
      // Load the next tile's terms into the registers of those that are done.
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

  // Computes the gradients of the positions [begin, end). Returns false, without a result, if the ends of windows
  // matter.
  __device__ __forceinline__ bool scan(int64_t begin, int64_t end, int64_t max_ahead) {
    // The scan treats windows as endless. Therefore every window that contributes must be long enough to include all
    // following terms that matter.
    const int64_t margin = this->windows.num_terms - (end - begin);
    const auto smaller = [](int64_t a, int64_t b) { return a < b ? a : b; };
    Value eps = filled<kColumns, T>(0), carry = filled<kColumns, T>(0);
    const int64_t limit = smaller(margin, max_ahead), num_following = this->add_following(end, limit, &eps);
    if (num_following > limit) return false;
    const int64_t limit_before = smaller(margin - num_following, max_ahead);
    if (add_preceding(begin, limit_before, &carry) > limit_before) return false;
    save_checkpoints(begin, end, eps);
    scan_gradients(begin, end, carry);
    return true;
  }
};

template <typename Storage, int kColumns>
__global__ void __launch_bounds__(kScanThreads, 1)
    ring_backward_kernel(EchoProblem problem, EchoBackward io, RingPlan plan, RingSums<Compute<Storage>> sums,
                         Compute<Storage>* checkpoints, bool* needs_exact, RingTeams teams) {
  ScanBackward<Storage, kColumns> block(problem, io, plan, sums, checkpoints);
  for_each_item(teams, plan.num_flags(), 0, 1, [&](int64_t circle, int64_t item) {
    block.start(circle, item % plan.num_scan_column_blocks);
    const int64_t begin = item / plan.num_scan_column_blocks * plan.segment, bank_rows = problem.bank_rows;
    const int64_t end = begin + plan.segment < bank_rows ? begin + plan.segment : bank_rows;
    const bool done = block.scan(begin, end, plan.max_ahead);
    if (threadIdx.x == 0) needs_exact[circle * plan.num_flags() + item] = !done;
  });
}

}  // namespace
}  // namespace echo_ext
