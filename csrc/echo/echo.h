// Echo noise: eps_i = sum over l < num_terms of (s[j_0] ... s[j_{l-1}]) * f[j_l], elementwise, over bank rows j_l.
//
// The caller provides the memory of the results. On CUDA it also provides the workspace, because PyTorch's allocator is
// aware of streams. On the CPU the entry points allocate the workspace themselves, which is faster for small calls than
// asking PyTorch.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "echo/draws.h"

namespace echo_ext {

struct EchoProblem {
  int64_t rows;       // number of noise rows to compute
  int64_t bank_rows;  // number of rows to draw from
  int64_t width;      // elements per row
  int64_t num_terms;
  bool exclude_self;  // the batch is its own bank
  Sampling sampling;
  DType dtype;
};

ECHO_EXT_HD Draws draws_of(const EchoProblem& problem, int64_t seed) {
  return {static_cast<uint64_t>(seed), problem.bank_rows, problem.exclude_self, problem.sampling};
}

// The rows and the bank are contiguous (rows, width) and (bank_rows, width) arrays of the problem's dtype.
struct EchoForward {
  const int64_t* seed;  // in the memory of the problem's device
  const void* bank_f;
  const void* bank_s;
  const void* f;  // null: compute eps instead of f + s * eps
  const void* s;
  void* out;
  void* workspace = nullptr;
};

struct EchoBackward {
  const int64_t* seed;
  const void* bank_f;
  const void* bank_s;
  const void* s;  // null: grad is the gradient of eps instead of f + s * eps
  const void* grad;
  void* grad_s;       // gradient of the rows' own s; null if s is null or the batch is its own bank
  void* grad_bank_f;  // if the batch is its own bank, these are the complete gradients of f and s
  void* grad_bank_s;
  void* workspace = nullptr;
};

void echo_cpu_forward(const EchoProblem& problem, const EchoForward& io, int num_threads);
void echo_cpu_backward(const EchoProblem& problem, const EchoBackward& io, int num_threads);

// Writes the draws themselves, (rows, num_terms).
void echo_cpu_indices(const EchoProblem& problem, const int64_t* seed, int64_t* indices, int num_threads);

#if defined(ECHO_EXT_WITH_CUDA)
// Functions launch on the given cudaStream_t of the given device and do not synchronize with the host. They return
// null, or the text of an error. Sizes are -1 if the device cannot be used.
int64_t echo_cuda_forward_workspace_bytes(const EchoProblem& problem, int device);
int64_t echo_cuda_backward_workspace_bytes(const EchoProblem& problem, bool deterministic, int device);
const char* echo_cuda_forward(const EchoProblem& problem, const EchoForward& io, int device, void* stream);
const char* echo_cuda_backward(const EchoProblem& problem, const EchoBackward& io, bool deterministic, int device,
                               void* stream);
const char* echo_cuda_indices(const EchoProblem& problem, const int64_t* seed, int64_t* indices, int device,
                              void* stream);
#endif

}  // namespace echo_ext
