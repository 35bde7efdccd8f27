// Permutation and replacement: every row its own draws.
//
// The bank is first laid out as tiles: for a few cache lines of columns, each bank row's f and s side by side, padded
// and in the computing type, so that a tile stays in the cache while all rows draw from it.
#include "echo_cpu.h"

#include <limits>

#include "cpu_kernel.h"
#include "parallel.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {
namespace {

constexpr int kDrawBatch = 64;
constexpr int kTermsPerCheck = 8;
static_assert(kDrawBatch % kTermsPerCheck == 0, "a check falls on the end of a batch");
constexpr int64_t kMostRowsPerTask = 64, kMostTermsPerTask = 1 << 18;

// A term is dropped only when all that remain together are below this share of the row's largest partial sum: far below
// what rounding the sum itself costs.
template <typename T>
constexpr T kNegligible = std::numeric_limits<T>::epsilon() / 64;

// One row's draws, a batch at a time.
struct RowDraws {
  const Draws& draws;
  const Bijection& order;
  int64_t row;
  DrawKey key;

  RowDraws(const Draws& draws_, const Bijection& order_, int64_t row_)
      : draws(draws_), order(order_), row(row_), key(draw_key(draws_.seed, static_cast<uint64_t>(row_))) {}

  // Writes the bank rows of terms [first, end), at most kDrawBatch of them; rows has room for kDrawBatch.
  void batch(int64_t first, int64_t end, int32_t* rows) const {
    const uint32_t start = static_cast<uint32_t>(first);
    if (draws.sampling != Sampling::permutation || order.is_small()) {
      for (uint32_t t = 0; t < end - first; ++t) rows[t] = draw(draws, order, key, row, start + t);
      return;
    }
    // The same as draw(), written so that it vectorises: few indices need more than one step of the bijection.
    uint32_t index[kDrawBatch];
    for (uint32_t t = 0; t < kDrawBatch; ++t)
      index[t] = order.step<Bijection::kHalfRounds>(key, std::min(start + t, order.size - 1));
    for (uint32_t t = 0; t < kDrawBatch; ++t)
      while (index[t] >= order.size) index[t] = order.step<Bijection::kHalfRounds>(key, index[t]);
    const uint32_t self = draws.exclude_self ? static_cast<uint32_t>(row) : std::numeric_limits<uint32_t>::max();
    for (uint32_t t = 0; t < kDrawBatch; ++t) rows[t] = static_cast<int32_t>(index[t] + (index[t] >= self ? 1u : 0u));
  }
};

// A column's bound on all that a row's remaining terms can add, per unit of weight: max|f| / (1 - max|s|), divided by
// kNegligible. NaN, which is below nothing, so that nothing is ever dropped, where |s| reaches 1 or a value is not
// finite: a sum that is infinite already may still become NaN. Never zero: where every f is 0, the gradient of f still
// is made of weights, none of which may be dropped before it is negligible itself.
template <typename T>
T tail_bound(T largest_f, T largest_s) {
  constexpr T kNone = std::numeric_limits<T>::quiet_NaN();
  if (!(largest_s < 1)) return kNone;
  const T bound = std::max(largest_f, std::numeric_limits<T>::min()) / ((1 - largest_s) * kNegligible<T>);
  return bound < std::numeric_limits<T>::infinity() ? bound : kNone;
}

template <typename T>
T larger_or_nan(T a, T b) {
  return b > a || b != b ? b : a;
}

// Lays out one tile and its columns' bounds.
template <typename Storage, typename P>
void fill_tile(const EchoProblem& problem, const void* bank_f, const void* bank_s, int64_t t, Compute<Storage>* tile,
               Compute<Storage>* bounds) {
  using T = Compute<Storage>;
  const Columns<Storage, P> columns(problem.width, t);
  alignas(64) T largest_f[P::kColumns] = {}, largest_s[P::kColumns] = {};
  in_pieces(0, problem.bank_rows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      T* f = tile + row * 2 * P::kColumns;
      T* s = f + P::kColumns;
      columns.read(bank_f, row).store_to(f);
      columns.read(bank_s, row).store_to(s);
      for (int c = 0; c < P::kColumns; ++c) {
        largest_f[c] = larger_or_nan(largest_f[c], std::abs(f[c]));
        largest_s[c] = larger_or_nan(largest_s[c], std::abs(s[c]));
      }
    }
  });
  for (int c = 0; c < P::kColumns; ++c) bounds[c] = tail_bound(largest_f[c], largest_s[c]);
}

template <typename T, typename P>
P row_noise(const T* tile, const P& bounds, const RowDraws& draws, int64_t num_terms) {
  P sum = P::filled(0), weight = P::filled(1), largest_sum = P::filled(0);
  int32_t rows[kDrawBatch];
  for (int64_t first = 0; first < num_terms; first += kDrawBatch) {
    const int64_t end = std::min(first + kDrawBatch, num_terms);
    draws.batch(first, end, rows);
    for (int64_t t = 0; t < end - first; ++t) {
      const T* f = tile + rows[t] * int64_t{2 * P::kColumns};
      sum = sum + weight * P::loaded(f);
      weight = weight * P::loaded(f + P::kColumns);
      if ((t + 1) % kTermsPerCheck != 0) continue;
      largest_sum = maximum(largest_sum, absolute(sum));
      if (all_less_equal(absolute(weight) * bounds, largest_sum)) return sum;
    }
  }
  return sum;
}

// One row's part of the gradients of a tile; returns the row's noise. weights and rows hold num_terms entries each
// (rows rounded up to whole batches).
template <typename T, typename P>
P row_gradient(const T* tile, T* gradient_tile, const P& bounds, const RowDraws& draws, int64_t num_terms,
               const P& grad, T* weights, int32_t* rows) {
  // Upwards: each term's weight. What remains must be negligible for the gradient too, where a term's own s is left out
  // of the product: left_out is the largest such product.
  P sum = P::filled(0), weight = P::filled(1), left_out = P::filled(0), largest_sum = P::filled(0);
  int64_t used = 0;
  for (bool settled = false; used < num_terms && !settled;) {
    const int64_t end = std::min(used + kDrawBatch, num_terms);
    draws.batch(used, end, rows + used);
    for (; used < end && !settled; ++used) {
      const T* f = tile + rows[used] * int64_t{2 * P::kColumns};
      const P s = P::loaded(f + P::kColumns);
      weight.store_to(weights + used * P::kColumns);
      sum = sum + weight * P::loaded(f);
      left_out = maximum(left_out * absolute(s), absolute(weight));
      weight = weight * s;
      if ((used + 1) % kTermsPerCheck != 0) continue;
      largest_sum = maximum(largest_sum, absolute(sum));
      settled = all_less_equal(left_out * bounds, largest_sum);
    }
  }
  // Downwards: each term's tail.
  P tail = P::filled(0);
  for (int64_t t = used - 1; t >= 0; --t) {
    const int64_t at = rows[t] * int64_t{2 * P::kColumns};
    const P flow = grad * P::loaded(weights + t * P::kColumns);
    T* grad_f = gradient_tile + at;
    T* grad_s = grad_f + P::kColumns;
    (P::loaded(grad_f) + flow).store_to(grad_f);
    (P::loaded(grad_s) + flow * tail).store_to(grad_s);
    tail = P::loaded(tile + at) + P::loaded(tile + at + P::kColumns) * tail;
  }
  return tail;
}

struct Layout {
  int64_t columns, tiles, tile_size;
  Layout(const EchoProblem& problem, int64_t columns_)
      : columns(columns_), tiles((problem.width + columns - 1) / columns), tile_size(problem.bank_rows * 2 * columns) {}
};

template <typename T>
struct ForwardWorkspace {
  T *tiles, *bounds;
  ForwardWorkspace(const Layout& layout, Workspace& workspace)
      : tiles(workspace.take<T>(layout.tiles * layout.tile_size)),
        bounds(workspace.take<T>(layout.tiles * layout.columns)) {}
};

// A tile's gradients and a row's weights, in each thread's slot.
template <typename T>
struct BackwardSlot {
  T *tile, *bounds, *gradients, *weights;
  int32_t* rows;
  BackwardSlot(const Layout& layout, int64_t num_terms, Workspace& workspace)
      : tile(workspace.take<T>(layout.tile_size)),
        bounds(workspace.take<T>(layout.columns)),
        gradients(workspace.take<T>(layout.tile_size)),
        weights(workspace.take<T>(num_terms * layout.columns)),
        rows(workspace.take<int32_t>(num_terms + kDrawBatch)) {}
};

struct Forward {
  const EchoProblem& problem;
  const EchoForward& io;
  int num_threads;

  template <typename Storage, typename P>
  void run() const {
    using T = Compute<Storage>;
    const Layout layout(problem, P::kColumns);
    Workspace memory(io.workspace);
    const ForwardWorkspace<T> workspace(layout, memory);
    parallel_for(layout.tiles, num_threads, [&](int64_t t, int) {
      fill_tile<Storage, P>(problem, io.bank_f, io.bank_s, t, workspace.tiles + t * layout.tile_size,
                            workspace.bounds + t * layout.columns);
    });
    const Draws draws = draws_of(problem, *io.seed);
    const Bijection order(num_candidates(draws));
    const int64_t rows_per_task =
        std::max<int64_t>(1, std::min(kMostRowsPerTask, kMostTermsPerTask / std::max<int64_t>(problem.num_terms, 1)));
    const int64_t row_tasks = (problem.rows + rows_per_task - 1) / rows_per_task;
    parallel_for(layout.tiles * row_tasks, num_threads, [&](int64_t task, int) {
      const int64_t t = task / row_tasks, first = task % row_tasks * rows_per_task;
      const Columns<Storage, P> columns(problem.width, t);
      const P bounds = P::loaded(workspace.bounds + t * layout.columns);
      for (int64_t row = first; row < std::min(first + rows_per_task, problem.rows); ++row) {
        P result = row_noise<T, P>(workspace.tiles + t * layout.tile_size, bounds, RowDraws(draws, order, row),
                                   problem.num_terms);
        if (io.f != nullptr) result = columns.read(io.f, row) + columns.read(io.s, row) * result;
        columns.write(io.out, row, result);
      }
    });
  }
};

struct Backward {
  const EchoProblem& problem;
  const EchoBackward& io;
  int num_threads;

  // A tile's gradients are one thread's work, so that rows add to them in their order.
  template <typename Storage, typename P>
  void run() const {
    using T = Compute<Storage>;
    const Layout layout(problem, P::kColumns);
    const Draws draws = draws_of(problem, *io.seed);
    const Bijection order(num_candidates(draws));
    Workspace sizes(nullptr);
    BackwardSlot<T>(layout, problem.num_terms, sizes);
    parallel_for(layout.tiles, num_threads, [&](int64_t t, int slot_index) {
      Workspace memory(static_cast<char*>(io.workspace) + slot_index * sizes.bytes());
      const BackwardSlot<T> slot(layout, problem.num_terms, memory);
      fill_tile<Storage, P>(problem, io.bank_f, io.bank_s, t, slot.tile, slot.bounds);
      in_pieces(0, layout.tile_size, [&](int64_t begin, int64_t end) {
        std::fill(slot.gradients + begin, slot.gradients + end, T(0));
      });
      Pulse pulse;
      const Columns<Storage, P> columns(problem.width, t);
      const P bounds = P::loaded(slot.bounds);
      for (int64_t row = 0; row < problem.rows; ++row) {
        const P grad_out = columns.read(io.grad, row);
        const P grad = io.s == nullptr ? grad_out : grad_out * columns.read(io.s, row);
        const P noise = row_gradient<T, P>(slot.tile, slot.gradients, bounds, RowDraws(draws, order, row),
                                           problem.num_terms, grad, slot.weights, slot.rows);
        pulse.after(problem.num_terms);
        if (io.s == nullptr) continue;
        if (problem.exclude_self) {
          T* own = slot.gradients + row * 2 * P::kColumns;
          (P::loaded(own) + grad_out).store_to(own);
          (P::loaded(own + P::kColumns) + grad_out * noise).store_to(own + P::kColumns);
        } else {
          columns.write(io.grad_s, row, grad_out * noise);
        }
      }
      in_pieces(0, problem.bank_rows, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const T* gradients = slot.gradients + row * 2 * P::kColumns;
          columns.write(io.grad_bank_f, row, P::loaded(gradients));
          columns.write(io.grad_bank_s, row, P::loaded(gradients + P::kColumns));
        }
      });
    });
  }
};

void forward(const EchoProblem& problem, const EchoForward& io, int num_threads) {
  dispatch<kMaxTileLines>(problem.dtype, problem.width, Forward{problem, io, num_threads});
}

void backward(const EchoProblem& problem, const EchoBackward& io, int num_threads) {
  dispatch<kMaxBackwardTileLines>(problem.dtype, problem.width, Backward{problem, io, num_threads});
}

struct ForwardSize {
  const EchoProblem& problem;
  int64_t& bytes;
  template <typename Storage, typename P>
  void run() const {
    Workspace sizes(nullptr);
    ForwardWorkspace<Compute<Storage>>(Layout(problem, P::kColumns), sizes);
    bytes = sizes.bytes();
  }
};

struct BackwardSize {
  const EchoProblem& problem;
  int64_t num_threads;
  int64_t& bytes;
  template <typename Storage, typename P>
  void run() const {
    const Layout layout(problem, P::kColumns);
    Workspace sizes(nullptr);
    BackwardSlot<Compute<Storage>>(layout, problem.num_terms, sizes);
    bytes = sizes.bytes() * std::min(num_threads, layout.tiles);
  }
};

int64_t forward_workspace_bytes(const EchoProblem& problem, int) {
  int64_t bytes = 0;
  dispatch<kMaxTileLines>(problem.dtype, problem.width, ForwardSize{problem, bytes});
  return bytes;
}

int64_t backward_workspace_bytes(const EchoProblem& problem, int num_threads) {
  int64_t bytes = 0;
  dispatch<kMaxBackwardTileLines>(problem.dtype, problem.width, BackwardSize{problem, num_threads, bytes});
  return bytes;
}

}  // namespace

const EchoCpuKernels echo_kernels = {forward_workspace_bytes, backward_workspace_bytes, forward, backward};

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
