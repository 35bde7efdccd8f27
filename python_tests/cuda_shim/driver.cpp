// Runs the CUDA entry points on the shim, one request after another: a header and arrays on standard input, a status
// and arrays on standard output. Every buffer is exactly as large as it must be, and holds NaN before it is written.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "common/cuda_support.h"
#include "echo/echo.h"
#include "echo/matrix.h"
#include "echo/scan.h"

namespace {

enum class Operation : int64_t {
  forward,
  backward,
  indices,
  host_indices,
  self_test,
  matrix_scan,
  matrix_outer,
  scan,
  launches,  // of the request before
  plan_forward,
  plan_backward,
  plan_indices,
  plan_matrix_scan
};

struct Request {  // as python_tests/test_cuda_kernels.py packs it
  int64_t operation, multiprocessors, shared_bytes, order;
  int64_t rows, bank_rows, width, num_terms, exclude_self, sampling, dtype;
  int64_t seed, deterministic, has_rows;  // has_rows: f + s * eps, instead of eps
};

int device = 0;

[[noreturn]] void stop(const char* message) {
  std::fprintf(stderr, "driver: %s\n", message);
  std::_Exit(4);
}

bool read_all(void* to, size_t bytes) {
  auto* at = static_cast<char*>(to);
  while (bytes > 0) {
    const ssize_t now = read(STDIN_FILENO, at, bytes);
    if (now <= 0) return false;
    at += now;
    bytes -= static_cast<size_t>(now);
  }
  return true;
}

void write_all(const void* from, size_t bytes) {
  const auto* at = static_cast<const char*>(from);
  while (bytes > 0) {
    const ssize_t now = write(STDOUT_FILENO, at, bytes);
    if (now <= 0) stop("cannot write");
    at += now;
    bytes -= static_cast<size_t>(now);
  }
}

// On the heap, where AddressSanitizer guards both ends.
class Buffer {
 public:
  explicit Buffer(int64_t bytes) : bytes_(static_cast<size_t>(bytes)), data_(std::malloc(bytes_)) {
    if (bytes_ != 0) std::memset(data_, 0xff, bytes_);
  }
  Buffer(Buffer&& other) noexcept : bytes_(other.bytes_), data_(other.data_) { other.data_ = nullptr; }
  Buffer(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_;
  void* data_;
};

Buffer receive(int64_t bytes) {
  Buffer buffer(bytes);
  if (!read_all(buffer.data(), buffer.bytes())) stop("truncated request");
  return buffer;
}

void answer(const char* error, const std::vector<const Buffer*>& results) {
  const std::string text = error == nullptr ? "" : error;
  const int64_t length = static_cast<int64_t>(text.size());
  write_all(&length, sizeof(length));
  write_all(text.data(), text.size());
  if (error != nullptr) return;
  for (const Buffer* result : results) write_all(result->data(), result->bytes());
}

int64_t element_bytes(echo_ext::DType dtype) {
  switch (dtype) {
    case echo_ext::DType::float64: return 8;
    case echo_ext::DType::float32: return 4;
    case echo_ext::DType::bfloat16:
    case echo_ext::DType::float16: return 2;
  }
  stop("unknown dtype");
}

void serve_forward(const echo_ext::EchoProblem& problem, const Request& request) {
  const int64_t bank_bytes = problem.bank_rows * problem.width * element_bytes(problem.dtype);
  const int64_t row_bytes = problem.rows * problem.width * element_bytes(problem.dtype);
  const Buffer bank_f = receive(bank_bytes), bank_s = receive(bank_bytes);
  const bool own_rows = request.has_rows != 0 && !problem.exclude_self;
  const Buffer f = receive(own_rows ? row_bytes : 0), s = receive(own_rows ? row_bytes : 0);
  const Buffer out(row_bytes), workspace(echo_cuda_forward_workspace_bytes(problem, device));
  echo_ext::EchoForward io{};
  io.seed = &request.seed;
  io.bank_f = bank_f.data();
  io.bank_s = bank_s.data();
  if (request.has_rows != 0) {
    io.f = own_rows ? f.data() : bank_f.data();
    io.s = own_rows ? s.data() : bank_s.data();
  }
  io.out = out.data();
  io.workspace = workspace.data();
  answer(echo_cuda_forward(problem, io, device, nullptr), {&out});
}

void serve_backward(const echo_ext::EchoProblem& problem, const Request& request) {
  const int64_t bank_bytes = problem.bank_rows * problem.width * element_bytes(problem.dtype);
  const int64_t row_bytes = problem.rows * problem.width * element_bytes(problem.dtype);
  const bool deterministic = request.deterministic != 0;
  const Buffer bank_f = receive(bank_bytes), bank_s = receive(bank_bytes);
  const bool own_rows = request.has_rows != 0 && !problem.exclude_self;
  const Buffer s = receive(own_rows ? row_bytes : 0), grad = receive(row_bytes);
  const Buffer grad_bank_f(bank_bytes), grad_bank_s(bank_bytes), grad_s(own_rows ? row_bytes : 0);
  const Buffer workspace(echo_cuda_backward_workspace_bytes(problem, deterministic, device));
  echo_ext::EchoBackward io{};
  io.seed = &request.seed;
  io.bank_f = bank_f.data();
  io.bank_s = bank_s.data();
  if (request.has_rows != 0) io.s = own_rows ? s.data() : bank_s.data();
  io.grad = grad.data();
  io.grad_s = own_rows ? grad_s.data() : nullptr;
  io.grad_bank_f = grad_bank_f.data();
  io.grad_bank_s = grad_bank_s.data();
  io.workspace = workspace.data();
  answer(echo_cuda_backward(problem, io, deterministic, device, nullptr), {&grad_bank_f, &grad_bank_s, &grad_s});
}

// The draws as the CPU makes them.
void host_indices(const echo_ext::EchoProblem& problem, int64_t seed, int64_t* indices) {
  const echo_ext::Draws draws = draws_of(problem, seed);
  const echo_ext::Bijection order(num_candidates(draws));
  for (int64_t row = 0; row < problem.rows; ++row)
    for (int64_t term = 0; term < problem.num_terms; ++term) {
      int64_t& index = indices[row * problem.num_terms + term];
      const echo_ext::DrawKey key = echo_ext::draw_key(draws.seed, static_cast<uint64_t>(row));
      index = problem.sampling == echo_ext::Sampling::ring ? ring_draw(draws, ring_place(draws, row), term)
                                                           : draw(draws, order, key, row, static_cast<uint32_t>(term));
    }
}

void serve_indices(const echo_ext::EchoProblem& problem, const Request& request) {
  const Buffer indices(problem.rows * problem.num_terms * 8);
  auto* to = static_cast<int64_t*>(indices.data());
  if (static_cast<Operation>(request.operation) == Operation::host_indices) {
    host_indices(problem, request.seed, to);
    answer(nullptr, {&indices});
  } else {
    answer(echo_cuda_indices(problem, &request.seed, to, device, nullptr), {&indices});
  }
}

// rows and width are the circle's; `deterministic` asks for the adjoint.
void serve_matrix(const echo_ext::EchoProblem& problem, const Request& request) {
  const echo_ext::EchoMatrixProblem matrices{problem.rows, static_cast<int>(problem.width), problem.dtype};
  const int64_t row_bytes = problem.rows * problem.width * element_bytes(problem.dtype);
  const Buffer order = receive(problem.rows * 8), first = receive(row_bytes);
  if (static_cast<Operation>(request.operation) == Operation::matrix_scan) {
    const Buffer s = receive(row_bytes * problem.width), values(row_bytes),
                 workspace(echo_matrix_cuda_workspace_bytes(matrices));
    const echo_ext::EchoMatrixScan io{static_cast<const int64_t*>(order.data()),
                                      first.data(),
                                      s.data(),
                                      values.data(),
                                      request.deterministic != 0,
                                      workspace.data()};
    answer(echo_matrix_cuda_scan(matrices, io, device, nullptr), {&values});
  } else {
    const Buffer z = receive(row_bytes), grad_s(row_bytes * problem.width);
    const echo_ext::EchoMatrixOuter io{static_cast<const int64_t*>(order.data()), first.data(), z.data(),
                                       grad_s.data()};
    answer(echo_matrix_cuda_outer(matrices, io, device, nullptr), {&grad_s});
  }
}

// Both compositions, z and the gradients of one rank's rows, in chunks of as many rows as the request has terms.
void serve_scan(const echo_ext::EchoProblem& problem) {
  const echo_ext::EchoScanProblem scan{problem.rows, problem.width, problem.dtype, problem.num_terms};
  const int64_t row_bytes = problem.rows * problem.width * element_bytes(problem.dtype);
  const int64_t wide_row = problem.width * (problem.dtype == echo_ext::DType::float64 ? 8 : 4);
  const int64_t chunk_bytes = scan.num_chunks() * wide_row;
  const Buffer order = receive(problem.rows * 8), f = receive(row_bytes), s = receive(row_bytes),
               grad = receive(row_bytes), entry = receive(wide_row), entries = receive(chunk_bytes),
               entries_back = receive(chunk_bytes);
  const Buffer constants(chunk_bytes), scales(chunk_bytes), constants_back(chunk_bytes), scales_back(chunk_bytes),
      z(problem.rows * wide_row), grad_f(row_bytes), grad_s(row_bytes);
  const auto* positions = static_cast<const int64_t*>(order.data());
  const char* errors[] = {
      echo_scan_cuda_compose(scan, {positions, f.data(), s.data(), constants.data(), scales.data(), false}, device,
                             nullptr),
      echo_scan_cuda_compose(scan, {positions, grad.data(), s.data(), constants_back.data(), scales_back.data(), true},
                             device, nullptr),
      echo_scan_cuda_forward(scan, {positions, f.data(), s.data(), entries.data(), z.data()}, device, nullptr),
      echo_scan_cuda_backward(
          scan,
          {positions, s.data(), grad.data(), z.data(), entry.data(), entries_back.data(), grad_f.data(), grad_s.data()},
          device, nullptr)};
  for (const char* error : errors)
    if (error != nullptr) return answer(error, {});
  answer(nullptr, {&constants, &scales, &constants_back, &scales_back, &z, &grad_f, &grad_s});
}

// The launches since the last request that made some, in rows of as many numbers as a Launch has, as many rows as the
// caller has room for.
void answer_launches(const char* error, int64_t workspace_bytes) {
  constexpr size_t kMost = 64, kFields = sizeof(cuda_shim::Launch) / sizeof(int64_t);
  Buffer records((1 + kMost * kFields) * sizeof(int64_t));
  auto* to = static_cast<int64_t*>(records.data());
  *to++ = workspace_bytes;
  for (size_t i = 0; i < kMost; ++i, to += kFields) {
    const cuda_shim::Launch launch = i < cuda_shim::launches.size() ? cuda_shim::launches[i] : cuda_shim::Launch{};
    std::memcpy(to, &launch, sizeof(launch));
  }
  answer(error, {&records});
}

// What a call would launch, however large it is: nothing is read or written.
void serve_plan(const echo_ext::EchoProblem& problem, const Request& request) {
  const bool deterministic = request.deterministic != 0, own_rows = request.has_rows != 0 && !problem.exclude_self;
  alignas(16) char memory[1];
  const char* error = nullptr;
  int64_t workspace_bytes = 0;
  cuda_shim::runs_kernels = false;
  switch (static_cast<Operation>(request.operation)) {
    case Operation::plan_forward: {
      workspace_bytes = echo_cuda_forward_workspace_bytes(problem, device);
      echo_ext::EchoForward io{};
      io.seed = &request.seed;
      if (request.has_rows != 0) io.f = io.s = memory;
      error = echo_cuda_forward(problem, io, device, nullptr);
      break;
    }
    case Operation::plan_backward: {
      workspace_bytes = echo_cuda_backward_workspace_bytes(problem, deterministic, device);
      echo_ext::EchoBackward io{};
      io.seed = &request.seed;
      if (request.has_rows != 0) io.s = memory;
      if (own_rows) io.grad_s = memory;
      error = echo_cuda_backward(problem, io, deterministic, device, nullptr);
      break;
    }
    case Operation::plan_indices: error = echo_cuda_indices(problem, &request.seed, nullptr, device, nullptr); break;
    default: {
      const echo_ext::EchoMatrixProblem matrices{problem.rows, static_cast<int>(problem.width), problem.dtype};
      workspace_bytes = echo_matrix_cuda_workspace_bytes(matrices);
      echo_ext::EchoMatrixScan io{};
      io.backward = deterministic;
      error = echo_matrix_cuda_scan(matrices, io, device, nullptr);
    }
  }
  cuda_shim::runs_kernels = true;
  answer_launches(error, workspace_bytes);
}

// ---- Kernels that are right, and kernels whose faults the shim must find -------------------------------------------

__global__ void reverse_in_shared(float* values, bool with_barrier) {
  auto* shared = reinterpret_cast<float*>(dynamic_shared_memory);
  shared[threadIdx.x] = values[threadIdx.x];
  if (with_barrier) __syncthreads();
  values[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

__global__ void sum_of_warp(float* values) {
  float sum = values[threadIdx.x];
  for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(echo_ext::kFullWarp, sum, other);
  const float first = __shfl_sync(echo_ext::kFullWarp, values[threadIdx.x], 0);
  const bool high = __any_sync(echo_ext::kFullWarp, values[threadIdx.x] > 32);
  values[threadIdx.x] = sum + 1000 * first + (high ? 100000.f : 0.f);
}

__global__ void barrier_for_some(float*) {
  if (threadIdx.x < 40) __syncthreads();
}

__global__ void vote_of_exited_lanes(float*) {
  if (threadIdx.x % 2 == 0) __all_sync(echo_ext::kFullWarp, true);
}

__global__ void barrier_against_vote(float*) {
  if (threadIdx.x % 2 == 0)
    __syncthreads();
  else
    __syncwarp();
}

__global__ void shared_out_of_bounds(float* values) {
  auto* shared = reinterpret_cast<float*>(dynamic_shared_memory);
  shared[threadIdx.x + 1] = values[threadIdx.x];
}

__global__ void global_out_of_bounds(float* values) { values[threadIdx.x + 1] = 0; }

void serve_self_test(const Request& request) {
  constexpr int kThreads = 64;
  const Buffer values = receive(kThreads * 4);
  auto* data = static_cast<float*>(values.data());
  cudaError_t status = cudaSuccess;
  const auto start = [&](void (*kernel)(float*)) {
    status = echo_ext::launch(kernel, dim3(1), kThreads, kThreads * 4, nullptr, data);
  };
  switch (request.rows) {
    case 0: status = echo_ext::launch(reverse_in_shared, dim3(1), kThreads, kThreads * 4, nullptr, data, true); break;
    case 1: status = echo_ext::launch(reverse_in_shared, dim3(1), kThreads, kThreads * 4, nullptr, data, false); break;
    case 2: start(sum_of_warp); break;
    case 3: start(barrier_for_some); break;
    case 4: start(vote_of_exited_lanes); break;
    case 5: start(barrier_against_vote); break;
    case 6: start(shared_out_of_bounds); break;
    case 7: start(global_out_of_bounds); break;
    case 8: status = echo_ext::launch(sum_of_warp, dim3(1), kThreads, 228 * 1024, nullptr, data); break;
    case 9: status = echo_ext::launch(sum_of_warp, dim3(1, 65536), kThreads, 0, nullptr, data); break;
    default: stop("unknown self test");
  }
  answer(status == cudaSuccess ? nullptr : cudaGetErrorString(status), {&values});
}

}  // namespace

int main() {
  Request request{};
  while (read_all(&request, sizeof(request))) {
    device =
        cuda_shim::device_like({static_cast<int>(request.multiprocessors), static_cast<int>(request.shared_bytes)});
    cuda_shim::order = static_cast<cuda_shim::Order>(request.order);
    if (static_cast<Operation>(request.operation) != Operation::launches) cuda_shim::launches.clear();
    echo_ext::EchoProblem problem{};
    problem.rows = request.rows;
    problem.bank_rows = request.bank_rows;
    problem.width = request.width;
    problem.num_terms = request.num_terms;
    problem.exclude_self = request.exclude_self != 0;
    problem.sampling = static_cast<echo_ext::Sampling>(request.sampling);
    problem.dtype = static_cast<echo_ext::DType>(request.dtype);
    switch (static_cast<Operation>(request.operation)) {
      case Operation::forward: serve_forward(problem, request); break;
      case Operation::backward: serve_backward(problem, request); break;
      case Operation::indices:
      case Operation::host_indices: serve_indices(problem, request); break;
      case Operation::matrix_scan:
      case Operation::matrix_outer: serve_matrix(problem, request); break;
      case Operation::scan: serve_scan(problem); break;
      case Operation::self_test: serve_self_test(request); break;
      case Operation::launches: answer_launches(nullptr, 0); break;
      case Operation::plan_forward:
      case Operation::plan_backward:
      case Operation::plan_indices:
      case Operation::plan_matrix_scan: serve_plan(problem, request); break;
      default: stop("unknown operation");
    }
  }
  return 0;
}
