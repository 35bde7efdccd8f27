#include "common/isa.h"

#include <cstdlib>
#include <cstring>

namespace echo_ext {
namespace {

std::vector<Isa> find_supported() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  std::vector<Isa> supported;
#define ECHO_EXT_ADD(name, is_supported, unused) \
  if (is_supported) supported.push_back(Isa::name);
  ECHO_EXT_FOR_EACH_ISA(ECHO_EXT_ADD, )
#undef ECHO_EXT_ADD
  return supported;
}

Isa choose_isa() {
  const std::vector<Isa> supported = find_supported();
  const char* wanted = std::getenv("ECHO_EXT_ISA");
  if (wanted != nullptr)
    for (const Isa isa : supported)
      if (std::strcmp(wanted, isa_name(isa)) == 0) return isa;
  return supported.back();
}

}  // namespace

Isa current_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

const char* isa_name(Isa isa) {
#define ECHO_EXT_NAME(name, supported, unused) #name,
  static const char* const names[] = {ECHO_EXT_FOR_EACH_ISA(ECHO_EXT_NAME, )};
#undef ECHO_EXT_NAME
  return names[static_cast<int>(isa)];
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Isa isa : find_supported()) names.push_back(isa_name(isa));
  return names;
}

}  // namespace echo_ext
