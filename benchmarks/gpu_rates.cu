// Rates of the hardware that bound the Echo kernels, one line of JSON for each as it is measured:
//   - fp32 atomic additions to random 128-byte rows of a 1 MB table (what the gradients of a bank do), by scalar and,
//     on sm_90 and later, by float4 additions;
//   - reads of random 128-byte rows of a table in shared memory, 16 bytes a thread (what noise is made from);
//   - copies of random rows of 128 and 256 bytes of a table larger than the L2 cache (what the ring does), and
//     of rows in their order.
// Usage: gpu_rates [probe]        probe: a few launches on small tables, to find out whether a tool works here.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <vector>

#define CHECK(call)                                                                          \
  do {                                                                                       \
    const cudaError_t status = (call);                                                       \
    if (status != cudaSuccess) {                                                             \
      std::fprintf(stderr, "gpu_rates: %s failed: %s\n", #call, cudaGetErrorString(status)); \
      std::exit(2);                                                                          \
    }                                                                                        \
  } while (false)

constexpr int kThreads = 256, kTableRows = 8192, kRowFloats = 32, kAdds = 512;

// A bijection of [0, 2^bits) without structure that a cache or a memory row could use.
__device__ uint32_t scatter(uint32_t x, int bits) {
  const uint32_t mask = (1u << bits) - 1;
  for (int round = 0; round < 3; ++round) {
    x = (x * 0x9E3779B1u + 0x7F4A7C15u) & mask;
    x ^= x >> (bits / 2);
  }
  return x;
}

template <int kVector, bool kAsOne>
__device__ void add(float* at) {
#if __CUDA_ARCH__ >= 900
  if constexpr (kAsOne) {
    atomicAdd(reinterpret_cast<float4*>(at), make_float4(1, 1, 1, 1));
    return;
  } else
#endif
    for (int k = 0; k < kVector; ++k) atomicAdd(at + k, 1.0f);
}

// kVector consecutive floats a thread, so that kRowFloats / kVector threads add to one row; kAsOne: by one instruction.
template <int kVector, bool kAsOne>
__global__ void add_kernel(float* table) {
  constexpr uint32_t kLanes = kRowFloats / kVector;
  const uint32_t thread = blockIdx.x * kThreads + threadIdx.x, lane = thread % kLanes;
  uint32_t state = thread / kLanes * 0x9E3779B1u;
  for (int i = 0; i < kAdds; ++i) {
    state = state * 1664525u + 1013904223u;
    add<kVector, kAsOne>(table + (state >> 19) * kRowFloats + lane * kVector);  // 13 bits: kTableRows
  }
}

constexpr int kGathers = 1024, kSharedRows = 384;  // of 128 bytes: what a block may use by default

// Eight threads read a row, eight rows on their way at a time; without a table they use what it would hold.
template <bool kFromTable>
__global__ void gather_kernel(float* sums) {
  extern __shared__ float4 table[];
  for (int i = threadIdx.x; i < kSharedRows * 8; i += kThreads)
    table[i] = make_float4(static_cast<float>(i / 8), 0, 0, static_cast<float>(i % 8));
  __syncthreads();
  const uint32_t thread = blockIdx.x * kThreads + threadIdx.x, lane = thread % 8;
  uint32_t state = thread / 8 * 0x9E3779B1u;
  float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 8
  for (int i = 0; i < kGathers; ++i) {
    state = state * 1664525u + 1013904223u;
    const uint32_t row = __umulhi(state, kSharedRows);
    const float4 value =
        kFromTable ? table[row * 8 + lane] : make_float4(static_cast<float>(row), 0, 0, static_cast<float>(lane));
    sum = make_float4(sum.x + value.x, sum.y + value.y, sum.z + value.z, sum.w + value.w);
  }
  sums[thread] = sum.x + sum.y + sum.z + sum.w;  // whole numbers below 2^24: exact
}

__global__ void fill_kernel(float4* table, uint32_t row_vectors) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  table[i] = make_float4(static_cast<float>(i / row_vectors), 0, 0, static_cast<float>(i % row_vectors));
}

__global__ void copy_kernel(float4* to, const float4* from, uint32_t row_vectors, int bits, bool random) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x, row = i / row_vectors;
  to[i] = from[(random ? scatter(row, bits) : row) * row_vectors + i % row_vectors];
}

__global__ void verify_kernel(const float4* to, uint32_t row_vectors, int bits, bool random,
                              unsigned long long* wrong) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x, row = i / row_vectors;
  const float expected = static_cast<float>(random ? scatter(row, bits) : row);
  if (to[i].x != expected || to[i].w != static_cast<float>(i % row_vectors)) atomicAdd(wrong, 1ull);
}

// Seconds of one launch: the minimum of five samples of at least 30 ms, after a launch that warms up.
template <typename Launch>
double seconds_of(Launch launch, bool is_probe) {
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  float best = 0;
  for (int sample = 0, repeats = 1; sample < (is_probe ? 1 : 5);) {
    CHECK(cudaEventRecord(begin));
    for (int i = 0; i < repeats; ++i) launch();
    CHECK(cudaGetLastError());
    CHECK(cudaEventRecord(end));
    CHECK(cudaEventSynchronize(end));
    float ms = 0;
    CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (ms < 30 && !is_probe) {
      repeats *= 2;
      continue;
    }
    best = sample++ == 0 || ms / repeats < best ? ms / repeats : best;
  }
  return best / 1e3;
}

bool report(const char* name, const char* unit, double rate, bool is_right) {
  std::printf("{\"rate\": \"%s\", \"%s\": %.4g, \"right\": %s}\n", name, unit, rate, is_right ? "true" : "false");
  std::fflush(stdout);
  if (!is_right) std::fprintf(stderr, "gpu_rates: %s: the results are wrong\n", name);
  return is_right;
}

template <int kVector, bool kAsOne = false>
bool measure_adds(const char* name, int blocks, bool is_probe) {
  std::vector<float> table(kTableRows * kRowFloats);
  const size_t bytes = table.size() * sizeof(float);
  float* on_device = nullptr;
  CHECK(cudaMalloc(&on_device, bytes));
  CHECK(cudaMemset(on_device, 0, bytes));
  add_kernel<kVector, kAsOne><<<blocks, kThreads>>>(on_device);
  CHECK(cudaGetLastError());
  CHECK(cudaMemcpy(table.data(), on_device, bytes, cudaMemcpyDeviceToHost));
  // Counts below 2^24 are exact in float32: every addition must have arrived.
  const double adds = 1.0 * blocks * kThreads * kAdds * kVector;
  const bool is_right = std::accumulate(table.begin(), table.end(), 0.0) == adds;
  const double seconds = seconds_of([&] { add_kernel<kVector, kAsOne><<<blocks, kThreads>>>(on_device); }, is_probe);
  CHECK(cudaFree(on_device));
  return report(name, "adds_per_second", adds / seconds, is_right);
}

bool measure_gathers(const char* name, int blocks, bool is_probe) {
  const size_t threads = static_cast<size_t>(blocks) * kThreads, table_bytes = kSharedRows * 128;
  std::vector<float> found(threads), expected(threads);
  float* sums = nullptr;
  CHECK(cudaMalloc(&sums, threads * sizeof(float)));
  gather_kernel<false><<<blocks, kThreads, table_bytes>>>(sums);
  CHECK(cudaGetLastError());
  CHECK(cudaMemcpy(expected.data(), sums, threads * sizeof(float), cudaMemcpyDeviceToHost));
  const double seconds = seconds_of([&] { gather_kernel<true><<<blocks, kThreads, table_bytes>>>(sums); }, is_probe);
  CHECK(cudaMemcpy(found.data(), sums, threads * sizeof(float), cudaMemcpyDeviceToHost));
  CHECK(cudaFree(sums));
  return report(name, "bytes_read_per_second", 1.0 * threads * kGathers * sizeof(float4) / seconds, found == expected);
}

bool measure_copy(const char* name, int row_bytes, int bits, bool random, bool is_probe) {
  const uint32_t row_vectors = row_bytes / sizeof(float4), blocks = (row_vectors << bits) / kThreads;
  const size_t bytes = static_cast<size_t>(row_bytes) << bits;
  float4 *from = nullptr, *to = nullptr;
  unsigned long long *wrong = nullptr, wrong_here = 0;
  CHECK(cudaMalloc(&from, bytes));
  CHECK(cudaMalloc(&to, bytes));
  CHECK(cudaMalloc(&wrong, sizeof wrong_here));
  CHECK(cudaMemset(wrong, 0, sizeof wrong_here));
  fill_kernel<<<blocks, kThreads>>>(from, row_vectors);
  const auto launch = [&] { copy_kernel<<<blocks, kThreads>>>(to, from, row_vectors, bits, random); };
  const double seconds = seconds_of(launch, is_probe);
  verify_kernel<<<blocks, kThreads>>>(to, row_vectors, bits, random, wrong);
  CHECK(cudaGetLastError());
  CHECK(cudaMemcpy(&wrong_here, wrong, sizeof wrong_here, cudaMemcpyDeviceToHost));
  CHECK(cudaFree(from));
  CHECK(cudaFree(to));
  CHECK(cudaFree(wrong));
  return report(name, "bytes_read_and_written_per_second", 2.0 * bytes / seconds, wrong_here == 0);
}

int main(int argc, char** argv) {
  const bool is_probe = argc > 1 && std::strcmp(argv[1], "probe") == 0;
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  const int blocks = is_probe ? 2 : 8 * device.multiProcessorCount, bits = is_probe ? 8 : 23;  // tables of 1 GiB
  bool is_right = measure_adds<1>("scalar additions to random 128-byte rows, one a thread", blocks, is_probe);
  is_right &= measure_adds<4>("scalar additions to random 128-byte rows, four a thread", blocks, is_probe);
  if (device.major >= 9) {
    is_right &= measure_adds<4, true>("float4 additions to random 128-byte rows", blocks, is_probe);
  }
  is_right &= measure_gathers("reads of random 128-byte rows in shared memory", blocks, is_probe);
  is_right &= measure_copy("copy of 128-byte rows in their order", 128, bits, false, is_probe);
  is_right &= measure_copy("copy of random 128-byte rows", 128, bits, true, is_probe);
  is_right &= measure_copy("copy of random 256-byte rows", 256, bits - 1, true, is_probe);
  return is_right ? 0 : 1;
}
