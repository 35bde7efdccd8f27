// Echo noise: eps_i = sum over l < num_terms of (s[j_0] ... s[j_{l-1}]) * f[j_l], elementwise, over bank rows j_l.
// Results are the caller's memory. On CUDA so is the workspace, since torch's allocator knows the stream; on the CPU
// the entry points get their own, which costs a small call less than asking torch for it.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "echo/draws.h"

namespace echo_ext {

struct EchoProblem {
  int64_t rows;       // noises to make
  int64_t bank_rows;  // rows that they are made of
  int64_t width;      // elements of a row
  int64_t num_terms;
  bool exclude_self;  // the batch is its own bank
  Sampling sampling;
  DType dtype;
};

ECHO_EXT_HD Draws draws_of(const EchoProblem& problem, int64_t seed) {
  return {static_cast<uint64_t>(seed), problem.bank_rows, problem.exclude_self, problem.sampling};
}

// Rows and bank are contiguous (rows, width) and (bank_rows, width) of the problem's dtype.
struct EchoForward {
  const int64_t* seed;  // on the problem's device
  const void* bank_f;
  const void* bank_s;
  const void* f;  // null: write eps instead of f + s * eps
  const void* s;
  void* out;
  void* workspace = nullptr;
};

struct EchoBackward {
  const int64_t* seed;
  const void* bank_f;
  const void* bank_s;
  const void* s;  // null: grad is that of eps, instead of f + s * eps
  const void* grad;
  void* grad_s;       // of the rows' own s; null with s, and where the batch is its own bank
  void* grad_bank_f;  // where the batch is its own bank, these hold the whole gradients of f and s
  void* grad_bank_s;
  void* workspace = nullptr;
};

void echo_cpu_forward(const EchoProblem& problem, const EchoForward& io, int num_threads);
void echo_cpu_backward(const EchoProblem& problem, const EchoBackward& io, int num_threads);

// The draws themselves, (rows, num_terms).
void echo_cpu_indices(const EchoProblem& problem, const int64_t* seed, int64_t* indices, int num_threads);

#if defined(ECHO_EXT_WITH_CUDA)
// Launched on the given cudaStream_t of the given device; no host synchronisation. They return null, or an error's
// text; sizes return -1 where the device is out of reach.
int64_t echo_cuda_forward_workspace_bytes(const EchoProblem& problem, int device);
int64_t echo_cuda_backward_workspace_bytes(const EchoProblem& problem, bool deterministic, int device);
const char* echo_cuda_forward(const EchoProblem& problem, const EchoForward& io, int device, void* stream);
const char* echo_cuda_backward(const EchoProblem& problem, const EchoBackward& io, bool deterministic, int device,
                               void* stream);
const char* echo_cuda_indices(const EchoProblem& problem, const int64_t* seed, int64_t* indices, int device,
                              void* stream);
#endif

}  // namespace echo_ext
