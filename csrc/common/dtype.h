// The element types of tensors in memory, and their conversion to the type that kernels compute in.
//
// The conversions of bfloat16 and float16 are written out because CPU and CUDA kernels share them, and both must round
// in the same way.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/host_device.h"

namespace echo_ext {

enum class DType : int { float64, float32, bfloat16, float16 };

// Calls body(T()) with T = double or float, for kernels that support only these two types.
template <typename Body>
auto with_real(DType dtype, const Body& body) {
  return dtype == DType::float64 ? body(double()) : body(float());
}

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// Half-precision types are computed in float32.
template <typename Storage>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <typename Storage>
using Compute = typename ComputeOf<Storage>::type;

ECHO_EXT_HD uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

ECHO_EXT_HD float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

ECHO_EXT_HD double to_compute(double value) { return value; }
ECHO_EXT_HD float to_compute(float value) { return value; }
ECHO_EXT_HD float to_compute(BFloat16 value) { return float_from_bits(static_cast<uint32_t>(value.bits) << 16); }
ECHO_EXT_HD float to_compute(Float16 value) {
  // Move the exponent and the fraction into place, then correct the exponent bias by a multiplication, which also
  // handles subnormal numbers.
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  const float scaled = float_from_bits(magnitude) * 0x1p112f;
  const uint32_t special = (value.bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;  // infinity or NaN
  return float_from_bits(float_bits(scaled) | special | sign);
}

// Whether a product of scales has become too small to matter, which means smaller than the smallest normal number.
// Comparing with zero would not do: rounding keeps the smallest subnormal numbers from ever reaching zero. The
// threshold also gives the same answer in a mode that flushes subnormal numbers to zero.
ECHO_EXT_HD bool has_vanished(float weight) { return weight < 0x1p-126f && weight > -0x1p-126f; }
ECHO_EXT_HD bool has_vanished(double weight) { return weight < 0x1p-1022 && weight > -0x1p-1022; }

// Rounds to nearest, ties to even.
template <typename Storage>
struct FromCompute;
template <>
struct FromCompute<double> {
  ECHO_EXT_HD static double convert(double value) { return value; }
};
template <>
struct FromCompute<float> {
  ECHO_EXT_HD static float convert(float value) { return value; }
};
template <>
struct FromCompute<BFloat16> {
  ECHO_EXT_HD static BFloat16 convert(float value) {
    const uint32_t bits = float_bits(value);
    if (value != value) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
    return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
  }
};
template <>
struct FromCompute<Float16> {
  ECHO_EXT_HD static Float16 convert(float value) {
    const uint32_t bits = float_bits(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};   // NaN
    if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to infinity
    if (magnitude < 0x38800000u) {
      // The result is subnormal: adding 0.5 leaves the rounded fraction in the low bits of the sum.
      const float shifted = float_from_bits(magnitude) + 0.5f;
      return {static_cast<uint16_t>(sign | (float_bits(shifted) - 0x3f000000u))};
    }
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u;
    return {static_cast<uint16_t>(sign | (rounded >> 13))};
  }
};

template <typename Storage>
ECHO_EXT_HD Storage from_compute(Compute<Storage> value) {
  return FromCompute<Storage>::convert(value);
}

}  // namespace echo_ext
