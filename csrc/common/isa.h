// The instruction set of the CPU kernels. Every kernel file is compiled once for each instruction set, into the
// namespace named by the macro ECHO_EXT_ISA. kernel_table.h chooses among them at run time.
#pragma once

#if !defined(ECHO_EXT_ISA)
#define ECHO_EXT_ISA baseline
#endif

namespace echo_ext {

enum class Isa { baseline, avx2, avx512 };

// The best instruction set that both this processor and this build support. For tests, the environment variable
// ECHO_EXT_ISA (baseline, avx2, avx512) can select a lower one. It is read only once.
Isa current_isa();
const char* isa_name(Isa isa);

}  // namespace echo_ext
