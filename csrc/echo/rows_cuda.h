// The building blocks of the kernels in rows_cuda.cu: the bank in tiles of columns, bounds on the remaining terms of a
// row, and a group of lanes that processes the draws of one row.
#pragma once

#include "common/cuda_support.h"
#include "echo/echo.h"
#include "echo/rows_draws_cuda.h"

namespace echo_ext {

// ---- Traits --------------------------------------------------------------------------------------------------------

// A lane holds kColumns columns of a tile, which are kLanes columns apart. A cell is the part of a bank row that a lane
// holds.
template <typename T>
struct Traits;
template <>
struct Traits<float> {
  using Vector = float4;
  using Bits = unsigned int;
  static constexpr int kColumns = 2;
  // Smaller than the rounding error of any order of summation.
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

__device__ __forceinline__ void atomic_add(double2* at, double2 value) {
  atomicAdd(&at->x, value.x);
  atomicAdd(&at->y, value.y);
}

// Magnitudes of floating-point numbers can be compared by their bits; NaN is greater than infinity.
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

// A bank that is too large for shared memory: the cells, [tile][bank row][lane], and the largest |f| and |s| of each
// column.
template <typename T>
struct PackedBank {
  typename Traits<T>::Vector* cells;
  typename Traits<T>::Bits* largest;  // [tile][column][f, s]
  int lanes;
};

// The v-th column of a tile that a lane holds.
template <typename T>
__device__ __forceinline__ int64_t column_of(int64_t tile, int v, int lanes, int lane) {
  return (tile * kColumns<T> + v) * lanes + lane;
}

// ---- Packing -------------------------------------------------------------------------------------------------------

template <typename Bits>
__device__ __forceinline__ void update_maximum(Bits& largest, Bits to) {
  if (to > largest) largest = to;
}

// Updates the maxima of a tile, [column][f, s], by the values of all lanes of a warp. A lane holds the columns of lane
// % lanes.
template <typename T>
__device__ __forceinline__ void update_maxima_of_tile(typename Traits<T>::Bits* largest,
                                                      const typename Traits<T>::Bits (&mine)[kColumns<T>][2],
                                                      int lanes) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int v = 0; v < kColumns<T>; ++v)
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      typename Traits<T>::Bits bits = mine[v][which];
      for (int other = lanes; other < kWarp; other *= 2) update_maximum(bits, __shfl_xor_sync(kFullWarp, bits, other));
      if (lane < lanes) atomicMax(&largest[2 * (v * lanes + lane) + which], bits);
    }
}

// With a minimum of four blocks; otherwise the compiler would aim for eight, and spill registers.
constexpr int kPackThreads = 256;
constexpr int64_t kPackRows = 64;

template <typename T>
__global__ void __launch_bounds__(kPackThreads, 4)
    pack_kernel(PackedBank<T> bank, EchoProblem problem, const void* f, const void* s) {
  using Bits = typename Traits<T>::Bits;
  const int lane = static_cast<int>(threadIdx.x) % bank.lanes;
  const int64_t tile = blockIdx.x;
  Bits largest[kColumns<T>][2] = {};
  for (int64_t block = blockIdx.y; block * kPackRows < problem.bank_rows; block += gridDim.y) {
    const int64_t end = (block + 1) * kPackRows < problem.bank_rows ? (block + 1) * kPackRows : problem.bank_rows;
    for (int64_t row = block * kPackRows + threadIdx.x / bank.lanes; row < end; row += blockDim.x / bank.lanes) {
      Cell<T> cell = {};
      for (int v = 0; v < kColumns<T>; ++v) {
        const int64_t column = column_of<T>(tile, v, bank.lanes, lane);
        if (column >= problem.width) continue;
        cell.f[v] = load_element<T>(problem.dtype, f, row * problem.width + column);
        cell.s[v] = load_element<T>(problem.dtype, s, row * problem.width + column);
        update_maximum(largest[v][0], magnitude_bits(cell.f[v]));
        update_maximum(largest[v][1], magnitude_bits(cell.s[v]));
      }
      bank.cells[(tile * problem.bank_rows + row) * bank.lanes + lane] = pack(cell);
    }
  }
  update_maxima_of_tile<T>(bank.largest + 2 * column_of<T>(tile, 0, bank.lanes, 0), largest, bank.lanes);
}

// ---- Staging -------------------------------------------------------------------------------------------------------

// A tile in shared memory, [bank row][lane], followed by the largest magnitudes of its columns, [column][f, s].
template <typename T>
constexpr int64_t staged_bytes(int64_t bank_rows, int lanes) {
  return (bank_rows * static_cast<int64_t>(sizeof(typename Traits<T>::Vector)) +
          2 * kColumns<T> * static_cast<int64_t>(sizeof(typename Traits<T>::Bits))) *
         lanes;
}

constexpr int kCellsInFlight = 4;

// Copies the block's tile from f and s. Out-of-range rows and columns load a valid element instead of branching, so
// that all loads are in flight together.
template <typename T, int kLanes, typename Element>
__device__ __forceinline__ void stage_cells(const EchoProblem& problem, const Element* f, const Element* s,
                                            typename Traits<T>::Vector* tile,
                                            typename Traits<T>::Bits (&largest)[kColumns<T>][2]) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes, stride = static_cast<int>(blockDim.x) / kLanes;
  const int bank_rows = static_cast<int>(problem.bank_rows);
  const Element *f_of[kColumns<T>], *s_of[kColumns<T>];
  bool is_column[kColumns<T>];
#pragma unroll
  for (int v = 0; v < kColumns<T>; ++v) {
    const int64_t column = column_of<T>(blockIdx.x, v, kLanes, lane);
    is_column[v] = column < problem.width;
    f_of[v] = f + (is_column[v] ? column : 0);
    s_of[v] = s + (is_column[v] ? column : 0);
  }
  for (int first = static_cast<int>(threadIdx.x) / kLanes; first < bank_rows; first += kCellsInFlight * stride) {
    Element of_f[kCellsInFlight][kColumns<T>], of_s[kCellsInFlight][kColumns<T>];
#pragma unroll
    for (int k = 0; k < kCellsInFlight; ++k) {
      const int row = first + k * stride;
      const int64_t at = (row < bank_rows ? row : bank_rows - 1) * problem.width;
#pragma unroll
      for (int v = 0; v < kColumns<T>; ++v) {
        of_f[k][v] = f_of[v][at];
        of_s[k][v] = s_of[v][at];
      }
    }
#pragma unroll
    for (int k = 0; k < kCellsInFlight; ++k) {
      const int row = first + k * stride;
      Cell<T> cell;
#pragma unroll
      for (int v = 0; v < kColumns<T>; ++v) {
        cell.f[v] = is_column[v] ? to_compute(of_f[k][v]) : 0;
        cell.s[v] = is_column[v] ? to_compute(of_s[k][v]) : 0;
        update_maximum(largest[v][0], magnitude_bits(cell.f[v]));
        update_maximum(largest[v][1], magnitude_bits(cell.s[v]));
      }
      if (row < bank_rows) tile[row * kLanes + lane] = pack(cell);
    }
  }
}

template <typename T, int kLanes>
__device__ __forceinline__ void stage_tile(const EchoProblem& problem, const void* f, const void* s,
                                           typename Traits<T>::Vector* tile, typename Traits<T>::Bits* largest) {
  using Bits = typename Traits<T>::Bits;
  if (threadIdx.x < 2 * kLanes * kColumns<T>) largest[threadIdx.x] = 0;
  __syncthreads();
  Bits mine[kColumns<T>][2] = {};
  with_element_of<T>(problem.dtype, [&](auto element) {
    using Element = decltype(element);
    stage_cells<T, kLanes>(problem, static_cast<const Element*>(f), static_cast<const Element*>(s), tile, mine);
  });
  update_maxima_of_tile<T>(largest, mine, kLanes);
  __syncthreads();
}

// ---- The terms of a row --------------------------------------------------------------------------------------------

// Bounds on the contribution of all terms after a weight: at most |weight| * reach to a sum of weights, and |weight| *
// bound to eps. Columns without a bound never stop: their bounds are infinite, or NaN if a value is NaN.
template <typename T>
struct Bounds {
  T bound, reach;
};

template <typename T>
__device__ __forceinline__ Bounds<T> column_bounds(const typename Traits<T>::Bits* largest) {
  const T f = from_magnitude_bits(largest[0]), s = from_magnitude_bits(largest[1]);
  const T nan_unless_finite = (f - f) + (s - s);
  const T reach = (s < 1 ? 1 / (1 - s) : static_cast<T>(INFINITY)) + nan_unless_finite;
  return {f == 0 ? nan_unless_finite : f * reach, reach};
}

__device__ __forceinline__ float magnitude(float value) { return fabsf(value); }
__device__ __forceinline__ double magnitude(double value) { return fabs(value); }

// Whether nothing after this weight can exceed `limit`. After a weight of zero, every finite contribution is zero, even
// if there is no bound.
template <typename T>
__device__ __forceinline__ bool is_negligible(T weight, T bound, T limit) {
  return magnitude(weight) * bound <= limit || (weight == 0 && bound == bound);
}

__device__ __forceinline__ int at_most(uint32_t count, int limit) {
  return count < static_cast<uint32_t>(limit) ? static_cast<int>(count) : limit;
}

// A group of kLanes lanes that processes one row. All groups of a warp proceed together.
template <typename T, int kLanes, bool kStaged>
struct RowWalk {
  using Vector = typename Traits<T>::Vector;

  const EchoProblem& problem;
  const int64_t* seed;
  const Vector* cells = nullptr;  // this lane's cell of bank row 0, if the tile is not staged
  const DrawnRows& draws;
  uint32_t prefix_terms;
  const typename Traits<T>::Bits* largest;  // of this lane's first column
  int lane;
  int64_t row = 0;
  const Index<kStaged>* drawn = nullptr;  // by the current row

  __device__ RowWalk(const EchoProblem& problem_, const int64_t* seed_, const void* f, const void* s,
                     const PackedBank<T>& bank, const DrawnRows& draws_)
      : problem(problem_),
        seed(seed_),
        draws(draws_),
        prefix_terms(*draws.prefix_terms),
        lane(static_cast<int>(threadIdx.x) % kLanes) {
    using Bits = typename Traits<T>::Bits;
    if constexpr (kStaged) {
      auto* tile = reinterpret_cast<Vector*>(dynamic_shared_memory);
      auto* largest_of_tile = reinterpret_cast<Bits*>(tile + problem.bank_rows * kLanes);
      stage_tile<T, kLanes>(problem, f, s, tile, largest_of_tile);
      largest = largest_of_tile + 2 * lane;
    } else {
      cells = bank.cells + blockIdx.x * problem.bank_rows * kLanes + lane;
      largest = bank.largest + 2 * column(0);
    }
  }

  __device__ __forceinline__ Bounds<T> bounds(int v) const { return column_bounds<T>(largest + 2 * v * kLanes); }
  __device__ __forceinline__ int64_t column(int v) const { return column_of<T>(blockIdx.x, v, kLanes, lane); }

  __device__ __forceinline__ void start_row(int64_t row_) {
    row = row_;
    drawn = static_cast<const Index<kStaged>*>(draws.rows) + row * draws.capacity;
  }

  // The bank rows of the step that begins with term `first`. Must be called by all lanes of the warp together.
  __device__ __forceinline__ StepRows<kStaged> rows_of_step(uint32_t first) const {
    StepRows<kStaged> rows{};
    if (first < prefix_terms)
      rows.load(drawn + first);
    else
      draw(first, &rows);
    return rows;
  }

  // Draws a step. Each lane computes some of the terms.
  __device__ __forceinline__ void draw(uint32_t first, StepRows<kStaged>* rows) const {
    const Draws all = draws_of(problem, *seed);
    const Bijection order(num_candidates(all));
    const DrawKey key = draw_key(all.seed, static_cast<uint64_t>(row));
#pragma unroll 1
    for (int part = 0; part < kStepTerms; part += kLanes) {
      const uint32_t term = first + static_cast<uint32_t>(part + lane);
      const bool is_term = term < static_cast<uint32_t>(problem.num_terms);
      const int32_t mine = is_term ? echo_ext::draw(all, order, key, row, term) : 0;
#pragma unroll
      for (int k = 0; k < kStepTerms; ++k) {
        const int32_t bank_row = __shfl_sync(kFullWarp, mine, k % kLanes, kLanes);
        if (k / kLanes * kLanes == part) rows->set(k, bank_row);
      }
    }
  }

  // Loads the cells of eight terms of a step, terms [from, from + 8). The loads are in flight together.
  __device__ __forceinline__ void load_eight(const StepRows<kStaged>& rows, int from, Cell<T> (&cell)[8]) const {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      // Written in this way, the address takes a single instruction.
      if constexpr (kStaged) {
        constexpr int kRowBytes = kLanes * static_cast<int>(sizeof(Vector));
        const int offset = lane * static_cast<int>(sizeof(Vector)) + rows.get(from + k) * kRowBytes;
        const char* at = reinterpret_cast<const char*>(dynamic_shared_memory) + offset;
        cell[k] = unpack(*reinterpret_cast<const Vector*>(at));
      } else {
        cell[k] = unpack(__ldg(cells + static_cast<int64_t>(rows.get(from + k)) * kLanes));
      }
    }
  }

  // Calls visit(cell) for the first `count` terms of a step.
  template <typename Visit>
  __device__ __forceinline__ void visit_step(const StepRows<kStaged>& rows, int count, const Visit& visit) const {
#pragma unroll
    for (int from = 0; from < kStepTerms; from += 8) {
      Cell<T> cell[8];
      load_eight(rows, from, cell);
      if (count == kStepTerms) {
#pragma unroll
        for (int k = 0; k < 8; ++k) visit(cell[k]);
      } else {
#pragma unroll
        for (int k = 0; k < 8; ++k)
          if (from + k < count) visit(cell[k]);
      }
    }
  }
};

}  // namespace echo_ext
