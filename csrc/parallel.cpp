#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace echo_ext {
namespace {

int64_t process_id() {
#if defined(_WIN32)
  return 0;  // no fork() there
#else
  return static_cast<int64_t>(::getpid());
#endif
}

class ThreadPool {
 public:
  ThreadPool() : process_(process_id()) {}

  // A forked child inherits the pool's memory but none of its threads.
  bool belongs_to_this_process() const { return process_ == process_id(); }

  // False, and nothing done, when another caller is using the pool.
  bool try_run(int64_t num_tasks, int num_threads, TaskRef task) {
    if (in_use_.exchange(true, std::memory_order_acquire)) return false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task_ = &task;
      num_tasks_ = num_tasks;
      next_task_.store(0, std::memory_order_relaxed);
      wanted_helpers_ = grow(num_threads - 1);
      open_ = true;
      ++generation_;
    }
    wake_.notify_all();
    work(0);
    {
      // A helper that is still asleep is not waited for: it finds the job closed.
      std::unique_lock<std::mutex> lock(mutex_);
      open_ = false;
      done_.wait(lock, [this] { return working_helpers_ == 0; });
    }
    in_use_.store(false, std::memory_order_release);
    return true;
  }

 private:
  // Starts threads until there are `wanted`; fewer where the system gives no more.
  int grow(int wanted) {
    while (static_cast<int>(threads_.size()) < wanted) {
      const int slot = static_cast<int>(threads_.size()) + 1;
      try {
        threads_.emplace_back([this, slot, seen = generation_] { serve(slot, seen); });
      } catch (const std::system_error&) {
        break;
      }
      threads_.back().detach();
    }
    return std::min(static_cast<int>(threads_.size()), wanted);
  }

  void serve(int slot, uint64_t seen) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (!open_ || slot > wanted_helpers_) continue;
      ++working_helpers_;
      lock.unlock();
      work(slot);
      lock.lock();
      if (--working_helpers_ == 0) done_.notify_one();
    }
  }

  void work(int slot) {
    for (;;) {
      const int64_t t = next_task_.fetch_add(1, std::memory_order_relaxed);
      if (t >= num_tasks_) return;
      (*task_)(t, slot);
    }
  }

  const int64_t process_;
  std::atomic<bool> in_use_{false};
  std::vector<std::thread> threads_;  // the caller's alone
  std::atomic<int64_t> next_task_{0};

  std::mutex mutex_;  // guards the rest
  std::condition_variable wake_;
  std::condition_variable done_;
  const TaskRef* task_ = nullptr;
  int64_t num_tasks_ = 0;
  int wanted_helpers_ = 0;
  int working_helpers_ = 0;
  uint64_t generation_ = 0;
  bool open_ = false;
};

// Never destroyed: its threads may outlive static destruction, and a child's copy has no threads to join.
ThreadPool& this_process_pool() {
  static std::atomic<ThreadPool*> pool{nullptr};
  ThreadPool* current = pool.load(std::memory_order_acquire);
  if (current != nullptr && current->belongs_to_this_process()) return *current;
  auto* fresh = new ThreadPool;
  if (pool.compare_exchange_strong(current, fresh, std::memory_order_acq_rel)) return *fresh;
  delete fresh;  // another thread was first; ours has started nothing yet
  return *current;
}

}  // namespace

void run_tasks(int64_t num_tasks, int num_threads, TaskRef task) {
  if (num_threads > num_tasks) num_threads = static_cast<int>(num_tasks);
  if (num_threads > 1 && this_process_pool().try_run(num_tasks, num_threads, task)) return;
  for (int64_t t = 0; t < num_tasks; ++t) task(t, 0);
}

}  // namespace echo_ext
