// The instruction set that the CPU kernels run on. Kernel files are compiled once for each set, every time into the
// namespace ECHO_EXT_ISA; kernel_table.h chooses among them at run time.
#pragma once

#if !defined(ECHO_EXT_ISA)
#define ECHO_EXT_ISA baseline
#endif

namespace echo_ext {

enum class Isa { baseline, avx2, avx512 };

// The best that this processor runs and this build holds. The environment variable ECHO_EXT_ISA (baseline, avx2,
// avx512) lowers it, for tests; read once.
Isa current_isa();
const char* isa_name(Isa isa);

}  // namespace echo_ext
