// Ring sampling on the CPU: the noise of all rows from one scan around a keyed circle of the bank.
#include "echo/ring_cpu.h"

#include <limits>
#include <memory>
#include <vector>

#include "common/huge_pages.h"
#include "common/parallel.h"
#include "echo/columns_cpu.h"
#include "echo/kernels_cpu.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {
namespace {

// The length of a segment depends only on the shape of the problem, so that results do not depend on the number of
// threads. It is long compared with the number of terms that usually matter, because every segment reads that many
// terms beyond its end. It is short enough that the scratch of a segment fits into a cache, that there are several
// segments for the threads, and that windows are longer than a segment and have room to decay.
int64_t segment_length(const EchoProblem& problem) {
  constexpr int64_t kMinRows = 4096, kMaxRows = 32768, kMaxSegments = 32;
  const int64_t windows = std::min(problem.rows, problem.bank_rows);
  const int64_t max_length = std::max(kMinRows, std::min(problem.num_terms / 2, kMaxRows));
  const int64_t length = std::max(kMinRows, std::min(windows / kMaxSegments, max_length));
  // The last s of a window is not a factor of anything, not even if it is NaN. It must therefore lie after the segment.
  return std::min(std::max<int64_t>(problem.num_terms - 1, 1), length);
}

constexpr int64_t kCircleTask = 4096;

// Sets the bank row at each position of a circle.
void fill_circle(const Draws& draws, int64_t circle, int32_t* rows, int num_threads) {
  const Bijection order(static_cast<uint32_t>(draws.bank_rows));
  const DrawKey key = circle_key(draws.seed, circle);
  const int64_t tasks = ceil_div(draws.bank_rows, kCircleTask);
  parallel_for(tasks, num_threads, [&](int64_t task, int) {
    const int64_t end = std::min((task + 1) * kCircleTask, draws.bank_rows);
    for (int64_t position = task * kCircleTask; position < end; ++position)
      rows[position] = static_cast<int32_t>(order(key, static_cast<uint32_t>(position)));
  });
}

// A circle of bank rows, and the rows whose windows start on it.
struct Circle {
  const int32_t* rows;
  int64_t size, first_row;
  bool exclude_self;

  int64_t bank_row(int64_t position) const { return rows[position < size ? position : position - size]; }
  // Also accepts positions slightly before the start or after the end of the circle, for prefetching.
  int64_t bank_row_clamped(int64_t position) const {
    return rows[position < 0 ? 0 : position < size ? position : std::min(position - size, size - 1)];
  }
  int64_t noise_row(int64_t start) const {
    return exclude_self ? rows[start == 0 ? size - 1 : start - 1] : first_row + start;
  }
};

// What both passes read. Io is EchoForward or EchoBackward.
template <typename Io, typename Storage, typename P>
struct CircleTerms {
  const Io& io;
  const Circle& circle;
  const Columns<Storage, P>& columns;

  __attribute__((always_inline)) void term(int64_t position, P& f, P& s) const {
    const int64_t row = circle.bank_row(position);
    f = columns.read(io.bank_f, row);
    s = columns.read(io.bank_s, row);
  }
  __attribute__((always_inline)) void prefetch(int64_t position) const {
    const int64_t row = circle.bank_row_clamped(position);
    columns.prefetch(io.bank_f, row);
    columns.prefetch(io.bank_s, row);
  }
  void poll() const { poll_interrupt(); }
};

template <typename Storage, typename P>
struct ForwardIo : CircleTerms<EchoForward, Storage, P> {
  using CircleTerms<EchoForward, Storage, P>::io, CircleTerms<EchoForward, Storage, P>::circle,
      CircleTerms<EchoForward, Storage, P>::columns;

  // Prefetch the result as well: a store that waits for its cache line would delay the following loads.
  __attribute__((always_inline)) void prefetch_result(int64_t position) const {
    this->prefetch(position);
    columns.prefetch(io.out, circle.exclude_self ? circle.bank_row_clamped(position)
                                                 : circle.first_row + std::max<int64_t>(position, 0));
  }
  __attribute__((always_inline)) void emit(int64_t start, const P& noise) const {
    const int64_t row = circle.noise_row(start);
    columns.write(io.out, row, io.f == nullptr ? noise : columns.read(io.f, row) + columns.read(io.s, row) * noise);
  }
};

// Contributions of a chunk to positions of other chunks, and to the row before its first window. They are stored here
// and added once all chunks are done, so that no two threads write to the same row.
template <typename P>
struct Spill {
  P *f, *s;        // for the positions starting at the chunk's end
  int64_t used;    // number of these positions
  P row_f, row_s;  // for the row whose window starts the chunk
};

// How a circle is distributed over threads. The chunks depend only on the shape of the problem, so that results do not
// depend on the number of threads. A chunk reads as many terms beyond its end as its windows need, and must be long
// compared with that.
struct CircleChunks {
  static constexpr int64_t kMaxTasks = 16, kMinRows = 1 << 14;
  int64_t count, rows;  // `rows` is a multiple of the segment length
  int64_t max_spilled;

  CircleChunks(const EchoProblem& problem, int64_t tiles) {
    const int64_t windows = std::max<int64_t>(std::min(problem.rows, problem.bank_rows), 1);
    const int64_t segment = std::max<int64_t>(segment_length(problem), 1);
    const int64_t wanted = std::max<int64_t>(std::min(ceil_div(kMaxTasks, tiles), windows / kMinRows), 1);
    rows = ceil_div(ceil_div(windows, segment), wanted) * segment;
    count = ceil_div(windows, rows);
    max_spilled = count > 1 ? std::min(problem.num_terms - 1, rows) : 0;
  }

  // The maximum number of terms after a segment that its windows can need.
  int64_t max_weights(const EchoProblem& problem) const {
    return count > 1 ? std::min(problem.num_terms, max_spilled + rows) : problem.num_terms;
  }
};

template <typename Storage, typename P>
struct BackwardIo : CircleTerms<EchoBackward, Storage, P> {
  using CircleTerms<EchoBackward, Storage, P>::io, CircleTerms<EchoBackward, Storage, P>::circle,
      CircleTerms<EchoBackward, Storage, P>::columns;
  using T = Compute<Storage>;
  const Columns<T, P>& sums;  // accumulated gradients, in the compute type
  T *sum_f, *sum_s;
  int64_t unwritten_begin, unwritten_end;  // positions whose sums have not been written yet
  Spill<P>* spill;                         // null: write everything to the sums
  int64_t chunk_begin, chunk_end, max_spilled;

  int64_t end() const { return spill == nullptr ? std::numeric_limits<int64_t>::max() / 2 : chunk_end + max_spilled; }
  void begin_following(int64_t position) const {
    if (spill == nullptr) return;
    for (; spill->used < position - chunk_end; ++spill->used)
      spill->f[spill->used] = spill->s[spill->used] = P::filled(0);
  }
  __attribute__((always_inline)) void prefetch_gradient(int64_t position) const {
    const int64_t row = circle.bank_row_clamped(position);
    this->prefetch(position);
    columns.prefetch(io.grad, row);
    sums.prefetch(sum_f, row);
    sums.prefetch(sum_s, row);
  }
  __attribute__((always_inline)) P noise_gradient(int64_t start, const P& noise) const {
    const int64_t row = circle.noise_row(start);
    const P grad = columns.read(io.grad, row);
    if (io.s == nullptr) return grad;
    if (!circle.exclude_self) {
      columns.write(io.grad_s, row, grad * noise);
    } else if (spill != nullptr && start == chunk_begin) {
      spill->row_f = grad;
      spill->row_s = grad * noise;
    } else {
      add(row, grad, grad * noise);
    }
    return grad * columns.read(io.s, row);
  }
  __attribute__((always_inline)) void add(int64_t row, const P& df, const P& ds) const {
    sums.write(sum_f, row, sums.read(sum_f, row) + df);
    sums.write(sum_s, row, sums.read(sum_s, row) + ds);
  }
  __attribute__((always_inline)) void add_gradient(int64_t position, const P& df, const P& ds) const {
    if (spill != nullptr && position >= chunk_end) {
      spill->f[position - chunk_end] = spill->f[position - chunk_end] + df;
      spill->s[position - chunk_end] = spill->s[position - chunk_end] + ds;
      return;
    }
    const int64_t row = circle.bank_row(position);
    if (position < unwritten_begin || position >= unwritten_end) return add(row, df, ds);
    sums.write(sum_f, row, df);
    sums.write(sum_s, row, ds);
  }
  void clear(int64_t begin, int64_t end) const {
    for_each_piece(begin, std::max(begin, end), [&](int64_t from, int64_t to) {
      for (int64_t position = from; position < to; ++position) {
        sums.write(sum_f, circle.rows[position], P::filled(0));
        sums.write(sum_s, circle.rows[position], P::filled(0));
      }
    });
  }
};

template <typename P>
struct ForwardLayout {
  int64_t tiles, segments;
  int32_t* rows;
  P* prefixes;  // of one segment, for each thread
  int64_t prefix_size;

  ForwardLayout(const EchoProblem& problem, int num_threads, Workspace& workspace)
      : tiles(ceil_div(problem.width, P::kColumns)),
        rows(workspace.take<int32_t>(problem.bank_rows)),
        prefixes(nullptr),
        prefix_size(segment_length(problem)) {
    prefixes = workspace.take<P>(num_threads * prefix_size);
  }
};

template <typename P>
RingScratch<P> scratch_at(P* first, int64_t segment_size) {
  return {first, first + segment_size, first + 2 * segment_size, first + 3 * segment_size, first + 4 * segment_size};
}

template <typename Storage, typename P>
struct BackwardLayout {
  using T = Compute<Storage>;
  static constexpr bool kSumsAreOutputs = sizeof(Storage) == sizeof(T);
  int64_t tiles;
  CircleChunks chunks;
  int32_t* rows;
  T *sum_f = nullptr, *sum_s = nullptr;
  P* scratch;  // for each thread
  P* spilled;  // [tile][chunk][f, s]
  int64_t segment_size, scratch_size;

  BackwardLayout(const EchoProblem& problem, int num_threads, Workspace& workspace)
      : tiles(ceil_div(problem.width, P::kColumns)),
        chunks(problem, tiles),
        rows(workspace.take<int32_t>(problem.bank_rows)),
        segment_size(segment_length(problem)),
        scratch_size(4 * segment_size + chunks.max_weights(problem)) {
    scratch = workspace.take<P>(std::min<int64_t>(num_threads, tiles * chunks.count) * scratch_size);
    spilled = workspace.take<P>(tiles * chunks.count * 2 * chunks.max_spilled);
    if (kSumsAreOutputs) return;
    sum_f = workspace.take<T>(problem.bank_rows * problem.width);
    sum_s = workspace.take<T>(problem.bank_rows * problem.width);
  }

  RingScratch<P> slot_scratch(int slot) const { return scratch_at(scratch + slot * scratch_size, segment_size); }

  Spill<P> empty_spill(int64_t task) const {
    P* f = spilled + task * 2 * chunks.max_spilled;
    return {f, f + chunks.max_spilled, 0, P::filled(0), P::filled(0)};
  }
};

struct Forward {
  const EchoProblem& problem;
  const EchoForward& io;
  int num_threads;

  template <typename Storage, typename P>
  void run() const {
    Workspace workspace(io.workspace);
    const ForwardLayout<P> layout(problem, num_threads, workspace);
    prefer_huge_pages(io.out, problem.rows * problem.width * int64_t{sizeof(Storage)});
    const Draws draws = draws_of(problem, *io.seed);
    for (int64_t c = 0; c < num_circles(draws, problem.rows); ++c) {
      if (c > 0) poll_interrupt();
      fill_circle(draws, c, layout.rows, num_threads);
      const Circle circle{layout.rows, problem.bank_rows, c * problem.bank_rows, problem.exclude_self};
      const int64_t windows = num_windows(draws, problem.rows, c), length = layout.prefix_size;
      parallel_for(layout.tiles * ceil_div(windows, length), num_threads, [&](int64_t task, int slot) {
        const Columns<Storage, P> columns(problem.width, task % layout.tiles);
        const int64_t begin = task / layout.tiles * length;
        const RingSegment segment{begin, std::min(begin + length, windows), problem.num_terms};
        ring_forward(segment, layout.prefixes + slot * layout.prefix_size,
                     ForwardIo<Storage, P>{{io, circle, columns}});
      });
    }
  }
};

struct Backward {
  const EchoProblem& problem;
  const EchoBackward& io;
  int num_threads;

  // A segment whose windows reach further than its chunk may write. It is processed after all chunks.
  template <typename P>
  struct Deferred {
    RingSegment segment;
    P carry;
  };
  template <typename P>
  struct Chunk {
    Spill<P> spill;
    std::vector<Deferred<P>> deferred;
  };

  template <typename Storage, typename P>
  void run() const {
    using T = Compute<Storage>;
    Workspace workspace(io.workspace);
    const BackwardLayout<Storage, P> layout(problem, num_threads, workspace);
    T* sum_f = layout.kSumsAreOutputs ? static_cast<T*>(io.grad_bank_f) : layout.sum_f;
    T* sum_s = layout.kSumsAreOutputs ? static_cast<T*>(io.grad_bank_s) : layout.sum_s;
    for (T* sums : {sum_f, sum_s}) prefer_huge_pages(sums, problem.bank_rows * problem.width * int64_t{sizeof(T)});
    const Draws draws = draws_of(problem, *io.seed);
    // At least one circle, which clears the gradients of a bank that nothing was drawn from.
    const int64_t circles = std::max<int64_t>(1, num_circles(draws, problem.rows));
    const bool is_shared = layout.chunks.count > 1;
    std::vector<Chunk<P>> chunks(static_cast<size_t>(is_shared ? layout.tiles * layout.chunks.count : 0));
    for (int64_t c = 0; c < circles; ++c) {
      if (c > 0) poll_interrupt();
      fill_circle(draws, c, layout.rows, num_threads);
      const Circle circle{layout.rows, problem.bank_rows, c * problem.bank_rows, problem.exclude_self};
      const int64_t windows = num_windows(draws, problem.rows, c);
      parallel_for(layout.tiles * layout.chunks.count, num_threads, [&](int64_t task, int slot) {
        const int64_t t = task % layout.tiles, begin = task / layout.tiles * layout.chunks.rows;
        const bool is_last = begin + layout.chunks.rows >= std::max<int64_t>(windows, 1);
        if (begin > 0 && begin >= windows) return;  // the last circle may have fewer windows
        const Columns<Storage, P> columns(problem.width, t);
        const Columns<T, P> sums(problem.width, t);
        const int64_t end = is_last ? circle.size : begin + layout.chunks.rows;
        BackwardIo<Storage, P> tile_io{{io, circle, columns}, sums,    sum_f, sum_s, begin,
                                       c == 0 ? end : begin,  nullptr, begin, end,   layout.chunks.max_spilled};
        if (is_shared) {
          Chunk<P>& chunk = chunks[static_cast<size_t>(task)];
          chunk.spill = layout.empty_spill(task);
          chunk.deferred.clear();
          tile_io.spill = &chunk.spill;
          return run_chunk(tile_io, std::min(end, windows), layout.segment_size, layout.slot_scratch(slot), &chunk);
        }
        if (c == 0) {  // the window from position 0 writes to the row at the last position before its own turn
          tile_io.clear(circle.size - 1, circle.size);
          tile_io.unwritten_end = circle.size - 1;
        }
        run_chunk<Storage, P>(tile_io, windows, layout.segment_size, layout.slot_scratch(slot), nullptr);
        if (!layout.kSumsAreOutputs && c + 1 == circles) write_sums<Storage, P>(columns, sums, sum_f, sum_s);
      });
      if (!is_shared) continue;
      parallel_for(layout.tiles, num_threads, [&](int64_t t, int) {
        const Columns<Storage, P> columns(problem.width, t);
        const Columns<T, P> sums(problem.width, t);
        const BackwardIo<Storage, P> tile_io{{io, circle, columns}, sums, sum_f, sum_s, 0, 0, nullptr, 0, 0, 0};
        for (int64_t begin = 0; begin < std::max<int64_t>(windows, 1); begin += layout.chunks.rows) {
          const bool is_last = begin + layout.chunks.rows >= windows;
          const int64_t end = is_last ? circle.size : begin + layout.chunks.rows;
          add_up(tile_io, chunks[static_cast<size_t>(begin / layout.chunks.rows * layout.tiles + t)], begin, end,
                 layout.segment_size);
        }
        if (!layout.kSumsAreOutputs && c + 1 == circles) write_sums<Storage, P>(columns, sums, sum_f, sum_s);
      });
    }
  }

  // Processes the segments from tile_io.chunk_begin on. On the first circle, the segments reach the positions in order,
  // so that the first contribution to a row is stored instead of added. This saves a pass over memory that would clear
  // the sums.
  template <typename Storage, typename P>
  void run_chunk(BackwardIo<Storage, P>& tile_io, int64_t end, int64_t segment_size, const RingScratch<P>& scratch,
                 Chunk<P>* chunk) const {
    P carry = P::filled(0);
    for (int64_t begin = tile_io.chunk_begin; begin < end; begin += segment_size) {
      poll_interrupt();
      const RingSegment segment{begin, std::min(begin + segment_size, end), problem.num_terms};
      const P entering = carry;
      int64_t reached = ring_backward(segment, segment.end == end, scratch, carry, tile_io);
      if (reached < 0) {
        chunk->deferred.push_back({segment, entering});
        carry = P::filled(0);
        reached = segment.end;
        tile_io.clear(std::max(segment.begin, tile_io.unwritten_begin), std::min(segment.end, tile_io.unwritten_end));
      }
      tile_io.unwritten_begin = std::max(tile_io.unwritten_begin, reached);
    }
    tile_io.clear(tile_io.unwritten_begin, tile_io.unwritten_end);
  }

  // Adds the stored contributions of a chunk and processes its deferred segments. For each tile, this is called for one
  // chunk after another.
  template <typename Storage, typename P>
  void add_up(const BackwardIo<Storage, P>& tile_io, const Chunk<P>& chunk, int64_t begin, int64_t end,
              int64_t segment_size) const {
    const int64_t size = tile_io.circle.size;
    if (problem.exclude_self && io.s != nullptr)
      tile_io.add(tile_io.circle.noise_row(begin), chunk.spill.row_f, chunk.spill.row_s);
    for_each_piece(0, chunk.spill.used, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i)
        tile_io.add(tile_io.circle.bank_row((end + i) % size), chunk.spill.f[i], chunk.spill.s[i]);
    });
    if (chunk.deferred.empty()) return;
    const auto memory = allocate_workspace((4 * segment_size + problem.num_terms) * int64_t{sizeof(P)});
    const RingScratch<P> scratch = scratch_at(reinterpret_cast<P*>(memory.get()), segment_size);
    for (const Deferred<P>& deferred : chunk.deferred) {
      P carry = deferred.carry;
      ring_backward(deferred.segment, true, scratch, carry, tile_io);
    }
  }

  template <typename Storage, typename P>
  void write_sums(const Columns<Storage, P>& columns, const Columns<Compute<Storage>, P>& sums,
                  const Compute<Storage>* sum_f, const Compute<Storage>* sum_s) const {
    for_each_piece(0, problem.bank_rows, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        columns.write(io.grad_bank_f, row, sums.read(sum_f, row));
        columns.write(io.grad_bank_s, row, sums.read(sum_s, row));
      }
    });
  }
};

void forward(const EchoProblem& problem, const EchoForward& io, const DrawTable*, int num_threads) {
  dispatch<kMaxTileLines>(problem.dtype, problem.width, Forward{problem, io, num_threads});
}

void backward(const EchoProblem& problem, const EchoBackward& io, const DrawTable*, int num_threads) {
  dispatch<kMaxBackwardTileLines>(problem.dtype, problem.width, Backward{problem, io, num_threads});
}

struct ForwardSize {
  const EchoProblem& problem;
  int num_threads;
  int64_t& bytes;
  template <typename Storage, typename P>
  void run() const {
    Workspace sizes(nullptr);
    ForwardLayout<P>(problem, num_threads, sizes);
    bytes = sizes.bytes();
  }
};

struct BackwardSize {
  const EchoProblem& problem;
  int num_threads;
  int64_t& bytes;
  template <typename Storage, typename P>
  void run() const {
    Workspace sizes(nullptr);
    BackwardLayout<Storage, P>(problem, num_threads, sizes);
    bytes = sizes.bytes();
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

const EchoKernels echo_ring_kernels = {forward_workspace_bytes, backward_workspace_bytes, forward, backward};

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
