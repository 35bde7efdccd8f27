#include <algorithm>
#include <memory>

#include "echo_cpu.h"
#include "isa.h"
#include "parallel.h"

namespace echo_ext {
namespace {

const EchoCpuKernels& kernels(const EchoProblem& problem) {
  const bool ring = problem.sampling == Sampling::ring;
#if defined(ECHO_EXT_X86_DISPATCH)
  if (current_isa() == Isa::avx512) return ring ? avx512::echo_ring_kernels : avx512::echo_kernels;
  if (current_isa() == Isa::avx2) return ring ? avx2::echo_ring_kernels : avx2::echo_kernels;
#endif
  return ring ? baseline::echo_ring_kernels : baseline::echo_kernels;
}

int64_t usual_operations(const EchoProblem& problem) {
  constexpr int64_t kUsualTerms = 64, kRingTerms = 4;
  const int64_t terms = problem.sampling == Sampling::ring ? kRingTerms : std::min(problem.num_terms, kUsualTerms);
  return problem.rows * problem.width * terms;
}

template <typename Io>
void run_with_workspace(void (*kernel)(const EchoProblem&, const Io&, int),
                        int64_t (*workspace_bytes)(const EchoProblem&, int), const EchoProblem& problem, Io io,
                        int num_threads) {
  const int threads = worthwhile_threads(usual_operations(problem), num_threads);
  const std::unique_ptr<char[]> workspace(new char[static_cast<size_t>(workspace_bytes(problem, threads))]);
  io.workspace = workspace.get();
  kernel(problem, io, threads);
}

}  // namespace

void echo_cpu_forward(const EchoProblem& problem, const EchoForward& io, int num_threads) {
  const EchoCpuKernels& chosen = kernels(problem);
  run_with_workspace(chosen.forward, chosen.forward_workspace_bytes, problem, io, num_threads);
}

void echo_cpu_backward(const EchoProblem& problem, const EchoBackward& io, int num_threads) {
  const EchoCpuKernels& chosen = kernels(problem);
  run_with_workspace(chosen.backward, chosen.backward_workspace_bytes, problem, io, num_threads);
}

void echo_cpu_indices(const EchoProblem& problem, const int64_t* seed, int64_t* indices, int num_threads) {
  const Draws draws = draws_of(problem, *seed);
  parallel_for(problem.rows, num_threads, [&](int64_t row, int) {
    int64_t* out = indices + row * problem.num_terms;
    if (draws.sampling == Sampling::ring) {
      const RingPlace place = ring_place(draws, row);
      in_pieces(0, problem.num_terms, [&](int64_t begin, int64_t end) {
        for (int64_t term = begin; term < end; ++term) out[term] = ring_draw(draws, place, term);
      });
      return;
    }
    const Bijection order(num_candidates(draws));
    const DrawKey key = draw_key(draws.seed, static_cast<uint64_t>(row));
    in_pieces(0, problem.num_terms, [&](int64_t begin, int64_t end) {
      for (int64_t term = begin; term < end; ++term)
        out[term] = draw(draws, order, key, row, static_cast<uint32_t>(term));
    });
  });
}

}  // namespace echo_ext
