// The one way to choose among instruction sets. A kernel file is compiled once for each instruction set, and each time
// defines a table of function pointers in the namespace ECHO_EXT_ISA. Callers get the table for this processor.
#pragma once

#include "common/isa.h"

// Declares the tables that kernel files define, and a function of the same name that returns the table to use.
#if defined(__x86_64__)
#define ECHO_EXT_KERNEL_TABLE(Table, name)   \
  namespace baseline {                       \
  extern const Table name;                   \
  }                                          \
  namespace avx2 {                           \
  extern const Table name;                   \
  }                                          \
  namespace avx512 {                         \
  extern const Table name;                   \
  }                                          \
  inline const Table& name() {               \
    switch (current_isa()) {                 \
      case Isa::avx512: return avx512::name; \
      case Isa::avx2: return avx2::name;     \
      case Isa::baseline: break;             \
    }                                        \
    return baseline::name;                   \
  }
#else
#define ECHO_EXT_KERNEL_TABLE(Table, name) \
  namespace baseline {                     \
  extern const Table name;                 \
  }                                        \
  inline const Table& name() { return baseline::name; }
#endif
