// Tests of the thread pool with custom tasks: exceptions from any thread, nested calls, repeated failures, interrupts.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "common/parallel.h"

using namespace echo_ext;

namespace {

constexpr int kThreads = 4;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::printf("%s\n", what);
  std::exit(1);
}

void pause() { std::this_thread::sleep_for(std::chrono::microseconds(20)); }

// Checks that every task runs once and that helper threads take part.
void expect_usable(const char* after) {
  std::vector<std::atomic<int>> runs(3000);
  std::atomic<bool> helped{false};
  for (int attempt = 0; attempt < 50 && !helped; ++attempt) {
    for (auto& each : runs) each = 0;
    parallel_for(static_cast<int64_t>(runs.size()), kThreads, [&](int64_t task, int slot) {
      ++runs[static_cast<size_t>(task)];
      if (slot > 0) helped = true;
      pause();
    });
    for (auto& each : runs) expect(each == 1, after);
  }
  expect(helped, after);
}

// Throws in one slot and checks that no task runs after the call returns and that the remaining tasks are skipped.
// Returns whether the exception reached the caller.
template <typename Throw>
bool run_failing(int failing_slot, const Throw& raise) {
  std::atomic<int64_t> begun{0}, running{0};
  std::atomic<bool> returned{false};
  bool caught = false;
  try {
    parallel_for(100000, kThreads, [&](int64_t, int slot) {
      expect(!returned, "a task ran after its job had returned");
      ++running;
      ++begun;
      pause();
      --running;
      if (slot == failing_slot && begun > 8) raise();
    });
  } catch (const std::bad_alloc&) {
    caught = true;
  } catch (const std::runtime_error& error) {
    caught = error.what() == std::string("stop");
  }
  returned = true;
  expect(running == 0, "a task was running after its job had returned");
  expect(!caught || begun < 100000, "no task was skipped after the exception");
  return caught;
}

std::atomic<int> checks{0};

}  // namespace

int main() {
  expect_usable("the pool does not work");
  for (int round = 0; round < 20; ++round) {
    expect(run_failing(0, [] { throw std::bad_alloc(); }), "the caller's own exception was lost");
    expect(run_failing(1, [] { throw std::bad_alloc(); }), "a helper's exception was lost");
    expect(run_failing(2, [] { throw std::runtime_error("stop"); }), "another helper's exception was lost");
  }
  expect_usable("the pool does not work after exceptions");

  bool caught = false;
  try {
    parallel_for(50, kThreads, [&](int64_t, int) {
      parallel_for(50, kThreads, [&](int64_t task, int) {
        if (task == 40) throw std::runtime_error("nested");
      });
    });
  } catch (const std::runtime_error&) {
    caught = true;
  }
  expect(caught, "a nested exception was lost");
  expect_usable("the pool does not work after a nested exception");

  // An exception in one thread stops a long task of a helper that polls for interrupts.
  std::atomic<bool> waits{false};
  caught = false;
  try {
    parallel_for(kThreads, kThreads, [&](int64_t, int slot) {
      if (slot > 0) {
        waits = true;
        for (;;) poll_interrupt();
      }
      while (!waits) std::this_thread::yield();
      throw std::runtime_error("stop");
    });
  } catch (const std::runtime_error&) {
    caught = true;
  }
  expect(caught, "the caller's exception was lost while a helper was polling");
  expect_usable("the pool does not work after a long task was stopped");

  // An interrupt ends the call for any number of threads. Only the caller's thread checks for interrupts.
  static const std::thread::id caller = std::this_thread::get_id();
  set_interrupt_check([] {
    expect(std::this_thread::get_id() == caller, "a helper thread checked for interrupts");
    if (++checks > 2) throw std::runtime_error("interrupt");
  });
  for (const int threads : {1, kThreads}) {
    checks = 0;
    caught = false;
    try {
      parallel_for(threads, threads, [&](int64_t, int) {
        for (;;) poll_interrupt();
      });
    } catch (const std::runtime_error& error) {
      caught = error.what() == std::string("interrupt");
    }
    expect(caught, "an interrupt was lost");
  }
  // The interrupt arrives while the caller has finished its own tasks and waits for a helper.
  checks = 0;
  caught = false;
  waits = false;
  try {
    parallel_for(2, 2, [&](int64_t, int slot) {
      if (slot > 0) {
        waits = true;
        for (;;) poll_interrupt();
      }
      while (!waits) std::this_thread::yield();
    });
  } catch (const std::runtime_error& error) {
    caught = error.what() == std::string("interrupt");
  }
  expect(caught, "an interrupt was lost while the caller was waiting for a helper");
  set_interrupt_check(nullptr);
  expect_usable("the pool does not work after interrupts");
  return 0;
}
