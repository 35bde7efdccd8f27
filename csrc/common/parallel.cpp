#include "common/parallel.h"

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <chrono>
#include <condition_variable>
#include <ctime>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>

#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace echo_ext {
namespace {

int64_t process_id() {
#if defined(_WIN32)
  return 0;  // no fork() on Windows
#else
  return static_cast<int64_t>(::getpid());
#endif
}

// The coarse clock takes a few nanoseconds, and a precision of a few milliseconds is enough.
int64_t milliseconds() {
#if defined(CLOCK_MONOTONIC_COARSE)
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return static_cast<int64_t>(now.tv_sec) * 1000 + now.tv_nsec / 1000000;
#else
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
#endif
}

std::atomic<void (*)()> interrupt_check{nullptr};

struct Thread {
  const std::atomic<bool>* stop;  // of the pool that owns the thread; null on a caller's thread
  int64_t next_check;
};
thread_local Thread this_thread{nullptr, 0};

struct Stopped {};

// Spins until `condition` holds, and returns whether it does. Gives up after about ten times the time that it takes to
// wake a sleeping thread.
template <typename Condition>
bool spin_until(const Condition& condition) {
  constexpr std::chrono::microseconds kBusy(20), kYielding(100);  // in the second phase, other threads may run first
  const auto start = std::chrono::steady_clock::now();
  for (;;) {
    for (int i = 0; i < 64; ++i) {
      if (condition()) return true;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    const auto waited = std::chrono::steady_clock::now() - start;
    if (waited > kYielding) return false;
    if (waited > kBusy) std::this_thread::yield();
  }
}

class ThreadPool {
 public:
  ThreadPool() : process_(process_id()) {}

  // A forked child process inherits the memory of the pool but none of its threads.
  bool belongs_to_this_process() const { return process_ == process_id(); }

  // Returns false without running any task if another caller is using the pool.
  bool try_run(int64_t num_tasks, int num_threads, TaskRef task) {
    if (in_use_.exchange(true, std::memory_order_acquire)) return false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task_ = &task;
      num_tasks_ = num_tasks;
      next_task_.store(0, std::memory_order_relaxed);
      stop_.store(false, std::memory_order_relaxed);
      wanted_helpers_ = grow(num_threads - 1);
      std::fegetenv(&floating_point_);
      open_ = true;
      ++generation_;
    }
    wake_.notify_all();
    keep_exception([this] { work(0); });
    std::exception_ptr error;
    {
      // Helpers that are still asleep are not waited for, because they will find the job closed.
      std::unique_lock<std::mutex> lock(mutex_);
      open_ = false;
      lock.unlock();
      spin_until([this] { return working_helpers_.load(std::memory_order_acquire) == 0; });
      lock.lock();
      while (!done_.wait_for(lock, std::chrono::milliseconds(50), [this] { return working_helpers_ == 0; })) {
        lock.unlock();
        keep_exception(poll_interrupt);
        lock.lock();
      }
      error = std::exchange(error_, nullptr);
    }
    in_use_.store(false, std::memory_order_release);
    if (error != nullptr) std::rethrow_exception(error);
    return true;
  }

 private:
  // Starts threads until there are `wanted` of them, or as many as the operating system allows. Returns how many may
  // help.
  int grow(int wanted) {
    try {
      for (; num_helpers_ < wanted; ++num_helpers_)
        std::thread([this, slot = num_helpers_ + 1, seen = generation_.load()] { serve(slot, seen); }).detach();
    } catch (const std::exception&) {
    }
    return std::min(num_helpers_, wanted);
  }

  void serve(int slot, uint64_t seen) {
    this_thread.stop = &stop_;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      // Jobs often follow one another closely, so spin for a while before going to sleep.
      lock.unlock();
      spin_until([&] { return generation_.load(std::memory_order_acquire) != seen; });
      lock.lock();
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (!open_ || slot > wanted_helpers_) continue;
      ++working_helpers_;
      lock.unlock();
      std::fesetenv(&floating_point_);
      keep_exception([this, slot] { work(slot); });
      lock.lock();
      if (--working_helpers_ == 0) done_.notify_one();
    }
  }

  void work(int slot) {
    for (;;) {
      const int64_t t = next_task_.fetch_add(1, std::memory_order_relaxed);
      if (t >= num_tasks_ || stop_.load(std::memory_order_relaxed)) return;
      poll_interrupt();
      (*task_)(t, slot);
    }
  }

  // Runs `body`. An exception is stored for the caller and ends the job.
  template <typename Body>
  void keep_exception(const Body& body) {
    try {
      body();
    } catch (...) {
      if (!belongs_to_this_process()) throw;  // a forked child has no helpers to wait for
      std::lock_guard<std::mutex> lock(mutex_);
      if (error_ == nullptr) error_ = std::current_exception();
      stop_.store(true, std::memory_order_relaxed);
    }
  }

  const int64_t process_;
  std::atomic<bool> in_use_{false};
  int num_helpers_ = 0;  // used only by the caller that holds in_use_
  std::atomic<int64_t> next_task_{0};
  std::atomic<bool> stop_{false};  // set by an exception

  std::mutex mutex_;  // guards the members below
  std::condition_variable wake_;
  std::condition_variable done_;
  std::exception_ptr error_;      // the first exception of the job
  std::fenv_t floating_point_{};  // the caller's rounding mode and treatment of subnormal numbers
  const TaskRef* task_ = nullptr;
  int64_t num_tasks_ = 0;
  int wanted_helpers_ = 0;
  std::atomic<int> working_helpers_{0};  // this and generation_ are also read without the mutex
  std::atomic<uint64_t> generation_{0};
  bool open_ = false;
};

// The pool is never destroyed: its threads may outlive static destruction, and the copy in a forked child has no
// threads to join.
ThreadPool& this_process_pool() {
  static std::atomic<ThreadPool*> pool{nullptr};
  ThreadPool* current = pool.load(std::memory_order_acquire);
  if (current != nullptr && current->belongs_to_this_process()) return *current;
  auto* fresh = new ThreadPool;
  if (pool.compare_exchange_strong(current, fresh, std::memory_order_acq_rel)) return *fresh;
  delete fresh;  // another thread created the pool first; this one has not started any thread yet
  return *current;
}

}  // namespace

void run_tasks(int64_t num_tasks, int num_threads, TaskRef task) {
  if (num_threads > num_tasks) num_threads = static_cast<int>(num_tasks);
  if (num_threads > 1 && this_process_pool().try_run(num_tasks, num_threads, task)) return;
  for (int64_t t = 0; t < num_tasks; ++t) {
    if (t > 0) poll_interrupt();
    task(t, 0);
  }
}

void set_interrupt_check(void (*check)()) { interrupt_check.store(check); }

void poll_interrupt() {
  constexpr int64_t kMillisecondsBetween = 50;
  Thread& thread = this_thread;
  if (thread.stop != nullptr) {
    if (thread.stop->load(std::memory_order_relaxed)) throw Stopped{};
    return;
  }
  const auto check = interrupt_check.load(std::memory_order_relaxed);
  if (check == nullptr) return;
  const int64_t now = milliseconds();
  if (now < thread.next_check) return;
  thread.next_check = now + kMillisecondsBetween;
  const int64_t process = process_id();
  check();
  if (process_id() != process)
    throw std::runtime_error("the process was forked by a signal handler: this calculation goes on in the parent only");
}

}  // namespace echo_ext
