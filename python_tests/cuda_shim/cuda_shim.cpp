// The machine behind cuda_runtime.h: a device, and a scheduler of one block's threads.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#include "cuda_runtime.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else  // nobody to tell
namespace {
void __asan_poison_memory_region(const void*, size_t) {}
void __asan_unpoison_memory_region(const void*, size_t) {}
void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}
void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}
}  // namespace
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

constexpr size_t kMaxSharedBytes = 227 * 1024;
alignas(128) float4 dynamic_shared_memory[kMaxSharedBytes / sizeof(float4)];

// The symbol from which kernels are numbered.
extern "C" void cuda_shim_anchor() {}

namespace cuda_shim {

Order order = Order::ascending;
std::vector<Launch> launches;
bool runs_kernels = true;
std::unordered_map<int64_t, int> registers;

namespace {

struct Device {
  int multiprocessors, shared_bytes;
};
constexpr int kDeviceZero = 227004;
int current_device = 0;

// The number of a device says what it has: 1000 times the kilobytes of shared memory of a block, plus the number of
// multiprocessors. So what the kernels remember of a device stays true. 0 is a device as well, as it is in CUDA.
Device device_of(int number) {
  if (number == 0) number = kDeviceZero;
  return {number % 1000, number / 1000 * 1024};
}
Device device() { return device_of(current_device); }

constexpr size_t kStackBytes = 256 * 1024;
constexpr int kMaxThreads = 1024;
constexpr size_t kSharedBytesWithoutOptIn = 48 * 1024;

[[noreturn]] void fail(const char* message) {
  std::fprintf(stderr, "cuda_shim: block (%u, %u, %u), thread %u: %s\n", blockIdx.x, blockIdx.y, blockIdx.z,
               threadIdx.x, message);
  std::_Exit(3);
}

// ---- Switching from one stack to another. ucontext would do everywhere, but enters the kernel at every switch. -----

#if defined(__x86_64__)
using Context = void*;  // the stack pointer; everything else lies on the stack
extern "C" void cuda_shim_switch(Context* from, Context to);
asm(R"(
  .text
  .globl cuda_shim_switch
  .type cuda_shim_switch, @function
cuda_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size cuda_shim_switch, .-cuda_shim_switch
)");

void switch_context(Context* from, Context* to) { cuda_shim_switch(from, *to); }

void prepare_context(Context* context, char* stack, void (*entry)()) {
  auto** top = reinterpret_cast<void**>(stack + kStackBytes);
  *--top = nullptr;  // entry's return address: it never returns, and the stack is aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int callee_saved = 0; callee_saved < 6; ++callee_saved) *--top = nullptr;
  *context = top;
}
#else
using Context = ucontext_t;
void switch_context(Context* from, Context* to) { swapcontext(from, to); }

void prepare_context(Context* context, char* stack, void (*entry)()) {
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = kStackBytes;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
}
#endif

// ---- The threads of a block ----------------------------------------------------------------------------------------

enum class State { ready, at_block_barrier, at_warp_meeting, finished };

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Thread {
  Context context;
  void* fake_stack = nullptr;  // AddressSanitizer's
  char* stack = nullptr;
  State state = State::finished;
  Meeting meeting = Meeting::block_barrier;
  unsigned mask = 0;
  uint64_t value = 0;                         // what it brings to a warp meeting
  uint64_t published = 0;                     // what the other lanes of the meeting see
  std::vector<std::vector<Copy>> copies{{}};  // not made yet, by groups, of which the last is not committed
};

Thread threads[kMaxThreads];
int num_threads = 0;
int current = 0;
const std::function<void()>* body = nullptr;
Context scheduler;
void* scheduler_fake_stack = nullptr;
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;

void back_to_scheduler(bool for_good) {
  Thread& self = threads[current];
  __sanitizer_start_switch_fiber(for_good ? nullptr : &self.fake_stack, scheduler_stack, scheduler_stack_bytes);
  switch_context(&self.context, &scheduler);
  __sanitizer_finish_switch_fiber(self.fake_stack, &scheduler_stack, &scheduler_stack_bytes);
}

void thread_main() {
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
  (*body)();
  for (const auto& group : threads[current].copies)
    if (!group.empty()) fail("exited before its asynchronous copies were made");
  threads[current].copies.assign(1, {});
  threads[current].state = State::finished;
  back_to_scheduler(true);
}

void resume(int index) {
  current = index;
  threadIdx = dim3(static_cast<unsigned>(index));
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, threads[index].stack, kStackBytes);
  switch_context(&scheduler, &threads[index].context);
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
}

int lanes_of_warp(int first) { return num_threads - first < warpSize ? num_threads - first : warpSize; }

// Lets every lane run until it waits or ends.
void run_lanes(int first) {
  const int lanes = lanes_of_warp(first);
  for (int i = 0; i < lanes; ++i) {
    const int lane = order == Order::ascending ? i : lanes - 1 - i;
    if (threads[first + lane].state == State::ready) resume(first + lane);
  }
}

// Releases the lanes whose warp meeting is complete. Called when no lane can run, so that a meeting that is not
// complete never will be.
bool complete_warp_meetings(int first) {
  const int lanes = lanes_of_warp(first);
  unsigned released = 0;
  for (int lane = 0; lane < lanes; ++lane) {
    const Thread& thread = threads[first + lane];
    if (thread.state != State::at_warp_meeting || (released >> lane & 1u) != 0) continue;
    threadIdx = dim3(static_cast<unsigned>(first + lane));
    if ((thread.mask >> lane & 1u) == 0) fail("the mask of a warp intrinsic does not name the calling lane");
    for (int other = 0; other < warpSize; ++other) {
      if ((thread.mask >> other & 1u) == 0) continue;
      if (other >= lanes) fail("the mask of a warp intrinsic names a lane beyond the block");
      const Thread& peer = threads[first + other];
      if (peer.state == State::finished) fail("the mask of a warp intrinsic names a lane that has exited");
      if (peer.state == State::at_block_barrier) fail("a lane waits at __syncthreads, another at a warp intrinsic");
      if (peer.meeting != thread.meeting) fail("lanes of one mask wait at different warp intrinsics");
      if (peer.mask != thread.mask) fail("lanes of one warp intrinsic pass different masks");
    }
    released |= thread.mask;
  }
  for (int lane = 0; lane < lanes; ++lane)
    if ((released >> lane & 1u) != 0) {
      threads[first + lane].state = State::ready;
      threads[first + lane].published = threads[first + lane].value;
    }
  return released != 0;
}

// True while there is more to run.
bool complete_block_barrier() {
  int waiting = 0;
  for (int i = 0; i < num_threads; ++i) waiting += threads[i].state == State::at_block_barrier ? 1 : 0;
  if (waiting == 0) return false;
  for (int i = 0; i < num_threads; ++i) {
    threadIdx = dim3(static_cast<unsigned>(i));
    if (threads[i].state == State::finished) fail("exited while others wait at __syncthreads");
    threads[i].state = State::ready;
  }
  return true;
}

void run_block() {
  for (int i = 0; i < num_threads; ++i) {
    Thread& thread = threads[i];
    if (thread.stack == nullptr) {
      void* memory =
          mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) fail("no memory for a stack");
      thread.stack = static_cast<char*>(memory);
    }
    thread.state = State::ready;
    // The thread that had this stack before has never returned from its first function, whose frame is still guarded.
    constexpr size_t kFirstFrame = 4096;
    __asan_unpoison_memory_region(thread.stack + kStackBytes - kFirstFrame, kFirstFrame);
    prepare_context(&thread.context, thread.stack, thread_main);
  }
  const int num_warps = (num_threads + warpSize - 1) / warpSize;
  do {
    for (int i = 0; i < num_warps; ++i) {
      const int first = (order == Order::ascending ? i : num_warps - 1 - i) * warpSize;
      do run_lanes(first);
      while (complete_warp_meetings(first));
    }
  } while (complete_block_barrier());
}

int64_t num_meetings = 0;

void wait(State state) {
  ++num_meetings;
  threads[current].state = state;
  back_to_scheduler(false);
}

// How far its code lies from the anchor, in every process that loads this module.
int64_t kernel_number(const void* kernel) {
  return reinterpret_cast<const char*>(kernel) - reinterpret_cast<const char*>(&cuda_shim_anchor);
}

std::unordered_map<const void*, int>& allowed_shared_bytes() {
  static std::unordered_map<const void*, int> allowed;
  return allowed;
}

}  // namespace

// By the rules of compute capability 9.0: 64 warps, 32 blocks and 65,536 registers, given out to warps by 256 at a
// time; shared memory is given out by 128 bytes, and each block takes 1 KB more than it asks for.
cudaError_t resident_blocks(const void* kernel, int block_threads, size_t shared_bytes, int* blocks) {
  constexpr int kWarps = 64, kBlocks = 32, kRegisters = 65536, kRegisterUnit = 256, kUsualRegisters = 64;
  constexpr int64_t kSharedUnit = 128, kReserved = 1024;
  if (block_threads < 1 || block_threads > kMaxThreads) return cudaErrorInvalidValue;
  const auto found = registers.find(kernel_number(kernel));
  const int of_thread = found == registers.end() ? kUsualRegisters : found->second;
  const int of_warp = (of_thread * warpSize + kRegisterUnit - 1) / kRegisterUnit * kRegisterUnit;
  const int warps = (block_threads + warpSize - 1) / warpSize;
  const int64_t shared = (static_cast<int64_t>(shared_bytes) + kReserved + kSharedUnit - 1) / kSharedUnit * kSharedUnit;
  int64_t most = kBlocks;
  for (const int64_t limit :
       {int64_t{kWarps / warps}, int64_t{kRegisters / of_warp / warps}, (device().shared_bytes + kReserved) / shared})
    if (limit < most) most = limit;
  *blocks = static_cast<int>(most);
  return cudaSuccess;
}

void copy_async(void* shared, const void* global, int bytes) {
  const auto unit = static_cast<uintptr_t>(bytes);
  const auto* to = static_cast<const char*>(shared);
  const auto* begin = reinterpret_cast<const char*>(dynamic_shared_memory);
  if (to < begin || to >= begin + kMaxSharedBytes) fail("an asynchronous copy goes to what is not shared memory");
  if (reinterpret_cast<uintptr_t>(shared) % unit != 0 || reinterpret_cast<uintptr_t>(global) % unit != 0)
    fail("an asynchronous copy is not aligned");
  if (order == Order::descending)
    std::memcpy(shared, global, unit);
  else
    threads[current].copies.back().push_back({shared, global, unit});
}

void commit_copies() { threads[current].copies.emplace_back(); }

void wait_for_copies(int most_pending) {
  auto& groups = threads[current].copies;
  while (static_cast<int>(groups.size()) - 1 > most_pending) {
    for (const Copy& copy : groups.front()) std::memcpy(copy.to, copy.from, copy.bytes);
    groups.erase(groups.begin());
  }
}

void meet_block() { wait(State::at_block_barrier); }

void meet_warp(Meeting meeting, unsigned mask, uint64_t value) {
  Thread& self = threads[current];
  self.meeting = meeting;
  self.mask = mask;
  self.value = value;
  wait(State::at_warp_meeting);
}

int lane_of_this_thread() { return current % warpSize; }

// Safe until the caller's next meeting: all lanes of a meeting run on before any further meeting completes.
uint64_t value_of_lane(int lane) {
  const int first = current / warpSize * warpSize;
  const Thread& self = threads[current];
  if (lane < 0 || lane >= warpSize || (self.mask >> lane & 1u) == 0) fail("a shuffle reads a lane outside its mask");
  return threads[first + lane].published;
}

cudaError_t allow_shared_bytes(const void* kernel, int bytes) {
  if (bytes > device().shared_bytes) return cudaErrorInvalidValue;
  allowed_shared_bytes()[kernel] = bytes;
  return cudaSuccess;
}

cudaError_t run(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& thread) {
  const auto allowed = allowed_shared_bytes().find(kernel);
  const size_t shared_limit =
      allowed == allowed_shared_bytes().end() ? kSharedBytesWithoutOptIn : static_cast<size_t>(allowed->second);
  const dim3 grid = config.gridDim, block = config.blockDim;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535 || block.x == 0 ||
      block.x > kMaxThreads || block.y != 1 || block.z != 1 || grid.x > 0x7fffffffu)
    return cudaErrorInvalidConfiguration;
  if (config.dynamicSmemBytes > shared_limit || config.dynamicSmemBytes > static_cast<size_t>(device().shared_bytes))
    return cudaErrorInvalidValue;
  int resident = 0;
  resident_blocks(kernel, static_cast<int>(block.x), config.dynamicSmemBytes, &resident);
  if (resident == 0) return cudaErrorInvalidConfiguration;
  launches.push_back({kernel_number(kernel), grid, block.x, config.dynamicSmemBytes, resident, 0});
  if (!runs_kernels) return cudaSuccess;
  num_meetings = 0;
  gridDim = grid;
  blockDim = block;
  num_threads = static_cast<int>(block.x);
  body = &thread;
  auto* shared = reinterpret_cast<char*>(dynamic_shared_memory);
  __asan_poison_memory_region(shared + config.dynamicSmemBytes, kMaxSharedBytes - config.dynamicSmemBytes);
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        std::memset(shared, 0xff, config.dynamicSmemBytes);  // NaN
        run_block();
      }
  __asan_unpoison_memory_region(shared, kMaxSharedBytes);
  launches.back().meetings = num_meetings;
  return cudaSuccess;
}

}  // namespace cuda_shim

// ---- The runtime ---------------------------------------------------------------------------------------------------

const char* cudaGetErrorString(cudaError_t status) {
  switch (status) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
  }
  return "unknown error";
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = cuda_shim::current_device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0) return cudaErrorInvalidDevice;
  cuda_shim::current_device = device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0) return cudaErrorInvalidDevice;
  const cuda_shim::Device asked = cuda_shim::device_of(device);
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = asked.multiprocessors; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = asked.shared_bytes; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = asked.shared_bytes + 1024; return cudaSuccess;
    case cudaDevAttrReservedSharedMemoryPerBlock: *value = 1024; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  if (bytes != 0 && cuda_shim::runs_kernels) std::memset(memory, value, bytes);
  return cudaSuccess;
}
