// PFA's first pass backward on CUDA: from y's gradient to sums for the map's factors, those of columns by
// chunk of rows, those of rows by tile of columns. Works add them up (cuda/pfa_works.cuh). Torch-free.
#pragma once
#include "cuda/pfa_kernel.cuh"

namespace attsnn {

// Sums over kLanes threads beside each other, of kCount values of each: thread l ends up with the sums number
// l * kCount / kLanes and on, in its first places. So each is handed over about once.
template <int kLanes, int kCount, class Real>
ATTSNN_DEVICE void sum_over_lanes(Real (&values)[kCount]) {
  const int lane = int(threadIdx.x) % kLanes;
  int count = kCount;
#pragma unroll
  for (int delta = kLanes / 2; delta > 0; delta /= 2) {
    count /= 2;
    const bool upper = (lane & delta) != 0;
#pragma unroll
    for (int k = 0; k < kCount / 2; ++k)
      if (k < count) {
        const Real other = upper ? values[k] : values[k + count];
        const Real own = upper ? values[k + count] : values[k];
        values[k] = own + __shfl_xor_sync(~0u, other, delta);
      }
  }
}

template <class Real>
struct FactorTiles {
  int64_t tiles, chunks;
  Real *columns, *rows;  // [N, chunks, R, J], [N, tiles, T I, R]
};

inline constexpr int kRanksTogether = 4;  // whose sums over the lanes are taken at once: 32 with eight rows

template <class Io, int kLanes, int kRanks, class Real>
size_t shared_of_reduce() {
  using Tile = PfaTile<Io, kLanes>;
  return size_t(kRanks * (Tile::kColumns + Tile::kSlots * kRowsPerByte) + Tile::kSlots * Tile::kColumns) *
         sizeof(Real);
}

// At least 1 block a multiprocessor: left to choose, the compiler spills. A block has kRanks of the ranks;
// those that read the same are neighbours, for the second-level cache. Grid: samples * tiles of columns *
// chunks of groups * parts of the ranks, in x.
template <class Io, class Real, int kLanes, int kRanks>
__global__ void __launch_bounds__(kPfaThreads, 1)
    pfa_reduce_kernel(PfaBackward<Io, Real> call, FactorTiles<Real> to, bool aligned, int64_t chunk,
                      int64_t first) {
  using Tile = PfaTile<Io, kLanes>;
  constexpr int kV = Tile::kV, kValues = kRanksTogether * kRowsPerByte, kPerLane = kValues / kLanes;
  ATTSNN_DYNAMIC_SHARED(unsigned char, memory);
  Real* columns = reinterpret_cast<Real*>(memory);
  Real *weights = columns + kRanks * Tile::kColumns,
       *of_slots = weights + Tile::kSlots * kRanks * kRowsPerByte;
  const PfaShape& shape = call.shape;
  int64_t part;
  const int64_t place = divide(first + blockIdx.x, (shape.rank + kRanks - 1) / kRanks, part);
  const PfaBlock block(shape, place, to.tiles, chunk);
  const int64_t rank0 = part * kRanks, rows = shape.maps.steps * shape.rows();
  const PfaColumns<Io, kLanes> own(block.tile, shape.columns(), aligned);
  share_columns<Tile::kColumns>(shape, call.small, block.n, block.tile, rank0, kRanks, columns);
  Real sums[kRanks][kV] = {};
  for (int64_t group = block.begin; group < block.end; group += Tile::kSlots) {
    __syncthreads();  // the weights of the groups before were read
    share_weights(shape, call.small, call.scale, block.n, group, block.end, Tile::kSlots, rank0, kRanks,
                  weights);
    __syncthreads();
    const int64_t g = group + own.slot;
    const bool there = g < block.end;
    Real grads[kRowsPerByte][kV];
#pragma unroll
    for (int m = 0; m < kRowsPerByte; ++m) {
      PfaRow row(shape, there ? g : 0, m);
      row.there &= there;
      map_gradient(call, own, block.n, g, m, row, grads[m]);
    }
#pragma unroll
    for (int r0 = 0; r0 < kRanks; r0 += kRanksTogether) {
      Real products[kValues];
#pragma unroll
      for (int k = 0; k < kRanksTogether; ++k) {
        const Real* column = columns + (r0 + k) * Tile::kColumns + own.lane * kV;
        const Real* weight = weights + (own.slot * kRanks + r0 + k) * kRowsPerByte;
        Real values[kV];
#pragma unroll
        for (int j = 0; j < kV; ++j) values[j] = column[j];
#pragma unroll
        for (int m = 0; m < kRowsPerByte; ++m) {
          Real product = 0;
#pragma unroll
          for (int j = 0; j < kV; ++j) {
            product = multiply_add(grads[m][j], values[j], product);
            sums[r0 + k][j] = multiply_add(weight[m], grads[m][j], sums[r0 + k][j]);
          }
          products[k * kRowsPerByte + m] = product;
        }
      }
      sum_over_lanes<kLanes>(products);
#pragma unroll
      for (int k = 0; k < kPerLane; ++k) {
        const int index = own.lane * kPerLane + k;
        const int64_t r = rank0 + r0 + index / kRowsPerByte, q = g * kRowsPerByte + index % kRowsPerByte;
        if (there && r < shape.rank && q < rows)
          to.rows[((block.n * to.tiles + block.tile) * rows + q) * shape.rank + r] = products[k];
      }
    }
  }
  const int64_t chunk_number = block.begin / chunk;
#pragma unroll
  for (int r = 0; r < kRanks; ++r) {
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kV; ++j) of_slots[own.slot * Tile::kColumns + own.lane * kV + j] = sums[r][j];
    __syncthreads();
    for (int k = int(threadIdx.x); k < Tile::kColumns; k += kPfaThreads) {
      const int64_t j = block.tile * Tile::kColumns + k;
      if (j >= shape.columns() || rank0 + r >= shape.rank) continue;
      Real sum = of_slots[k];
      for (int slot = 1; slot < Tile::kSlots; ++slot) sum += of_slots[slot * Tile::kColumns + k];
      to.columns[((block.n * to.chunks + chunk_number) * shape.rank + rank0 + r) * shape.columns() + j] = sum;
    }
  }
}

}  // namespace attsnn
