// A small thread pool for the CPU kernels. It is our own because it adds no second OpenMP runtime to PyTorch's, keeps
// working after fork(), and gives results that do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

namespace echo_ext {

// Throws an exception if the calculation must end: on a thread that called run_tasks, because the interrupt check
// throws; on a thread of the pool, because the job has failed elsewhere. A call takes a few nanoseconds. run_tasks
// polls between tasks. A task that may run for more than a few milliseconds must poll by itself, but not in its
// innermost loops, where a call would keep the compiler from holding values in registers.
void poll_interrupt();

// Sets the function that poll_interrupt calls on callers' threads, at most once every 50 milliseconds on each thread.
void set_interrupt_check(void (*check)());

// Counts steps, and polls once enough of them have been taken. For loops whose steps are too short to poll at each.
class PollCounter {
 public:
  static constexpr int64_t kSteps = 1 << 15;

  // Call this after about `steps` simple steps, none of which takes longer than a few cache misses.
  void add(int64_t steps) {
    left_ -= steps;
    if (__builtin_expect(left_ > 0, true)) return;
    left_ = kSteps;
    poll_interrupt();
  }

 private:
  int64_t left_ = kSteps;
};

// Calls body(begin, end) for consecutive pieces of [begin, end), and polls between them. `item_steps` is the
// approximate number of simple steps for each item.
template <typename Body>
void for_each_piece(int64_t begin, int64_t end, const Body& body, int64_t item_steps = 1) {
  const int64_t piece = item_steps < PollCounter::kSteps ? PollCounter::kSteps / std::max<int64_t>(item_steps, 1) : 1;
  for (;;) {
    const int64_t piece_end = std::min(begin + piece, end);
    body(begin, piece_end);  // the only call, so that it is inlined
    if (__builtin_expect(piece_end == end, true)) return;
    poll_interrupt();
    begin = piece_end;
  }
}

// A non-owning reference to a callable `void(int64_t task, int slot)`.
class TaskRef {
 public:
  template <typename Body>
  explicit TaskRef(const Body& body)
      : body_(&body),
        call_([](const void* b, int64_t task, int slot) { (*static_cast<const Body*>(b))(task, slot); }) {}
  void operator()(int64_t task, int slot) const { call_(body_, task, slot); }

 private:
  const void* body_;
  void (*call_)(const void*, int64_t, int);
};

// Calls task(t, slot) once for every t in [0, num_tasks), on at most num_threads threads including the caller. Tasks
// are started in order, one at a time. The slot, in [0, num_threads), identifies the thread's workspace. The result of
// a task must not depend on the slot; then results do not depend on the number of threads either. A nested or
// concurrent call runs on its calling thread alone, in slot 0. All threads use the floating-point modes of the caller.
// The first exception of a task ends the job: tasks that have not started are skipped, and the exception is rethrown to
// the caller once all threads have finished.
void run_tasks(int64_t num_tasks, int num_threads, TaskRef task);

// Waking threads takes about 10 microseconds, and longer if PyTorch's own threads keep the processors busy. Jobs with
// fewer operations than take about 100 microseconds therefore run on one thread.
inline int worthwhile_threads(int64_t operations, int num_threads) {
  return operations < int64_t{1} << 20 ? 1 : num_threads;
}

template <typename Body>
void parallel_for(int64_t num_tasks, int num_threads, const Body& body) {
  run_tasks(num_tasks, num_threads, TaskRef(body));
}

}  // namespace echo_ext
