// The entry points of the Echo ops on the CPU, and the draws themselves.
#include <algorithm>
#include <memory>
#include <mutex>
#include <tuple>
#include <utility>

#include "common/parallel.h"
#include "common/workspace.h"
#include "echo/kernels_cpu.h"

namespace echo_ext {
namespace {

const EchoKernels& kernels(const EchoProblem& problem) {
  return problem.sampling == Sampling::ring ? echo_ring_kernels() : echo_rows_kernels();
}

int64_t typical_operations(const EchoProblem& problem, bool is_backward) {
  constexpr int64_t kTypicalTerms = 64, kRingTerms = 4, kBackwardFactor = 2;
  const int64_t terms = problem.sampling == Sampling::ring ? kRingTerms : std::min(problem.num_terms, kTypicalTerms);
  return problem.rows * problem.width * terms * (is_backward ? kBackwardFactor : 1);
}

// Caches the draws of small forward passes for the backward passes that follow, where computing them is a large part of
// the work. The draws are a function of the cache key, so a hit or a miss does not affect results.
class DrawCache {
 public:
  using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, bool, Sampling>;

  static Key key(const EchoProblem& problem, int64_t seed) {
    return {seed, problem.rows, problem.bank_rows, problem.num_terms, problem.exclude_self, problem.sampling};
  }
  static bool is_cacheable(const EchoProblem& problem) {
    constexpr int64_t kMaxTerms = 1 << 16;
    return problem.sampling != Sampling::ring && problem.rows > 0 &&
           problem.rows <= kMaxTerms / DrawTable::capacity_for(problem.num_terms);
  }

  struct Entry {
    Key key;
    std::unique_ptr<int32_t[]> numbers;  // counts, followed by terms
    DrawTable table(const EchoProblem& problem) const {
      return {0, DrawTable::capacity_for(problem.num_terms), numbers.get() + problem.rows, numbers.get()};
    }
  };

  // Removes and returns the entry of this problem and seed, so that no other caller can use it at the same time. If
  // there is none, returns a new entry.
  Entry take(const EchoProblem& problem, int64_t seed) {
    const Key wanted = key(problem, seed);
    if (std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock); lock.owns_lock())
      for (Entry& entry : entries_)
        if (entry.numbers != nullptr && entry.key == wanted) return std::move(entry);
    const int64_t capacity = DrawTable::capacity_for(problem.num_terms);
    Entry fresh{wanted, std::unique_ptr<int32_t[]>(new int32_t[static_cast<size_t>(problem.rows * (1 + capacity))])};
    std::fill_n(fresh.numbers.get(), problem.rows, 0);
    return fresh;
  }

  // Replaces the oldest entry.
  void put(Entry entry) {
    if (std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock); lock.owns_lock())
      std::swap(entries_[next_++ % kEntries], entry);
  }

 private:
  static constexpr size_t kEntries = 4;
  std::mutex mutex_;  // never waited for: a child process may be forked while it is locked
  Entry entries_[kEntries];
  size_t next_ = 0;
};

DrawCache& draw_cache() {
  static DrawCache* all = new DrawCache;  // never destroyed: threads may outlive static objects
  return *all;
}

template <typename Io>
void run_with_workspace(void (*kernel)(const EchoProblem&, const Io&, const DrawTable*, int),
                        int64_t (*workspace_bytes)(const EchoProblem&, int), const EchoProblem& problem, Io io,
                        int num_threads, bool is_backward) {
  if (problem.width == 0 || problem.bank_rows == 0) return;
  const int threads = worthwhile_threads(typical_operations(problem, is_backward), num_threads);
  const auto workspace = ECHO_EXT_ISA::allocate_workspace(workspace_bytes(problem, threads));
  io.workspace = workspace.get();
  if (!DrawCache::is_cacheable(problem)) return kernel(problem, io, nullptr, threads);
  DrawCache::Entry entry = draw_cache().take(problem, *io.seed);
  const DrawTable table = entry.table(problem);
  kernel(problem, io, &table, threads);
  if (!is_backward) draw_cache().put(std::move(entry));
}

}  // namespace

void echo_cpu_forward(const EchoProblem& problem, const EchoForward& io, int num_threads) {
  const EchoKernels& chosen = kernels(problem);
  run_with_workspace(chosen.forward, chosen.forward_workspace_bytes, problem, io, num_threads, false);
}

void echo_cpu_backward(const EchoProblem& problem, const EchoBackward& io, int num_threads) {
  const EchoKernels& chosen = kernels(problem);
  run_with_workspace(chosen.backward, chosen.backward_workspace_bytes, problem, io, num_threads, true);
}

void echo_cpu_indices(const EchoProblem& problem, const int64_t* seed, int64_t* indices, int num_threads) {
  const Draws draws = draws_of(problem, *seed);
  parallel_for(problem.rows, num_threads, [&](int64_t row, int) {
    int64_t* out = indices + row * problem.num_terms;
    if (draws.sampling == Sampling::ring) {
      const RingPlace place = ring_place(draws, row);
      for_each_piece(0, problem.num_terms, [&](int64_t begin, int64_t end) {
        for (int64_t term = begin; term < end; ++term) out[term] = ring_draw(draws, place, term);
      });
      return;
    }
    const Bijection order(num_candidates(draws));
    const DrawKey key = draw_key(draws.seed, static_cast<uint64_t>(row));
    for_each_piece(0, problem.num_terms, [&](int64_t begin, int64_t end) {
      for (int64_t term = begin; term < end; ++term)
        out[term] = draw(draws, order, key, row, static_cast<uint32_t>(term));
    });
  });
}

}  // namespace echo_ext
