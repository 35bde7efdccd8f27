// The instruction set of the CPU kernels. Every kernel file is compiled once for each instruction set, into the
// namespace named by the macro ECHO_EXT_ISA. kernel_table.h chooses among them at run time.
#pragma once

#include <string>
#include <vector>

#if !defined(ECHO_EXT_ISA)
#define ECHO_EXT_ISA baseline
#endif

// The instruction sets, in ascending order, and whether the processor has them. A new one is one more line here, the
// compiler's options for it in CMakeLists.txt, and its vectors in simd.h. Each `apply` gets the further arguments too.
#if defined(__x86_64__)
// clang-format off
#define ECHO_EXT_FOR_EACH_ISA(apply, ...)                                                                 \
  apply(baseline, true, __VA_ARGS__)                                                                      \
  apply(avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), __VA_ARGS__)               \
  apply(avx512, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&                \
                    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&           \
                    __builtin_cpu_supports("avx512cd"), __VA_ARGS__)
// clang-format on
#else
#define ECHO_EXT_FOR_EACH_ISA(apply, ...) apply(baseline, true, __VA_ARGS__)
#endif

namespace echo_ext {

#define ECHO_EXT_ENUMERATOR(name, supported, unused) name,
enum class Isa : int { ECHO_EXT_FOR_EACH_ISA(ECHO_EXT_ENUMERATOR, ) };
#undef ECHO_EXT_ENUMERATOR

// The best instruction set that this processor supports. For tests, the environment variable ECHO_EXT_ISA can select a
// lower one by its name. It is read only once.
Isa current_isa();
const char* isa_name(Isa isa);

// The instruction sets that ECHO_EXT_ISA can select on this processor, in ascending order.
std::vector<std::string> supported_isas();

}  // namespace echo_ext
