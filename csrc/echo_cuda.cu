// Echo noise with permutation and replacement sampling on CUDA, and the entry points. Rows are independent; each
// gathers bank rows in its own order. The bank is first packed into tiles of columns, which a block keeps in shared
// memory where they fit; a group of lanes then walks one row's draws with one 16-byte load per lane and term, until a
// vote of the warp finds that no further term can change a result.
#include "echo_cuda.h"

namespace echo_ext {
namespace {

// ---- Traits
// ------------------------------------------------------------------------------------------------------------

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

// How the kernels of one problem are laid over the device.
struct Plan {
  int lanes;       // of a row: a tile is lanes * kColumns wide
  bool staged;     // the tile lies in shared memory
  int64_t tiles;   // grid.x
  int64_t groups;  // grid.y: rows are dealt out to them
  int threads;
  size_t shared_bytes;
};

// ---- Packing
// -----------------------------------------------------------------------------------------------------------

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

// ---- Walking a row
// -----------------------------------------------------------------------------------------------------

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

// ---- Forward
// -----------------------------------------------------------------------------------------------------------

constexpr int kMaxThreads = 512;  // with a minimum of blocks given to the compiler, it does not spill for more
constexpr int kCheck = 8;         // terms between two looks at the bounds

template <int kLanes>
constexpr int kForwardDraws = kLanes < 16 ? 16 : kLanes;

template <typename T, int kLanes, bool kStaged>
__global__ void __launch_bounds__(kMaxThreads, 1)
    forward_kernel(EchoProblem problem, EchoForward io, PackedBank<T> bank) {
  constexpr int kBatch = kForwardDraws<kLanes>;
  RowWalk<T, kLanes, kStaged, kBatch> walk(problem, io.seed, bank);
  const uint32_t num_terms = static_cast<uint32_t>(problem.num_terms);
  const int64_t rows_of_block = blockDim.x / kLanes, stride = rows_of_block * gridDim.y;

  int64_t column[kColumns<T>];
  T bound[kColumns<T>];
#pragma unroll
  for (int v = 0; v < kColumns<T>; ++v) {
    column[v] = (static_cast<int64_t>(blockIdx.x) * kColumns<T> + v) * kLanes + walk.lane;
    bound[v] = column_bounds(bank, column[v]).bound;
  }

  // A warp's rows start together; past the last row its groups repeat that row and write nothing.
  const int64_t first_of_warp = blockIdx.y * rows_of_block + threadIdx.x / kWarp * (kWarp / kLanes);
  for (int64_t first_row = first_of_warp; first_row < problem.rows; first_row += stride) {
    const int64_t row = first_row + threadIdx.x % kWarp / kLanes;
    walk.start_row(row < problem.rows ? row : problem.rows - 1);
    T sum[kColumns<T>] = {}, weight[kColumns<T>], largest[kColumns<T>] = {};
#pragma unroll
    for (int v = 0; v < kColumns<T>; ++v) weight[v] = 1;

    bool more = true;
    for (uint32_t first = 0; more && first < num_terms; first += kBatch) {
      const int count = at_most(num_terms - first, kBatch);
      walk.draw_terms(first, count, 0);
      for (int slot = 0; more && slot < count; slot += kCheck) {
        walk.visit_up_to_eight(slot, at_most(static_cast<uint32_t>(count - slot), kCheck), [&](const Cell<T>& cell) {
#pragma unroll
          for (int v = 0; v < kColumns<T>; ++v) {
            sum[v] += weight[v] * cell.f[v];
            weight[v] *= cell.s[v];
          }
        });
        bool done = true;
#pragma unroll
        for (int v = 0; v < kColumns<T>; ++v) {
          if (magnitude(sum[v]) > largest[v]) largest[v] = magnitude(sum[v]);
          done = done && is_negligible(weight[v], bound[v], Traits<T>::kNegligible * largest[v]);
        }
        more = !__all_sync(kFullWarp, done);
      }
    }

    if (row >= problem.rows) continue;
#pragma unroll
    for (int v = 0; v < kColumns<T>; ++v) {
      if (column[v] >= problem.width) continue;
      const int64_t at = row * problem.width + column[v];
      T result = sum[v];
      if (io.f != nullptr)
        result = load_element<T>(problem.dtype, io.f, at) + load_element<T>(problem.dtype, io.s, at) * result;
      store_element(problem.dtype, io.out, at, result);
    }
  }
}

// ---- Backward
// ----------------------------------------------------------------------------------------------------------

// Weights are needed in descending order of terms, and dividing them back would lose them. They are kept every kChunk
// terms in the workspace, every kStep terms of the current chunk in registers, and recomputed in between.
constexpr int kChunk = 128;
constexpr int kStep = 16;
constexpr int kSteps = kChunk / kStep;

// An array in registers that takes an index known only at run time.
template <typename T, int kSize>
struct RegisterArray {
  T value[kSize];
  __device__ __forceinline__ void set(int index, T to) {
#pragma unroll
    for (int k = 0; k < kSize; ++k) value[k] = k == index ? to : value[k];
  }
  __device__ __forceinline__ T get(int index) const {
    T found = value[0];
#pragma unroll
    for (int k = 1; k < kSize; ++k) found = k == index ? value[k] : found;
    return found;
  }
};

// Gradients of the bank in the compute type: [copy][tile][bank row][f, s][column of the tile].
template <typename T>
struct BankGradients {
  T* values;
  int64_t copies;
  int64_t size;  // of a copy
};

template <typename T, int kLanes, bool kStaged, bool kDeterministic>
__global__ void __launch_bounds__(kMaxThreads, 1)
    backward_kernel(EchoProblem problem, EchoBackward io, PackedBank<T> bank, BankGradients<T> gradients,
                    T* checkpoints) {
  constexpr int kTileColumns = kLanes * kColumns<T>;
  constexpr int kBatch = kForwardDraws<kLanes>;
  RowWalk<T, kLanes, kStaged, kChunk> walk(problem, io.seed, bank);
  const uint32_t num_terms = static_cast<uint32_t>(problem.num_terms);
  const int64_t rows_of_block = blockDim.x / kLanes, stride = rows_of_block * gridDim.y;
  const int64_t num_resident = static_cast<int64_t>(gridDim.x) * gridDim.y * blockDim.x;
  T* checkpoint = checkpoints + (static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x;
  T* gradient = gradients.values + blockIdx.x * problem.bank_rows * 2 * kTileColumns + walk.lane;
  if (kDeterministic) gradient += blockIdx.y * gradients.size;

  // Where a warp owns a tile's copy, it adds in the order of its rows; else the order is the device's.
  const auto add = [&](int32_t bank_row, int v, T to_f, T to_s) {
    T* at = gradient + static_cast<int64_t>(bank_row) * (2 * kTileColumns) + v * kLanes;
    if (kDeterministic) {
      at[0] += to_f;
      at[kTileColumns] += to_s;
    } else {
      atomicAdd(at, to_f);
      atomicAdd(at + kTileColumns, to_s);
    }
  };

  int64_t column[kColumns<T>];
  Bounds<T> bounds[kColumns<T>];
#pragma unroll
  for (int v = 0; v < kColumns<T>; ++v) {
    column[v] = (static_cast<int64_t>(blockIdx.x) * kColumns<T> + v) * kLanes + walk.lane;
    bounds[v] = column_bounds(bank, column[v]);
  }

  const int64_t first_of_warp = blockIdx.y * rows_of_block + threadIdx.x / kWarp * (kWarp / kLanes);
  for (int64_t first_row = first_of_warp; first_row < problem.rows; first_row += stride) {
    const bool is_row = first_row + threadIdx.x % kWarp / kLanes < problem.rows;
    const int64_t row = is_row ? first_row + threadIdx.x % kWarp / kLanes : problem.rows - 1;
    walk.start_row(row);

    // Ascend: weights, and how many terms matter. A derivative by an s leaves that s out of the product, so terms
    // behind a zero still count: `without_one` is the largest product of all s but one.
    RegisterArray<T, kSteps> steps[kColumns<T>];
    T sum[kColumns<T>] = {}, largest[kColumns<T>] = {}, without_one[kColumns<T>] = {}, weight[kColumns<T>];
#pragma unroll
    for (int v = 0; v < kColumns<T>; ++v) weight[v] = 1;
    uint32_t used = num_terms;
    uint32_t last_chunk = 0;
    bool more = true;
    for (uint32_t first = 0; more && first < num_terms; first += kChunk) {
      last_chunk = first / kChunk;
#pragma unroll
      for (int v = 0; v < kColumns<T>; ++v)
        if (last_chunk > 0) checkpoint[((last_chunk - 1) * kColumns<T> + v) * num_resident] = weight[v];
      const int count = at_most(num_terms - first, kChunk);
      for (int slot = 0; more && slot < count; slot += kCheck) {
        if (slot % kBatch == 0)
          walk.draw_terms(first + static_cast<uint32_t>(slot), at_most(static_cast<uint32_t>(count - slot), kBatch),
                          slot);
        if (slot % kStep == 0) {
#pragma unroll
          for (int v = 0; v < kColumns<T>; ++v) steps[v].set(slot / kStep, weight[v]);
        }
        const int now = at_most(static_cast<uint32_t>(count - slot), kCheck);
        walk.visit_up_to_eight(slot, now, [&](const Cell<T>& cell) {
#pragma unroll
          for (int v = 0; v < kColumns<T>; ++v) {
            sum[v] += weight[v] * cell.f[v];
            const T skipping_earlier = without_one[v] * magnitude(cell.s[v]), skipping_this = magnitude(weight[v]);
            without_one[v] = skipping_earlier > skipping_this ? skipping_earlier : skipping_this;
            weight[v] *= cell.s[v];
          }
        });
        bool done = true;
#pragma unroll
        for (int v = 0; v < kColumns<T>; ++v) {
          if (magnitude(sum[v]) > largest[v]) largest[v] = magnitude(sum[v]);
          done = done && is_negligible(without_one[v], bounds[v].bound, Traits<T>::kNegligible * largest[v]) &&
                 is_negligible(without_one[v], bounds[v].reach, Traits<T>::kNegligible);
        }
        more = !__all_sync(kFullWarp, done);
        if (!more) used = first + static_cast<uint32_t>(slot + now);
      }
    }

    // Descend: tails, and what each term adds.
    T grad[kColumns<T>], grad_eps[kColumns<T>], tail[kColumns<T>] = {};
    bool is_live[kColumns<T>];
#pragma unroll
    for (int v = 0; v < kColumns<T>; ++v) {
      is_live[v] = is_row && column[v] < problem.width;
      const int64_t at = row * problem.width + column[v];
      grad[v] = is_live[v] ? load_element<T>(problem.dtype, io.grad, at) : 0;
      grad_eps[v] = is_live[v] && io.s != nullptr ? grad[v] * load_element<T>(problem.dtype, io.s, at) : grad[v];
    }
    for (uint32_t chunk = last_chunk + 1; chunk-- > 0;) {
      const int count = at_most(used - chunk * kChunk, kChunk);
      const int last_slot = at_most(num_terms - 1 - chunk * kChunk, kChunk);
      if (chunk < last_chunk) {
        walk.draw_terms(chunk * kChunk, count, 0);
#pragma unroll
        for (int v = 0; v < kColumns<T>; ++v)
          weight[v] = chunk == 0 ? 1 : checkpoint[((chunk - 1) * kColumns<T> + v) * num_resident];
        for (int slot = 0; slot < count; slot += kCheck) {
          if (slot % kStep == 0) {
#pragma unroll
            for (int v = 0; v < kColumns<T>; ++v) steps[v].set(slot / kStep, weight[v]);
          }
          walk.visit_up_to_eight(slot, at_most(static_cast<uint32_t>(count - slot), kCheck), [&](const Cell<T>& cell) {
#pragma unroll
            for (int v = 0; v < kColumns<T>; ++v) weight[v] *= cell.s[v];
          });
        }
      }
      for (int slot = (count - 1) / kStep * kStep; slot >= 0; slot -= kStep) {
        T weights[kStep][kColumns<T>];
#pragma unroll
        for (int v = 0; v < kColumns<T>; ++v) weight[v] = steps[v].get(slot / kStep);
#pragma unroll
        for (int k = 0; k < kStep; ++k) {
          if (slot + k >= count) break;
          const Cell<T> cell = walk.cell_of(walk.drawn[slot + k]);
#pragma unroll
          for (int v = 0; v < kColumns<T>; ++v) {
            weights[k][v] = weight[v];
            weight[v] *= cell.s[v];
          }
        }
#pragma unroll
        for (int k = kStep - 1; k >= 0; --k) {
          if (slot + k >= count) continue;
          const int32_t bank_row = walk.drawn[slot + k];
          const Cell<T> cell = walk.cell_of(bank_row);
#pragma unroll
          for (int v = 0; v < kColumns<T>; ++v) {
            const T to_f = grad_eps[v] * weights[k][v];
            if (is_live[v]) add(bank_row, v, to_f, to_f * tail[v]);
            // The last term's s is no factor of anything, not even where it is NaN.
            tail[v] = slot + k == last_slot ? cell.f[v] : cell.f[v] + cell.s[v] * tail[v];
          }
        }
      }
    }

    // The tail is eps now. What f + s * eps itself adds:
    if (io.s == nullptr) continue;
#pragma unroll
    for (int v = 0; v < kColumns<T>; ++v) {
      if (!is_live[v]) continue;
      if (problem.exclude_self)
        add(static_cast<int32_t>(row), v, grad[v], grad[v] * tail[v]);
      else
        store_element(problem.dtype, io.grad_s, row * problem.width + column[v], grad[v] * tail[v]);
    }
  }
}

constexpr int kFinishThreads = 256;

// Sums the copies and writes the gradients as the caller's dtype.
template <typename T>
__global__ void __launch_bounds__(kFinishThreads)
    finish_kernel(EchoProblem problem, EchoBackward io, BankGradients<T> gradients, int tile_columns) {
  const int64_t count = problem.bank_rows * problem.width, stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < count; at += stride) {
    const int64_t row = at / problem.width, column = at % problem.width;
    const int64_t from = (column / tile_columns * problem.bank_rows + row) * 2 * tile_columns + column % tile_columns;
    T f = 0, s = 0;
    for (int64_t copy = 0; copy < gradients.copies; ++copy) {
      f += gradients.values[copy * gradients.size + from];
      s += gradients.values[copy * gradients.size + from + tile_columns];
    }
    store_element(problem.dtype, io.grad_bank_f, at, f);
    store_element(problem.dtype, io.grad_bank_s, at, s);
  }
}

// ---- Indices
// -----------------------------------------------------------------------------------------------------------

constexpr int kIndexThreads = 128;

__global__ void __launch_bounds__(kIndexThreads)
    indices_kernel(EchoProblem problem, const int64_t* seed, int64_t* indices) {
  const Draws draws = draws_of(problem, *seed);
  const Bijection order(num_candidates(draws));
  const uint32_t num_terms = static_cast<uint32_t>(problem.num_terms);
  for (int64_t row = blockIdx.x; row < problem.rows; row += gridDim.x) {
    int64_t* to = indices + row * problem.num_terms;
    if (problem.sampling == Sampling::ring) {
      const RingPlace place = ring_place(draws, row);
      for (uint32_t term = threadIdx.x; term < num_terms; term += blockDim.x) to[term] = ring_draw(draws, place, term);
    } else {
      const DrawKey key = draw_key(draws.seed, static_cast<uint64_t>(row));
      for (uint32_t term = threadIdx.x; term < num_terms; term += blockDim.x)
        to[term] = draw(draws, order, key, row, term);
    }
  }
}

// ---- Launch
// ------------------------------------------------------------------------------------------------------------

constexpr int kNarrowLanes = 8, kWideLanes = kWarp;
constexpr int64_t kMaxGroups = 65535;

// Copies of the bank's gradients that a deterministic backward pass fills side by side.
constexpr int64_t kDeterministicCopies = 8;

template <typename T>
Plan make_plan(const EchoProblem& problem, const DeviceLimits& limits, bool backward, bool deterministic) {
  constexpr int64_t kVectorBytes = sizeof(typename Traits<T>::Vector);
  Plan plan{};
  const int narrow_draws = backward ? kChunk : kForwardDraws<kNarrowLanes>;
  const int wide_draws = backward ? kChunk : kForwardDraws<kWideLanes>;
  const auto draw_bytes = [&](int lanes, int threads) {
    return (static_cast<int64_t>(lanes == kNarrowLanes ? narrow_draws : wide_draws) + 4) * 4 * (threads / lanes);
  };
  const int64_t tile_bytes = problem.bank_rows * kNarrowLanes * kVectorBytes;
  plan.staged = !deterministic && tile_bytes + draw_bytes(kNarrowLanes, kMaxThreads) <= limits.shared_bytes;
  // A bank in L2 is read best by whole warps, unless most of their lanes had no column.
  const bool is_narrow = plan.staged || (!deterministic && problem.width <= kNarrowLanes * kColumns<T>);
  plan.lanes = is_narrow ? kNarrowLanes : kWideLanes;
  plan.tiles = ceil_div(problem.width, plan.lanes * kColumns<T>);
  plan.threads = deterministic ? kWarp : plan.staged ? kMaxThreads : kMaxThreads / 2;

  const auto groups_wanted = [&] { return ceil_div(problem.rows, plan.threads / plan.lanes); };
  // Smaller blocks where these would leave multiprocessors idle.
  while (plan.threads > 2 * kWarp && plan.tiles * groups_wanted() < limits.multiprocessors) plan.threads /= 2;
  plan.shared_bytes = static_cast<size_t>(draw_bytes(plan.lanes, plan.threads) + (plan.staged ? tile_bytes : 0));
  // As many blocks as run at once: each stages its tile once, and checkpoints stay few.
  int64_t blocks_per_multiprocessor = limits.shared_bytes / static_cast<int64_t>(plan.shared_bytes);
  const int64_t most_threads = 2 * kMaxThreads / plan.threads;
  if (blocks_per_multiprocessor > most_threads) blocks_per_multiprocessor = most_threads;
  const int64_t resident = limits.multiprocessors * blocks_per_multiprocessor;
  plan.groups = deterministic ? kDeterministicCopies : resident / plan.tiles;
  if (plan.groups > groups_wanted()) plan.groups = groups_wanted();
  if (plan.groups > kMaxGroups) plan.groups = kMaxGroups;
  if (plan.groups < 1) plan.groups = 1;
  return plan;
}

template <typename T>
PackedBank<T> take_bank(Workspace& workspace, const EchoProblem& problem, const Plan& plan) {
  PackedBank<T> bank{};
  bank.cells = workspace.take<typename Traits<T>::Vector>(plan.tiles * problem.bank_rows * plan.lanes);
  bank.largest = workspace.take<typename Traits<T>::Bits>(plan.tiles * plan.lanes * kColumns<T> * 2);
  bank.lanes = plan.lanes;
  return bank;
}

template <typename T>
BankGradients<T> take_gradients(Workspace& workspace, const EchoProblem& problem, const Plan& plan,
                                bool deterministic) {
  BankGradients<T> gradients{};
  gradients.copies = deterministic ? plan.groups : 1;
  gradients.size = plan.tiles * problem.bank_rows * 2 * plan.lanes * kColumns<T>;
  gradients.values = workspace.take<T>(gradients.copies * gradients.size);
  return gradients;
}

template <typename T>
T* take_checkpoints(Workspace& workspace, const EchoProblem& problem, const Plan& plan) {
  const int64_t chunks = ceil_div(problem.num_terms, kChunk);
  return workspace.take<T>((chunks > 1 ? chunks - 1 : 0) * kColumns<T> * plan.tiles * plan.groups * plan.threads);
}

template <typename T>
cudaError_t fill_bank(const PackedBank<T>& bank, const EchoProblem& problem, const Plan& plan, const void* f,
                      const void* s, cudaStream_t stream) {
  const int64_t columns = plan.tiles * plan.lanes * kColumns<T>;
  const size_t bytes = static_cast<size_t>(columns) * 2 * sizeof(typename Traits<T>::Bits);
  const cudaError_t status = cudaMemsetAsync(bank.largest, 0, bytes, stream);
  if (status != cudaSuccess) return status;
  const int64_t blocks = ceil_div(problem.bank_rows, kPackRows);
  const dim3 grid(static_cast<unsigned>(plan.tiles), static_cast<unsigned>(blocks < kMaxGroups ? blocks : kMaxGroups));
  return launch(pack_kernel<T>, grid, kPackThreads, 0, stream, bank, problem, f, s);
}

dim3 grid_of(const Plan& plan) { return dim3(static_cast<unsigned>(plan.tiles), static_cast<unsigned>(plan.groups)); }

template <typename T>
const char* forward(const EchoProblem& problem, const EchoForward& io, const DeviceLimits& limits,
                    cudaStream_t stream) {
  const Plan plan = make_plan<T>(problem, limits, false, false);
  Workspace workspace(io.workspace);
  const PackedBank<T> bank = take_bank<T>(workspace, problem, plan);
  ECHO_EXT_CUDA_CHECK(fill_bank(bank, problem, plan, io.bank_f, io.bank_s, stream));
  const auto kernel = plan.staged                  ? forward_kernel<T, kNarrowLanes, true>
                      : plan.lanes == kNarrowLanes ? forward_kernel<T, kNarrowLanes, false>
                                                   : forward_kernel<T, kWideLanes, false>;
  ECHO_EXT_CUDA_CHECK(launch(kernel, grid_of(plan), plan.threads, plan.shared_bytes, stream, problem, io, bank));
  return nullptr;
}

template <typename T>
const char* backward(const EchoProblem& problem, const EchoBackward& io, bool deterministic, const DeviceLimits& limits,
                     cudaStream_t stream) {
  const Plan plan = make_plan<T>(problem, limits, true, deterministic);
  Workspace workspace(io.workspace);
  const PackedBank<T> bank = take_bank<T>(workspace, problem, plan);
  const BankGradients<T> gradients = take_gradients<T>(workspace, problem, plan, deterministic);
  T* checkpoints = take_checkpoints<T>(workspace, problem, plan);

  ECHO_EXT_CUDA_CHECK(fill_bank(bank, problem, plan, io.bank_f, io.bank_s, stream));
  const size_t gradient_bytes = static_cast<size_t>(gradients.copies * gradients.size) * sizeof(T);
  ECHO_EXT_CUDA_CHECK(cudaMemsetAsync(gradients.values, 0, gradient_bytes, stream));
  const auto kernel = deterministic                ? backward_kernel<T, kWideLanes, false, true>
                      : plan.staged                ? backward_kernel<T, kNarrowLanes, true, false>
                      : plan.lanes == kNarrowLanes ? backward_kernel<T, kNarrowLanes, false, false>
                                                   : backward_kernel<T, kWideLanes, false, false>;
  if (problem.rows > 0)
    ECHO_EXT_CUDA_CHECK(launch(kernel, grid_of(plan), plan.threads, plan.shared_bytes, stream, problem, io, bank,
                               gradients, checkpoints));

  const int64_t blocks = ceil_div(problem.bank_rows * problem.width, kFinishThreads);
  const int64_t most_blocks = static_cast<int64_t>(limits.multiprocessors) * 16;
  const dim3 grid(static_cast<unsigned>(blocks < most_blocks ? blocks : most_blocks));
  ECHO_EXT_CUDA_CHECK(
      launch(finish_kernel<T>, grid, kFinishThreads, 0, stream, problem, io, gradients, plan.lanes * kColumns<T>));
  return nullptr;
}

template <typename T>
int64_t workspace_bytes(const EchoProblem& problem, const DeviceLimits& limits, bool is_backward, bool deterministic) {
  const Plan plan = make_plan<T>(problem, limits, is_backward, deterministic);
  Workspace workspace(nullptr);
  take_bank<T>(workspace, problem, plan);
  if (is_backward) {
    take_gradients<T>(workspace, problem, plan, deterministic);
    take_checkpoints<T>(workspace, problem, plan);
  }
  return workspace.used();
}

int64_t workspace_bytes(const EchoProblem& problem, int device, bool is_backward, bool deterministic) {
  DeviceLimits limits{};
  if (device_limits(device, &limits) != cudaSuccess) return -1;
  if (problem.bank_rows == 0 || problem.width == 0) return 0;
  if (problem.sampling == Sampling::ring) return echo_ring_cuda_workspace_bytes(problem, is_backward, limits);
  if (problem.dtype == DType::float64) return workspace_bytes<double>(problem, limits, is_backward, deterministic);
  return workspace_bytes<float>(problem, limits, is_backward, deterministic);
}

}  // namespace

// ---- Entry points
// ------------------------------------------------------------------------------------------------------

int64_t echo_cuda_forward_workspace_bytes(const EchoProblem& problem, int device) {
  return workspace_bytes(problem, device, false, false);
}

int64_t echo_cuda_backward_workspace_bytes(const EchoProblem& problem, bool deterministic, int device) {
  return workspace_bytes(problem, device, true, deterministic);
}

const char* echo_cuda_forward(const EchoProblem& problem, const EchoForward& io, int device, void* stream) {
  if (problem.rows == 0 || problem.bank_rows == 0 || problem.width == 0) return nullptr;
  const DeviceGuard guard(device);
  ECHO_EXT_CUDA_CHECK(guard.status());
  DeviceLimits limits{};
  ECHO_EXT_CUDA_CHECK(device_limits(device, &limits));
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (problem.sampling == Sampling::ring) return echo_ring_cuda_forward(problem, io, limits, cuda_stream);
  switch (problem.dtype) {
    case DType::float64: return forward<double>(problem, io, limits, cuda_stream);
    case DType::float32:
    case DType::bfloat16:
    case DType::float16: return forward<float>(problem, io, limits, cuda_stream);
  }
  return "echo_cuda_forward: unknown dtype";
}

const char* echo_cuda_backward(const EchoProblem& problem, const EchoBackward& io, bool deterministic, int device,
                               void* stream) {
  if (problem.bank_rows == 0 || problem.width == 0) return nullptr;
  const DeviceGuard guard(device);
  ECHO_EXT_CUDA_CHECK(guard.status());
  DeviceLimits limits{};
  ECHO_EXT_CUDA_CHECK(device_limits(device, &limits));
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (problem.sampling == Sampling::ring) return echo_ring_cuda_backward(problem, io, limits, cuda_stream);
  switch (problem.dtype) {
    case DType::float64: return backward<double>(problem, io, deterministic, limits, cuda_stream);
    case DType::float32:
    case DType::bfloat16:
    case DType::float16: return backward<float>(problem, io, deterministic, limits, cuda_stream);
  }
  return "echo_cuda_backward: unknown dtype";
}

const char* echo_cuda_indices(const EchoProblem& problem, const int64_t* seed, int64_t* indices, int device,
                              void* stream) {
  if (problem.rows == 0 || problem.num_terms == 0) return nullptr;
  const DeviceGuard guard(device);
  ECHO_EXT_CUDA_CHECK(guard.status());
  const dim3 grid(static_cast<unsigned>(problem.rows < 0x7fffffff ? problem.rows : 0x7fffffff));
  ECHO_EXT_CUDA_CHECK(
      launch(indices_kernel, grid, kIndexThreads, 0, static_cast<cudaStream_t>(stream), problem, seed, indices));
  return nullptr;
}

}  // namespace echo_ext
