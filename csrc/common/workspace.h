// Division of one block of memory into aligned pieces.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

#include "common/isa.h"

namespace echo_ext {
namespace ECHO_EXT_ISA {

// Hands out aligned pieces of a block whose base is aligned. With a null base it only adds up their sizes.
class Workspace {
 public:
  static constexpr int64_t kAlignment = 256;

  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}
  template <typename T>
  T* take(int64_t count) {
    char* piece = base_ == nullptr ? nullptr : base_ + bytes_;
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<T*>(piece);
  }
  // The size of all pieces so far. It is a multiple of the alignment, so that blocks can follow one another.
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

struct AlignedDelete {
  void operator()(char* memory) const { ::operator delete(memory, std::align_val_t{Workspace::kAlignment}); }
};

// Allocates the memory of a workspace on the CPU.
inline std::unique_ptr<char, AlignedDelete> allocate_workspace(int64_t bytes) {
  return std::unique_ptr<char, AlignedDelete>(
      static_cast<char*>(::operator new(static_cast<size_t>(bytes), std::align_val_t{Workspace::kAlignment})));
}

}  // namespace ECHO_EXT_ISA
}  // namespace echo_ext
