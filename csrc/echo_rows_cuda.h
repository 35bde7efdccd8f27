// What the row kernels (echo_rows_cuda.cu) stand on: the bank packed into tiles of columns, the bounds that let rows
// stop, and a group of lanes that walks one row's draws.
#pragma once

#include "cuda_support.h"
#include "echo.h"

namespace echo_ext {

// ---- Traits ---------------------------------------------------------------------------------------------------------

// A lane holds kColumns columns of a tile, kLanes apart; a cell is what one bank row has there.
template <typename T>
struct Traits;
template <>
struct Traits<float> {
  using Vector = float4;
  using Bits = unsigned int;
  static constexpr int kColumns = 2;
  // Below the rounding of any order of summation.
  static constexpr float kNegligible = 0x1p-30f;
};
template <>
struct Traits<double> {
  using Vector = double2;
  using Bits = unsigned long long;
  static constexpr int kColumns = 1;
  static constexpr double kNegligible = 0x1p-60;
};

template <typename T>
constexpr int kColumns = Traits<T>::kColumns;

template <typename T>
struct Cell {
  T f[kColumns<T>], s[kColumns<T>];
};

__device__ __forceinline__ float4 pack(const Cell<float>& cell) { return {cell.f[0], cell.f[1], cell.s[0], cell.s[1]}; }
__device__ __forceinline__ double2 pack(const Cell<double>& cell) { return {cell.f[0], cell.s[0]}; }
__device__ __forceinline__ Cell<float> unpack(float4 v) { return {{v.x, v.y}, {v.z, v.w}}; }
__device__ __forceinline__ Cell<double> unpack(double2 v) { return {{v.x}, {v.y}}; }

// Magnitudes compare as their bits do, NaN above infinity.
__device__ __forceinline__ unsigned int magnitude_bits(float value) { return float_bits(value) & 0x7fffffffu; }
__device__ __forceinline__ unsigned long long magnitude_bits(double value) {
  unsigned long long bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits & 0x7fffffffffffffffull;
}
__device__ __forceinline__ float from_magnitude_bits(unsigned int bits) { return float_from_bits(bits); }
__device__ __forceinline__ double from_magnitude_bits(unsigned long long bits) {
  double value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// The bank as kernels read it: cells of [tile][bank row][lane], and per column the largest |f| and |s|.
template <typename T>
struct PackedBank {
  typename Traits<T>::Vector* cells;
  typename Traits<T>::Bits* largest;  // [tile][column][f, s]
  int lanes;
};

// ---- Packing --------------------------------------------------------------------------------------------------------

constexpr int kPackThreads = 256;
constexpr int64_t kPackRows = 64;

template <typename T>
__global__ void __launch_bounds__(kPackThreads)
    pack_kernel(PackedBank<T> bank, EchoProblem problem, const void* f, const void* s) {
  using Bits = typename Traits<T>::Bits;
  const int lane = static_cast<int>(threadIdx.x) % bank.lanes;
  const int64_t tile = blockIdx.x;
  Bits largest[2 * kColumns<T>] = {};
  for (int64_t block = blockIdx.y; block * kPackRows < problem.bank_rows; block += gridDim.y) {
    const int64_t end = (block + 1) * kPackRows < problem.bank_rows ? (block + 1) * kPackRows : problem.bank_rows;
    for (int64_t row = block * kPackRows + threadIdx.x / bank.lanes; row < end; row += blockDim.x / bank.lanes) {
      Cell<T> cell = {};
      for (int v = 0; v < kColumns<T>; ++v) {
        const int64_t column = (tile * kColumns<T> + v) * bank.lanes + lane;
        if (column >= problem.width) continue;
        cell.f[v] = load_element<T>(problem.dtype, f, row * problem.width + column);
        cell.s[v] = load_element<T>(problem.dtype, s, row * problem.width + column);
        const Bits bits_f = magnitude_bits(cell.f[v]), bits_s = magnitude_bits(cell.s[v]);
        if (bits_f > largest[2 * v]) largest[2 * v] = bits_f;
        if (bits_s > largest[2 * v + 1]) largest[2 * v + 1] = bits_s;
      }
      bank.cells[(tile * problem.bank_rows + row) * bank.lanes + lane] = pack(cell);
    }
  }
  for (int v = 0; v < kColumns<T>; ++v)
    for (int which = 0; which < 2; ++which) {
      Bits bits = largest[2 * v + which];
      for (int other = bank.lanes; other < kWarp; other *= 2) {
        const Bits peer = __shfl_xor_sync(kFullWarp, bits, other);
        if (peer > bits) bits = peer;
      }
      if (threadIdx.x % kWarp < static_cast<unsigned>(bank.lanes))
        atomicMax(&bank.largest[((tile * kColumns<T> + v) * bank.lanes + lane) * 2 + which], bits);
    }
}

// ---- Walking a row --------------------------------------------------------------------------------------------------

// What the terms behind a weight can still add: |weight| * reach to a sum of weights, |weight| * bound to eps.
// Columns whose values or products are not bounded never stop: their bounds are infinite, or NaN where a value is.
template <typename T>
struct Bounds {
  T bound, reach;
};

template <typename T>
__device__ __forceinline__ Bounds<T> column_bounds(const PackedBank<T>& bank, int64_t padded_column) {
  const T f = from_magnitude_bits(bank.largest[padded_column * 2]);
  const T s = from_magnitude_bits(bank.largest[padded_column * 2 + 1]);
  const T nan_unless_finite = (f - f) + (s - s);
  const T reach = (s < 1 ? 1 / (1 - s) : static_cast<T>(INFINITY)) + nan_unless_finite;
  return {f == 0 ? nan_unless_finite : f * reach, reach};
}

template <typename T>
__device__ __forceinline__ T magnitude(T value) {
  return value < 0 ? -value : value;
}

// Whether nothing behind this weight can exceed `limit`. Behind a weight of zero everything finite is zero, also where
// no bound exists.
template <typename T>
__device__ __forceinline__ bool is_negligible(T weight, T bound, T limit) {
  return magnitude(weight) * bound <= limit || (weight == 0 && bound == bound);
}

// One group of kLanes lanes at work on one row. The draws of up to kCapacity terms lie in shared memory, each made by
// one lane; padding keeps the groups of a warp in different banks.
template <typename T, int kLanes, bool kStaged, int kCapacity>
struct RowWalk {
  using Vector = typename Traits<T>::Vector;
  static constexpr int kStride = kCapacity + 4;

  Draws draws;
  Bijection order;
  const Vector* cells;  // this lane's cell of bank row 0
  int32_t* drawn;
  int lane;
  int64_t row = 0;
  DrawKey key = {};

  __device__ RowWalk(const EchoProblem& problem, const int64_t* seed, const PackedBank<T>& bank)
      : draws(draws_of(problem, *seed)), order(num_candidates(draws)), lane(static_cast<int>(threadIdx.x) % kLanes) {
    const Vector* tile = bank.cells + blockIdx.x * problem.bank_rows * kLanes;
    auto* staged = reinterpret_cast<Vector*>(dynamic_shared_memory);
    const int num_staged = kStaged ? static_cast<int>(problem.bank_rows) * kLanes : 0;
    drawn = reinterpret_cast<int32_t*>(staged + num_staged) + static_cast<int>(threadIdx.x) / kLanes * kStride;
    if (kStaged) {
      for (int i = static_cast<int>(threadIdx.x); i < num_staged; i += static_cast<int>(blockDim.x))
        staged[i] = __ldg(tile + i);
      __syncthreads();
    }
    cells = (kStaged ? staged : tile) + lane;
  }

  __device__ __forceinline__ void start_row(int64_t row_) {
    row = row_;
    key = draw_key(draws.seed, static_cast<uint64_t>(row_));
  }

  // Puts the draws of terms [first, first + count) at `slot`; all lanes of the warp together.
  __device__ __forceinline__ void draw_terms(uint32_t first, int count, int slot) {
    __syncwarp();
    for (int t = lane; t < count; t += kLanes)
      drawn[slot + t] = draw(draws, order, key, row, first + static_cast<uint32_t>(t));
    __syncwarp();
  }

  __device__ __forceinline__ Cell<T> cell_of(int32_t bank_row) const {
    if (kStaged) return unpack(cells[bank_row * kLanes]);
    return unpack(__ldg(cells + static_cast<int64_t>(bank_row) * kLanes));
  }

  // Eight cells at once, so that their loads are in flight together.
  __device__ __forceinline__ void load_eight(int slot, Cell<T> (&cell)[8]) const {
    const int4 low = *reinterpret_cast<const int4*>(drawn + slot);
    const int4 high = *reinterpret_cast<const int4*>(drawn + slot + 4);
    const int32_t bank_row[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int k = 0; k < 8; ++k) cell[k] = cell_of(bank_row[k]);
  }

  // Calls visit(cell) for the terms at [slot, slot + count), count <= 8.
  template <typename Visit>
  __device__ __forceinline__ void visit_up_to_eight(int slot, int count, const Visit& visit) const {
    if (count == 8) {
      Cell<T> cell[8];
      load_eight(slot, cell);
#pragma unroll
      for (int k = 0; k < 8; ++k) visit(cell[k]);
    } else {
#pragma unroll 1
      for (int k = 0; k < count; ++k) visit(cell_of(drawn[slot + k]));
    }
  }
};

__device__ __forceinline__ int at_most(uint32_t count, int limit) {
  return count < static_cast<uint32_t>(limit) ? static_cast<int>(count) : limit;
}

}  // namespace echo_ext
