// Permutation and replacement sampling on the CPU: every row has its own draws.
//
// First the bank is copied to tiles. A tile holds a few cache lines of columns, with the f and s of each bank row next
// to each other, padded and converted to the compute type. It stays in the cache while all rows draw from it.
#include <limits>

#include "common/parallel.h"
#include "echo/columns_cpu.h"
#include "echo/draws_cpu.h"
#include "echo/kernels_cpu.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {
namespace {

constexpr int kTermsPerCheck = 8;
static_assert(kFirstDraws % kTermsPerCheck == 0 && kMoreDraws % kTermsPerCheck == 0, "a check falls on the last draw");

// Terms are dropped only if all remaining terms together are below this fraction of the largest partial sum of the row,
// which is far below the rounding error of the sum.
template <typename T>
constexpr T kNegligible = std::numeric_limits<T>::epsilon() / 64;

// A bound on the sum of all remaining terms of a row in one column, per unit of weight: max|f| / (1 - max|s|), divided
// by kNegligible. Two cases are special:
// - If |s| reaches 1 or a value is not finite, the bound is NaN. No comparison with it holds, so nothing is dropped: a
// sum that is already infinite may still become NaN.
// - The bound is never zero. Even if every f is zero, the gradient of f consists of weights, which must not be dropped
// before they are negligible themselves.
template <typename T>
T tail_bound(T largest_f, T largest_s) {
  constexpr T kNone = std::numeric_limits<T>::quiet_NaN();
  if (!(largest_s < 1)) return kNone;
  const T bound = std::max(largest_f, std::numeric_limits<T>::min()) / ((1 - largest_s) * kNegligible<T>);
  return bound < std::numeric_limits<T>::infinity() ? bound : kNone;
}

template <typename T>
T maximum_or_nan(T a, T b) {
  return b > a || b != b ? b : a;
}

// Copies the bank rows [begin, end) of a tile, and sets the largest |f| and |s| of each column among them.
template <typename Storage, typename P>
void fill_tile(const EchoProblem& problem, const void* bank_f, const void* bank_s, int64_t t, int64_t begin,
               int64_t end, Compute<Storage>* tile, Compute<Storage>* largest) {
  using T = Compute<Storage>;
  const Columns<Storage, P> columns(problem.width, t);
  alignas(64) T largest_f[P::kColumns] = {}, largest_s[P::kColumns] = {};
  for_each_piece(begin, end, [&](int64_t from, int64_t to) {
    for (int64_t row = from; row < to; ++row) {
      T* f = tile + row * 2 * P::kColumns;
      T* s = f + P::kColumns;
      columns.read(bank_f, row).store_to(f);
      columns.read(bank_s, row).store_to(s);
      for (int c = 0; c < P::kColumns; ++c) {
        largest_f[c] = maximum_or_nan(largest_f[c], std::abs(f[c]));
        largest_s[c] = maximum_or_nan(largest_s[c], std::abs(s[c]));
      }
    }
  });
  std::copy_n(largest_f, P::kColumns, largest);
  std::copy_n(largest_s, P::kColumns, largest + P::kColumns);
}

template <typename T, typename P>
P row_noise(const T* tile, const P& bounds, const RowDraws& draws, int64_t num_terms) {
  P sum = P::filled(0), weight = P::filled(1), largest_sum = P::filled(0);
  const int32_t* rows = draws.rows();
  for (int64_t t = 0; t < num_terms;) {
    for (const int64_t end = draws.available_after(t); t < end;) {
      const T* f = tile + rows[t] * int64_t{2 * P::kColumns};
      sum = sum + weight * P::loaded(f);
      weight = weight * P::loaded(f + P::kColumns);
      if (++t % kTermsPerCheck != 0) continue;
      largest_sum = maximum(largest_sum, absolute(sum));
      if (all_less_equal(absolute(weight) * bounds, largest_sum)) return sum;
    }
  }
  return sum;
}

// Adds the contribution of one row to the gradients of a tile, and returns the row's noise. `weights` has space for
// num_terms packs.
template <typename T, typename P>
P row_gradient(const T* tile, T* gradient_tile, const P& bounds, const RowDraws& draws, int64_t num_terms,
               const P& grad, T* weights) {
  // Forward through the terms: the weight of each. The remaining terms must be negligible for the gradient as well,
  // where the term's own s is missing from the product. left_out is the largest such product: that of all |s| except
  // the smallest.
  P sum = P::filled(0), weight = P::filled(1), largest_sum = P::filled(0);
  P left_out = P::filled(1), smallest = P::filled(1);
  const int32_t* rows = draws.rows();
  int64_t used = 0;
  for (bool settled = false; used < num_terms && !settled;) {
    for (const int64_t end = draws.available_after(used); used < end && !settled;) {
      const T* f = tile + rows[used] * int64_t{2 * P::kColumns};
      const P s = P::loaded(f + P::kColumns), size = absolute(s);
      weight.store_to(weights + used * P::kColumns);
      sum = sum + weight * P::loaded(f);
      weight = weight * s;
      left_out = left_out * maximum(smallest, size);
      smallest = minimum(smallest, size);
      if (++used % kTermsPerCheck != 0) continue;
      largest_sum = maximum(largest_sum, absolute(sum));
      settled = all_less_equal(left_out * bounds, largest_sum);
    }
  }
  // Backward through the terms: the tail of each, which is the sum of the terms after it.
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

// The division of a problem into tiles and pieces. It depends only on the problem's shape, so that results do not
// depend on the number of threads.
struct Layout {
  static constexpr int64_t kGroupBytes = 1 << 20, kPieceRows = 4096, kMaxTableTerms = 1 << 16;
  static constexpr int64_t kTableRows = 16;

  int64_t columns, tiles, tile_size;
  int64_t tiles_per_group;  // tiles that fit into the second-level cache together, and can share the draws of a row
  int64_t pieces;           // pieces of the bank that are copied in parallel
  int64_t table_rows;       // rows whose draws are computed together

  Layout(const EchoProblem& problem, int64_t columns_, int64_t bytes_of_tile)
      : columns(columns_),
        tiles(ceil_div(problem.width, columns)),
        tile_size(problem.bank_rows * 2 * columns),
        tiles_per_group(std::clamp<int64_t>(kGroupBytes / std::max<int64_t>(bytes_of_tile, 1), 1, tiles)),
        pieces(std::max<int64_t>(1, ceil_div(problem.bank_rows, kPieceRows))),
        table_rows(std::clamp<int64_t>(kMaxTableTerms / std::max<int64_t>(problem.num_terms, 1), 1, kTableRows)) {}

  int64_t groups() const { return ceil_div(tiles, tiles_per_group); }
};

// The bank as tiles, and the bounds of their columns.
template <typename Storage, typename P>
struct TiledBank {
  using T = Compute<Storage>;
  T *tiles, *bounds, *largest;  // `largest` is per piece of a tile

  TiledBank(const Layout& layout, Workspace& workspace)
      : tiles(workspace.take<T>(layout.tiles * layout.tile_size)),
        bounds(workspace.take<T>(layout.tiles * layout.columns)),
        largest(workspace.take<T>(layout.tiles * layout.pieces * 2 * layout.columns)) {}

  void fill(const EchoProblem& problem, const Layout& layout, const void* f, const void* s, int num_threads) const {
    parallel_for(layout.tiles * layout.pieces, num_threads, [&](int64_t task, int) {
      const int64_t t = task / layout.pieces, begin = task % layout.pieces * Layout::kPieceRows;
      const int64_t end = std::min(begin + Layout::kPieceRows, problem.bank_rows);
      fill_tile<Storage, P>(problem, f, s, t, begin, end, tiles + t * layout.tile_size,
                            largest + task * 2 * layout.columns);
    });
    for (int64_t t = 0; t < layout.tiles; ++t) {
      T* tile_largest = largest + t * layout.pieces * 2 * layout.columns;
      for (int64_t piece = 1; piece < layout.pieces; ++piece)
        for (int64_t c = 0; c < 2 * layout.columns; ++c)
          tile_largest[c] = maximum_or_nan(tile_largest[c], tile_largest[piece * 2 * layout.columns + c]);
      for (int64_t c = 0; c < layout.columns; ++c)
        bounds[t * layout.columns + c] = tail_bound(tile_largest[c], tile_largest[layout.columns + c]);
    }
  }
};

// A thread's own table of draws, used if there is no cached table of all rows.
DrawTable take_table(const EchoProblem& problem, const Layout& layout, Workspace& workspace) {
  const int64_t capacity = DrawTable::capacity_for(problem.num_terms);
  return {0, capacity, workspace.take<int32_t>(layout.table_rows * capacity),
          workspace.take<int32_t>(layout.table_rows)};
}

// Calls body(table, first, last) for consecutive rows [first, last) of [begin, end), as many at a time as a table
// holds, once their first draws have been computed.
template <typename Body>
void with_draws(const DrawMaker& maker, const Layout& layout, const DrawTable* cached, DrawTable table, int64_t begin,
                int64_t end, const Body& body) {
  if (cached != nullptr) table = *cached;
  for (int64_t first = begin; first < end; first += layout.table_rows) {
    const int64_t last = std::min(first + layout.table_rows, end);
    if (cached == nullptr) table.first_row = first;
    const int64_t index = first - table.first_row;
    if (cached == nullptr || table.counts[index] == 0) maker.start(table, index, last - first);
    body(table, first, last);
  }
}

struct Forward {
  const EchoProblem& problem;
  const EchoForward& io;
  const DrawTable* cached;
  int num_threads;

  template <typename Storage, typename P>
  void run() const {
    using T = Compute<Storage>;
    const Layout layout = layout_of<Storage, P>(problem);
    Workspace memory(io.workspace);
    const TiledBank<Storage, P> bank(layout, memory);
    bank.fill(problem, layout, io.bank_f, io.bank_s, num_threads);
    const DrawMaker maker(problem, *io.seed);
    const int64_t row_tasks = ceil_div(problem.rows, layout.table_rows);
    parallel_for(layout.groups() * row_tasks, num_threads, [&](int64_t task, int slot) {
      Workspace slots(static_cast<char*>(io.workspace) + memory.bytes() + slot * slot_bytes(problem, layout));
      const int64_t first_tile = task / row_tasks * layout.tiles_per_group,
                    begin = task % row_tasks * layout.table_rows;
      const int64_t end = std::min(begin + layout.table_rows, problem.rows);
      PollCounter polls;
      const auto process_rows = [&](const DrawTable& table, int64_t first, int64_t last) {
        for (int64_t t = first_tile; t < std::min(first_tile + layout.tiles_per_group, layout.tiles); ++t) {
          const Columns<Storage, P> columns(problem.width, t);
          const P bounds = P::loaded(bank.bounds + t * layout.columns);
          for (int64_t row = first; row < last; ++row) {
            P result = row_noise<T, P>(bank.tiles + t * layout.tile_size, bounds,
                                       RowDraws{maker, table, row - table.first_row}, problem.num_terms);
            if (io.f != nullptr) result = columns.read(io.f, row) + columns.read(io.s, row) * result;
            columns.write(io.out, row, result);
            polls.add(problem.num_terms);
          }
        }
      };
      with_draws(maker, layout, cached, take_table(problem, layout, slots), begin, end, process_rows);
    });
  }

  template <typename Storage, typename P>
  static Layout layout_of(const EchoProblem& problem) {
    return Layout(problem, P::kColumns, problem.bank_rows * 2 * int64_t{sizeof(P)});
  }

  static int64_t slot_bytes(const EchoProblem& problem, const Layout& layout) {
    Workspace sizes(nullptr);
    take_table(problem, layout, sizes);
    return sizes.bytes();
  }
};

// Rows are distributed over threads in chunks. Each chunk has its own gradient tiles, which are added up in the end.
// The number of chunks depends only on the problem's shape, so that results do not depend on the number of threads.
// Clearing and adding up a tile costs as much as a few terms for each of its rows, which must be little compared with
// the terms of a chunk.
struct RowChunks {
  static constexpr int64_t kMaxTasks = 16, kTypicalTerms = 64, kMinTerms = 1 << 13, kMaxBytes = 64 << 20;
  static constexpr int64_t kTermsOfTile = 6, kCachedBytes = 1 << 19, kTermsBeyondCache = 16;

  int64_t count, rows;  // `rows` is per chunk

  RowChunks(const EchoProblem& problem, const Layout& layout, int64_t bytes_of_tile) {
    const int64_t terms = problem.rows * std::min(problem.num_terms, kTypicalTerms);
    const int64_t terms_of_tile = bytes_of_tile <= kCachedBytes ? kTermsOfTile : kTermsBeyondCache;
    count = std::min({ceil_div(kMaxTasks, layout.tiles), terms / (terms_of_tile * problem.bank_rows),
                      terms * layout.tiles / kMinTerms, kMaxBytes / (layout.tiles * bytes_of_tile)});
    count = std::max<int64_t>(count, 1);
    rows = ceil_div(problem.rows, count);
  }
};

// The buffers of one thread in the backward pass: the weights of a row, a table of draws, and, if there is only one
// chunk, the gradients of a group of tiles.
template <typename T>
struct BackwardSlot {
  T* weights;
  T* gradients;
  DrawTable table;
  BackwardSlot(const EchoProblem& problem, const Layout& layout, const RowChunks& chunks, Workspace& workspace)
      : weights(workspace.take<T>(problem.num_terms * layout.columns)),
        gradients(workspace.take<T>(chunks.count > 1 ? 0 : layout.tiles_per_group * layout.tile_size)),
        table(take_table(problem, layout, workspace)) {}

  static int64_t bytes(const EchoProblem& problem, const Layout& layout, const RowChunks& chunks) {
    Workspace sizes(nullptr);
    BackwardSlot(problem, layout, chunks, sizes);
    return sizes.bytes();
  }
};

// The gradients of all chunks, [tile][chunk], if there is more than one.
template <typename T>
T* take_gradients(const Layout& layout, const RowChunks& chunks, Workspace& workspace) {
  return workspace.take<T>(chunks.count > 1 ? layout.tiles * chunks.count * layout.tile_size : 0);
}

struct Backward {
  const EchoProblem& problem;
  const EchoBackward& io;
  const DrawTable* cached;
  int num_threads;

  template <typename Storage, typename P>
  void run() const {
    using T = Compute<Storage>;
    const Layout layout = layout_of<P>(problem);
    const RowChunks chunks(problem, layout, layout.tile_size * int64_t{sizeof(T)});
    Workspace memory(io.workspace);
    const TiledBank<Storage, P> bank(layout, memory);
    T* gradients = take_gradients<T>(layout, chunks, memory);
    bank.fill(problem, layout, io.bank_f, io.bank_s, num_threads);
    const DrawMaker maker(problem, *io.seed);
    parallel_for(layout.groups() * chunks.count, num_threads, [&](int64_t task, int slot_index) {
      Workspace slots(static_cast<char*>(io.workspace) + memory.bytes() +
                      slot_index * BackwardSlot<T>::bytes(problem, layout, chunks));
      const BackwardSlot<T> slot(problem, layout, chunks, slots);
      const int64_t chunk = task % chunks.count, first_tile = task / chunks.count * layout.tiles_per_group;
      const int64_t last_tile = std::min(first_tile + layout.tiles_per_group, layout.tiles);
      const auto gradients_of = [&](int64_t t) {
        return chunks.count > 1 ? gradients + (t * chunks.count + chunk) * layout.tile_size
                                : slot.gradients + (t - first_tile) * layout.tile_size;
      };
      for (int64_t t = first_tile; t < last_tile; ++t)
        for_each_piece(0, layout.tile_size, [&](int64_t begin, int64_t end) {
          std::fill(gradients_of(t) + begin, gradients_of(t) + end, T(0));
        });
      PollCounter polls;
      const auto process_rows = [&](const DrawTable& table, int64_t first, int64_t last) {
        for (int64_t t = first_tile; t < last_tile; ++t) {
          const Columns<Storage, P> columns(problem.width, t);
          const P bounds = P::loaded(bank.bounds + t * layout.columns);
          for (int64_t row = first; row < last; ++row) {
            add_row<Storage, P>(columns, bank.tiles + t * layout.tile_size, gradients_of(t), bounds,
                                RowDraws{maker, table, row - table.first_row}, row, slot.weights);
            polls.add(problem.num_terms);
          }
        }
      };
      const int64_t begin = chunk * chunks.rows;
      with_draws(maker, layout, cached, slot.table, begin, std::min(begin + chunks.rows, problem.rows), process_rows);
      if (chunks.count > 1) return;
      for (int64_t t = first_tile; t < last_tile; ++t)
        add_up<Storage, P>(Columns<Storage, P>(problem.width, t), gradients_of(t), layout.tile_size, 1, 0,
                           problem.bank_rows);
    });
    if (chunks.count == 1) return;
    parallel_for(layout.tiles * layout.pieces, num_threads, [&](int64_t task, int) {
      const int64_t t = task / layout.pieces, begin = task % layout.pieces * Layout::kPieceRows;
      add_up<Storage, P>(Columns<Storage, P>(problem.width, t), gradients + t * chunks.count * layout.tile_size,
                         layout.tile_size, chunks.count, begin,
                         std::min(begin + Layout::kPieceRows, problem.bank_rows));
    });
  }

  template <typename Storage, typename P, typename T>
  void add_row(const Columns<Storage, P>& columns, const T* tile, T* gradients, const P& bounds, const RowDraws& draws,
               int64_t row, T* weights) const {
    const P grad_out = columns.read(io.grad, row);
    const P grad = io.s == nullptr ? grad_out : grad_out * columns.read(io.s, row);
    const P noise = row_gradient<T, P>(tile, gradients, bounds, draws, problem.num_terms, grad, weights);
    if (io.s == nullptr) return;
    if (problem.exclude_self) {
      T* own = gradients + row * 2 * P::kColumns;
      (P::loaded(own) + grad_out).store_to(own);
      (P::loaded(own + P::kColumns) + grad_out * noise).store_to(own + P::kColumns);
    } else {
      columns.write(io.grad_s, row, grad_out * noise);
    }
  }

  // Writes the sum of the gradients of all chunks for the bank rows [begin, end).
  template <typename Storage, typename P, typename T>
  void add_up(const Columns<Storage, P>& columns, const T* gradients, int64_t tile_size, int64_t count, int64_t begin,
              int64_t end) const {
    for_each_piece(
        begin, end,
        [&](int64_t from, int64_t to) {
          for (int64_t row = from; row < to; ++row) {
            const T* row_gradients = gradients + row * 2 * P::kColumns;
            P f = P::loaded(row_gradients), s = P::loaded(row_gradients + P::kColumns);
            for (int64_t chunk = 1; chunk < count; ++chunk) {
              f = f + P::loaded(row_gradients + chunk * tile_size);
              s = s + P::loaded(row_gradients + chunk * tile_size + P::kColumns);
            }
            columns.write(io.grad_bank_f, row, f);
            columns.write(io.grad_bank_s, row, s);
          }
        },
        count);
  }

  // The gradients of a tile must fit into the cache as well.
  template <typename P>
  static Layout layout_of(const EchoProblem& problem) {
    return Layout(problem, P::kColumns, problem.bank_rows * 4 * int64_t{sizeof(P)});
  }
};

void forward(const EchoProblem& problem, const EchoForward& io, const DrawTable* cached, int num_threads) {
  dispatch<kMaxTileLines>(problem.dtype, problem.width, Forward{problem, io, cached, num_threads});
}

void backward(const EchoProblem& problem, const EchoBackward& io, const DrawTable* cached, int num_threads) {
  dispatch<kMaxBackwardTileLines>(problem.dtype, problem.width, Backward{problem, io, cached, num_threads});
}

struct ForwardSize {
  const EchoProblem& problem;
  int64_t num_threads;
  int64_t& bytes;
  template <typename Storage, typename P>
  void run() const {
    const Layout layout = Forward::layout_of<Storage, P>(problem);
    Workspace sizes(nullptr);
    TiledBank<Storage, P>(layout, sizes);
    bytes = sizes.bytes() + num_threads * Forward::slot_bytes(problem, layout);
  }
};

struct BackwardSize {
  const EchoProblem& problem;
  int64_t num_threads;
  int64_t& bytes;
  template <typename Storage, typename P>
  void run() const {
    using T = Compute<Storage>;
    const Layout layout = Backward::layout_of<P>(problem);
    const RowChunks chunks(problem, layout, layout.tile_size * int64_t{sizeof(T)});
    Workspace sizes(nullptr);
    TiledBank<Storage, P>(layout, sizes);
    take_gradients<T>(layout, chunks, sizes);
    const int64_t slots = std::min(num_threads, layout.groups() * chunks.count);
    bytes = sizes.bytes() + slots * BackwardSlot<T>::bytes(problem, layout, chunks);
  }
};

int64_t forward_workspace_bytes(const EchoProblem& problem, int num_threads) {
  int64_t bytes = 0;
  dispatch<kMaxTileLines>(problem.dtype, problem.width, ForwardSize{problem, num_threads, bytes});
  return bytes;
}

int64_t backward_workspace_bytes(const EchoProblem& problem, int num_threads) {
  int64_t bytes = 0;
  dispatch<kMaxBackwardTileLines>(problem.dtype, problem.width, BackwardSize{problem, num_threads, bytes});
  return bytes;
}

}  // namespace

const EchoKernels echo_rows_kernels = {forward_workspace_bytes, backward_workspace_bytes, forward, backward};

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
