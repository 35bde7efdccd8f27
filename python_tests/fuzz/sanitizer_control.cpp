// Deliberate errors, one per sanitizer. .ci/sanitize calls each from Python, like the native module, and requires a
// report.
#include <climits>
#include <cstdlib>
#include <thread>

extern "C" {

__attribute__((visibility("default"))) int address(int places) {
  int* const memory = static_cast<int*>(std::calloc(places, sizeof(int)));
  const int beyond = memory[places];
  std::free(memory);
  return beyond;
}

__attribute__((visibility("default"))) int undefined(int one) { return INT_MAX + one; }

__attribute__((visibility("default"))) int thread(int rounds) {
  int sum = 0;
  const auto add = [&] {
    for (int i = 0; i < rounds; ++i) ++sum;
  };
  std::thread other(add);
  add();
  other.join();
  return sum;
}
}
