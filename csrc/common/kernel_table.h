// The one way to choose among instruction sets. A kernel file is compiled once for each instruction set, and each time
// defines a table of function pointers in the namespace ECHO_EXT_ISA. Callers get the table for this processor.
#pragma once

#include "common/isa.h"

// Declares the tables that kernel files define, and a function of the same name that returns the table to use.
#define ECHO_EXT_KERNEL_TABLE(Table, name)                                                                \
  ECHO_EXT_FOR_EACH_ISA(ECHO_EXT_DECLARE_TABLE, Table, name)                                              \
  inline const Table& name() {                                                                            \
    static const Table* const tables[] = {ECHO_EXT_FOR_EACH_ISA(ECHO_EXT_ADDRESS_OF_TABLE, Table, name)}; \
    return *tables[static_cast<int>(current_isa())];                                                      \
  }
#define ECHO_EXT_DECLARE_TABLE(isa, supported, Table, name) \
  namespace isa {                                           \
  extern const Table name;                                  \
  }
#define ECHO_EXT_ADDRESS_OF_TABLE(isa, supported, Table, name) &isa::name,
