// A small thread pool for the CPU kernels: no OpenMP runtime of our own beside torch's, and safe after fork().
#pragma once

#include <cstdint>

namespace echo_ext {

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
// concurrent call runs on its calling thread alone, in slot 0. Tasks must not throw.
void run_tasks(int64_t num_tasks, int num_threads, TaskRef task);

// Waking threads costs some 10 microseconds, and more where torch's own keep the other processors busy: one thread, for
// fewer operations than take about 100.
inline int worthwhile_threads(int64_t operations, int num_threads) {
  return operations < int64_t{1} << 19 ? 1 : num_threads;
}

template <typename Body>
void parallel_for(int64_t num_tasks, int num_threads, const Body& body) {
  run_tasks(num_tasks, num_threads, TaskRef(body));
}

}  // namespace echo_ext
