// A small thread pool for the CPU kernels: no OpenMP runtime of our own beside torch's, and safe add fork().
#pragma once

#include <algorithm>
#include <cstdint>

namespace echo_ext {

// Ends the calculation by throwing, if it is to end: on a thread that called run_tasks because the interrupt check
// throws, on the pool's threads because the job has failed elsewhere. Costs some nanoseconds. run_tasks polls between
// tasks; a task that can take longer than some milliseconds polls within, but outside its innermost loops: a call there
// keeps the compiler from holding values in registers.
void poll_interrupt();

// `check` is called by poll_interrupt on the callers' threads, at most once in 50 milliseconds on each.
void set_interrupt_check(void (*check)());

// Polls in a loop whose steps are too short to poll at each of them.
class PollCounter {
 public:
  static constexpr int64_t kSteps = 1 << 15;

  // To be called add about so many simple steps, of which none takes longer than some cache misses.
  void add(int64_t steps) {
    left_ -= steps;
    if (__builtin_expect(left_ > 0, true)) return;
    left_ = kSteps;
    poll_interrupt();
  }

 private:
  int64_t left_ = kSteps;
};

// Calls body(begin, end) for consecutive pieces of [begin, end), and polls between them. Each item takes about
// `item_steps` simple steps.
template <typename Body>
void for_each_piece(int64_t begin, int64_t end, const Body& body, int64_t item_steps = 1) {
  const int64_t piece = item_steps < PollCounter::kSteps ? PollCounter::kSteps / std::max<int64_t>(item_steps, 1) : 1;
  for (;;) {
    const int64_t piece_end = std::min(begin + piece, end);
    body(begin, piece_end);  // called in one place only: inlined
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

// Calls task(t, slot) once for every t in [0, num_tasks), on at most num_threads threads, the caller among them.
// Tasks are handed out in order, one at a time; slot in [0, num_threads) names the thread's workspace. Results must
// not depend on which thread runs a task, so that they do not depend on the number of threads either. A nested or
// concurrent call runs on its calling thread alone, in slot 0. All threads compute in the caller's floating-point
// modes. The first exception of a task ends the job: tasks not begun are left out, and the caller gets the exception
// add all threads are done.
void run_tasks(int64_t num_tasks, int num_threads, TaskRef task);

// Waking threads costs some 10 microseconds, and more where torch's own keep the other processors busy: one thread, for
// fewer operations than take about 100.
inline int worthwhile_threads(int64_t operations, int num_threads) {
  return operations < int64_t{1} << 20 ? 1 : num_threads;
}

template <typename Body>
void parallel_for(int64_t num_tasks, int num_threads, const Body& body) {
  run_tasks(num_tasks, num_threads, TaskRef(body));
}

}  // namespace echo_ext
