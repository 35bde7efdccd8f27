#include <algorithm>

#include "cpu_kernel.h"
#include "echo_scan.h"
#include "parallel.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {
namespace {

// How far ahead of its use a row, which may lie anywhere, is asked for.
constexpr int64_t kAhead = 12;

template <typename P>
int64_t num_tiles(int64_t width) {
  return (width + P::kColumns - 1) / P::kColumns;
}

struct Compose {
  const EchoScanProblem& problem;
  const EchoScanCompose& io;
  int num_threads;

  template <typename Storage, typename P>
  void run() const {
    parallel_for(num_tiles<P>(problem.width), num_threads, [&](int64_t tile, int) {
      const Columns<Storage, P> columns(problem.width, tile);
      const Columns<Compute<Storage>, P> maps(problem.width, tile);
      P constant = P::filled(0), scale = P::filled(1);
      for (int64_t step = 0; step < problem.rows; ++step) {
        const auto row_of = [&](int64_t i) { return io.order[io.backward ? i : problem.rows - 1 - i]; };
        const int64_t row = row_of(step), later = row_of(std::min(step + kAhead, problem.rows - 1));
        columns.prefetch(io.source, later);
        columns.prefetch(io.s, later);
        const P source = columns.read(io.source, row), s = columns.read(io.s, row);
        constant = io.backward ? s * (source + constant) : source + s * constant;
        scale = scale * s;
      }
      maps.write(io.constants, 0, constant);
      if (io.scales != nullptr) maps.write(io.scales, 0, scale);
    });
  }
};

struct Forward {
  const EchoScanProblem& problem;
  const EchoScanForward& io;
  int num_threads;

  template <typename Storage, typename P>
  void run() const {
    parallel_for(num_tiles<P>(problem.width), num_threads, [&](int64_t tile, int) {
      const Columns<Storage, P> columns(problem.width, tile);
      const Columns<Compute<Storage>, P> wide(problem.width, tile);
      P z = wide.read(io.entry, 0);
      for (int64_t p = problem.rows - 1; p >= 0; --p) {
        const int64_t row = io.order[p], later = io.order[std::max<int64_t>(p - kAhead, 0)];
        columns.prefetch(io.f, later);
        columns.prefetch(io.s, later);
        z = columns.read(io.f, row) + columns.read(io.s, row) * z;
        wide.write(io.z, row, z);
      }
    });
  }
};

struct Backward {
  const EchoScanProblem& problem;
  const EchoScanBackward& io;
  int num_threads;

  template <typename Storage, typename P>
  void run() const {
    parallel_for(num_tiles<P>(problem.width), num_threads, [&](int64_t tile, int) {
      const Columns<Storage, P> columns(problem.width, tile);
      const Columns<Compute<Storage>, P> wide(problem.width, tile);
      P handed = wide.read(io.entry_back, 0);
      for (int64_t p = 0; p < problem.rows; ++p) {
        const int64_t row = io.order[p], later = io.order[std::min(p + kAhead, problem.rows - 1)];
        columns.prefetch(io.s, later);
        columns.prefetch(io.grad, later);
        wide.prefetch(io.z, later);
        const P value = columns.read(io.grad, row) + handed;
        const P behind = p + 1 < problem.rows ? wide.read(io.z, io.order[p + 1]) : wide.read(io.entry, 0);
        columns.write(io.grad_f, row, value);
        columns.write(io.grad_s, row, value * behind);
        handed = columns.read(io.s, row) * value;
      }
    });
  }
};

template <typename Pass, typename Io>
void run(const EchoScanProblem& problem, const Io& io, int num_threads) {
  dispatch<kMaxBackwardTileLines>(problem.dtype, problem.width, Pass{problem, io, num_threads});
}

}  // namespace

const EchoScanCpuKernels echo_scan_kernels = {run<Compose, EchoScanCompose>, run<Forward, EchoScanForward>,
                                              run<Backward, EchoScanBackward>};

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
