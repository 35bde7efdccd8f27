#include <algorithm>

#include "common/huge_pages.h"
#include "common/parallel.h"
#include "echo/columns_cpu.h"
#include "echo/scan.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {
namespace {

// How many steps ahead of its use a row is prefetched. Rows lie anywhere in memory.
constexpr int64_t kPrefetchDistance = 12;

// Calls body(tile, chunk) for every tile of every chunk.
template <typename P, typename Body>
void for_each_chunk(const EchoScanProblem& problem, int num_threads, const Body& body) {
  const int64_t tiles = (problem.width + P::kColumns - 1) / P::kColumns;
  parallel_for(tiles * problem.num_chunks(), num_threads, [&](int64_t task, int) { body(task % tiles, task / tiles); });
}

// Calls body(position, row, prefetch_row) for the steps of a chunk in order, where prefetch_row is the row of a later
// step.
template <typename Body>
void for_each_row(const EchoScanProblem& problem, const int64_t* order, int64_t chunk, bool backward,
                  const Body& body) {
  for_each_piece(problem.first_step(chunk), problem.end_step(chunk), [&](int64_t begin, int64_t end) {
    for (int64_t step = begin; step < end; ++step) {
      const int64_t ahead = std::min(step + kPrefetchDistance, problem.rows - 1);
      body(problem.position(step, backward), order[problem.position(step, backward)],
           order[problem.position(ahead, backward)]);
    }
  });
}

struct Compose {
  const EchoScanProblem& problem;
  const EchoScanCompose& io;
  int num_threads;

  template <typename Storage, typename P>
  void run() const {
    for_each_chunk<P>(problem, num_threads, [&](int64_t tile, int64_t chunk) {
      const Columns<Storage, P> columns(problem.width, tile);
      const Columns<Compute<Storage>, P> maps(problem.width, tile);
      P constant = P::filled(0), scale = P::filled(1);
      for_each_row(problem, io.order, chunk, io.backward, [&](int64_t, int64_t row, int64_t prefetch_row) {
        columns.prefetch(io.source, prefetch_row);
        columns.prefetch(io.s, prefetch_row);
        const P source = columns.read(io.source, row), s = columns.read(io.s, row);
        constant = io.backward ? s * (source + constant) : source + s * constant;
        scale = scale * s;
      });
      maps.write(io.constants, chunk, constant);
      maps.write(io.scales, chunk, scale);
    });
  }
};

struct Forward {
  const EchoScanProblem& problem;
  const EchoScanForward& io;
  int num_threads;

  template <typename Storage, typename P>
  void run() const {
    prefer_huge_pages(io.z, problem.rows * problem.width * int64_t{sizeof(Compute<Storage>)});
    for_each_chunk<P>(problem, num_threads, [&](int64_t tile, int64_t chunk) {
      const Columns<Storage, P> columns(problem.width, tile);
      const Columns<Compute<Storage>, P> wide(problem.width, tile);
      P z = wide.read(io.entries, chunk);
      for_each_row(problem, io.order, chunk, false, [&](int64_t, int64_t row, int64_t prefetch_row) {
        columns.prefetch(io.f, prefetch_row);
        columns.prefetch(io.s, prefetch_row);
        z = columns.read(io.f, row) + columns.read(io.s, row) * z;
        wide.write(io.z, row, z);
      });
    });
  }
};

struct Backward {
  const EchoScanProblem& problem;
  const EchoScanBackward& io;
  int num_threads;

  template <typename Storage, typename P>
  void run() const {
    for (void* result : {io.grad_f, io.grad_s})
      prefer_huge_pages(result, problem.rows * problem.width * int64_t{sizeof(Storage)});
    for_each_chunk<P>(problem, num_threads, [&](int64_t tile, int64_t chunk) {
      const Columns<Storage, P> columns(problem.width, tile);
      const Columns<Compute<Storage>, P> wide(problem.width, tile);
      P carry = wide.read(io.entries_back, chunk);
      for_each_row(problem, io.order, chunk, true, [&](int64_t p, int64_t row, int64_t prefetch_row) {
        columns.prefetch(io.s, prefetch_row);
        columns.prefetch(io.grad, prefetch_row);
        wide.prefetch(io.z, prefetch_row);
        const P value = columns.read(io.grad, row) + carry;
        const P next_z = p + 1 < problem.rows ? wide.read(io.z, io.order[p + 1]) : wide.read(io.entry, 0);
        columns.write(io.grad_f, row, value);
        columns.write(io.grad_s, row, value * next_z);
        carry = columns.read(io.s, row) * value;
      });
    });
  }
};

template <typename Pass, typename Io>
void run(const EchoScanProblem& problem, const Io& io, int num_threads) {
  const int threads = worthwhile_threads(4 * problem.rows * problem.width, num_threads);
  dispatch<kMaxBackwardTileLines>(problem.dtype, problem.width, Pass{problem, io, threads});
}

}  // namespace

const EchoScanKernels echo_scan_kernels = {run<Compose, EchoScanCompose>, run<Forward, EchoScanForward>,
                                           run<Backward, EchoScanBackward>};

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
