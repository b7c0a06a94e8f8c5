// PFA's passes over x on CUDA. A thread has a vector of columns of eight rows, whose values of the map it
// composes in registers; a block has kSlots such groups of rows side by side, over a tile of columns.
// Torch-free, and run on the host by tests/cpp.
#pragma once
#include "core/pfa_call.h"
#include "cuda/neuron_kernel.cuh"
#include "cuda/seam_rows.cuh"

namespace attsnn {

inline constexpr int kPfaThreads = 128;
inline constexpr int kMeansRows = 64;  // of a block's tile

// kLanes threads beside each other share their rows, 32 or 8: maps of few pixels leave fewer idle so.
template <class Io, int kLanes>
struct PfaTile {
  static constexpr int kV = sizeof(Io) == 8 ? 2 : 4;
  static constexpr int kSlots = kPfaThreads / kLanes, kColumns = kLanes * kV;
};

// A thread's columns.
template <class Io, int kLanes>
struct PfaColumns {
  static constexpr int kV = PfaTile<Io, kLanes>::kV;
  int slot, lane, count;
  int64_t first;
  bool whole;

  ATTSNN_DEVICE PfaColumns(int64_t tile, int64_t columns, bool aligned)
      : slot(int(threadIdx.x) / kLanes), lane(int(threadIdx.x) % kLanes) {
    first = tile * PfaTile<Io, kLanes>::kColumns + lane * kV;
    const int64_t left = columns - first;
    count = left < 0 ? 0 : left < kV ? int(left) : kV;
    whole = aligned && count == kV;
  }
};

// A group's row m: its step and its row of that step; none past the sample's last.
struct PfaRow {
  int64_t t, i;
  bool there;
  ATTSNN_DEVICE PfaRow(const PfaShape& shape, int64_t group, int m) {
    const int64_t q = group * kRowsPerByte + m, rows = shape.rows();
    there = q < shape.maps.steps * rows;
    t = divide(there ? q : 0, rows, i);
  }
};

template <class Real>
ATTSNN_DEVICE Real row_factor(const PfaShape& shape, const Real* spatial, const Real* channel, int64_t n,
                              int64_t i, int64_t r) {
  return shape.maps.channels_last ? spatial[(n * shape.rank + r) * shape.maps.pixels() + i]
                                  : channel[(n * shape.maps.channels + i) * shape.rank + r];
}
template <class Real>
ATTSNN_DEVICE Real column_factor(const PfaShape& shape, const Real* spatial, const Real* channel, int64_t n,
                                 int64_t j, int64_t r) {
  return shape.maps.channels_last ? channel[(n * shape.maps.channels + j) * shape.rank + r]
                                  : spatial[(n * shape.rank + r) * shape.maps.pixels() + j];
}

// The tile's columns of the map's factors, [ranks, kColumns], zeros past the last; rank `first` and on.
template <int kColumns, class Small, class Real>
ATTSNN_DEVICE void share_columns(const PfaShape& shape, const Small& small, int64_t n, int64_t tile,
                                 int64_t first, int ranks, Real* to) {
  for (int k = int(threadIdx.x); k < ranks * kColumns; k += kPfaThreads) {
    const int64_t j = tile * kColumns + k % kColumns, r = first + k / kColumns;
    to[k] = j < shape.columns() && r < shape.rank
                ? column_factor<Real>(shape, small.spatial, small.channel, n, j, r)
                : Real(0);
  }
}

// The products of the other two factors for the rows of `groups` groups, times scale: [groups, ranks, 8].
template <class Small, class Real>
ATTSNN_DEVICE void share_weights(const PfaShape& shape, const Small& small, Real scale, int64_t n,
                                 int64_t group, int64_t end, int groups, int64_t first, int ranks, Real* to) {
  for (int k = int(threadIdx.x); k < groups * kRowsPerByte * ranks; k += kPfaThreads) {
    const int r = k % ranks, m = k / ranks % kRowsPerByte, g = k / ranks / kRowsPerByte;
    const PfaRow row(shape, group + g, m);
    Real weight = 0;
    if (row.there && group + g < end && first + r < shape.rank)
      weight = scale * small.temporal[(n * shape.maps.steps + row.t) * shape.rank + first + r] *
               row_factor<Real>(shape, small.spatial, small.channel, n, row.i, first + r);
    to[(g * ranks + r) * kRowsPerByte + m] = weight;
  }
}

// What a block of the grid does: sample, tile of columns, chunk of the sample's groups.
struct PfaBlock {
  int64_t n, tile, begin, end;
  ATTSNN_DEVICE PfaBlock(const PfaShape& shape, int64_t block, int64_t tiles, int64_t chunk) {
    const int64_t chunks = (shape.groups() + chunk - 1) / chunk;
    int64_t k;
    n = divide(divide(block, chunks, k), tiles, tile);
    begin = k * chunk;
    end = begin + chunk < shape.groups() ? begin + chunk : shape.groups();
  }
};

// ---- the means: sums of tiles of rows and columns, which a work adds

template <class Real>
struct MeansTiles {
  int64_t row_tiles, column_tiles;
  Real *by_column, *by_row;  // [N, T, row_tiles, J], [N, T, column_tiles, I]
};

// Grid: steps that are read * samples * tiles, in x.
template <class Io, class Real, int kLanes>
__global__ void __launch_bounds__(kPfaThreads)
    pfa_means_kernel(PfaForward<Io, Real> call, MeansTiles<Real> to, bool aligned, int64_t first) {
  using Tile = PfaTile<Io, kLanes>;
  constexpr int kV = Tile::kV;
  __shared__ Real of_slot[Tile::kSlots][Tile::kColumns];
  const PfaShape& shape = call.shape;
  int64_t row_tile, column_tile, t;
  const int64_t at = divide(divide(first + blockIdx.x, to.column_tiles, column_tile), to.row_tiles, row_tile);
  const int64_t n = divide(at, call.x.step == 0 ? 1 : shape.maps.steps, t);
  const int64_t rows = shape.rows(), columns = shape.columns(), nt = n * shape.maps.steps + t;
  const PfaColumns<Io, kLanes> own(column_tile, columns, aligned);
  const Io* x = call.x.at(t, n);
  Real sums[kV] = {};
  for (int k = own.slot; k < kMeansRows; k += Tile::kSlots) {
    const int64_t i = row_tile * kMeansRows + k;
    Real sum = 0;
    if (i < rows) {
      const auto values = load<kV>(x + i * columns + own.first, own.count, own.whole);
#pragma unroll
      for (int j = 0; j < kV; ++j) {
        sums[j] += Real(values[j]);
        sum += Real(values[j]);
      }
    }
#pragma unroll
    for (int delta = kLanes / 2; delta > 0; delta /= 2) sum += __shfl_xor_sync(~0u, sum, delta);
    if (own.lane == 0 && i < rows) to.by_row[(nt * to.column_tiles + column_tile) * rows + i] = sum;
  }
#pragma unroll
  for (int j = 0; j < kV; ++j) of_slot[own.slot][own.lane * kV + j] = sums[j];
  __syncthreads();
  for (int k = int(threadIdx.x); k < Tile::kColumns; k += kPfaThreads) {
    const int64_t j = column_tile * Tile::kColumns + k;
    if (j >= columns) continue;
    Real sum = of_slot[0][k];
    for (int slot = 1; slot < Tile::kSlots; ++slot) sum += of_slot[slot][k];
    to.by_column[(nt * to.row_tiles + row_tile) * columns + j] = sum;
  }
}

// ---- the map, composed and applied, and the gradient of x

// sums[m][j] = the map's values of the thread's rows and columns.
template <int kV, class Real>
ATTSNN_DEVICE void compose(int ranks, const Real* weights, const Real* columns, int distance,
                           Real (&sums)[kRowsPerByte][kV]) {
  for (int r = 0; r < ranks; ++r) {
    Real values[kV];
#pragma unroll
    for (int j = 0; j < kV; ++j) values[j] = columns[r * distance + j];
#pragma unroll
    for (int m = 0; m < kRowsPerByte; ++m) {
      const Real weight = weights[r * kRowsPerByte + m];
#pragma unroll
      for (int j = 0; j < kV; ++j) sums[m][j] = multiply_add(weight, values[j], sums[m][j]);
    }
  }
}

template <class Io, int kLanes, class Real>
size_t shared_of_compose(int64_t rank) {
  using Tile = PfaTile<Io, kLanes>;
  return size_t(rank) * (Tile::kColumns + Tile::kSlots * kRowsPerByte) * sizeof(Real);
}

// f(the thread's columns, group, whether it is one of the block's, the map's values) for the block's groups.
template <class Io, class Real, int kLanes, class Call, class F>
ATTSNN_DEVICE void over_groups(const Call& call, const PfaBlock& block, bool composed, bool aligned,
                               Real* shared, const F& f) {
  using Tile = PfaTile<Io, kLanes>;
  const PfaShape& shape = call.shape;
  const int rank = composed ? int(shape.rank) : 0;
  Real *columns = shared, *weights = shared + rank * Tile::kColumns;
  const PfaColumns<Io, kLanes> own(block.tile, shape.columns(), aligned);
  share_columns<Tile::kColumns>(shape, call.small, block.n, block.tile, 0, rank, columns);
  for (int64_t group = block.begin; group < block.end; group += Tile::kSlots) {
    __syncthreads();  // the weights of the groups before were read
    share_weights(shape, call.small, call.scale, block.n, group, block.end, Tile::kSlots, 0, rank, weights);
    __syncthreads();
    Real sums[kRowsPerByte][Tile::kV] = {};
    compose(rank, weights + own.slot * rank * kRowsPerByte, columns + own.lane * Tile::kV, Tile::kColumns,
            sums);
    if (group + own.slot < block.end && own.count > 0) f(own, group + own.slot, sums);
  }
}

// Grid: samples * tiles of columns * chunks of groups, in x.
template <class Io, class Real, int kLanes>
__global__ void __launch_bounds__(kPfaThreads)
    pfa_apply_kernel(PfaForward<Io, Real> call, bool aligned, int64_t tiles, int64_t chunk, int64_t first) {
  ATTSNN_DYNAMIC_SHARED(unsigned char, shared);
  constexpr int kV = PfaTile<Io, kLanes>::kV;
  const PfaBlock block(call.shape, first + blockIdx.x, tiles, chunk);
  over_groups<Io, Real, kLanes>(
      call, block, true, aligned, reinterpret_cast<Real*>(shared),
      [&](const PfaColumns<Io, kLanes>& own, int64_t group, const Real(&sums)[kRowsPerByte][kV]) {
        const int64_t columns = call.shape.columns();
        uint8_t bits[kV] = {};
#pragma unroll
        for (int m = 0; m < kRowsPerByte; ++m) {
          const PfaRow row(call.shape, group, m);
          if (!row.there) break;
          const int64_t at = row.i * columns + own.first;
          const auto x = load<kV>(call.x.at(row.t, block.n) + at, own.count, own.whole);
          Pack<Io, kV> y;
#pragma unroll
          for (int j = 0; j < kV; ++j) {
            const Real value = weigh(call.fusion, sums[m][j], Real(x[j]));
            bits[j] |= uint8_t((value != Real(0)) << m);
            y[j] = Io(value);
          }
          store<kV>(call.y.at(row.t, block.n) + at, y, own.count, own.whole);
        }
        if (call.bits == nullptr) return;
        uint8_t* to = call.bits + (block.n * call.shape.groups() + group) * columns + own.first;
#pragma unroll
        for (int j = 0; j < kV; ++j)
          if (j < own.count) to[j] = bits[j];
      });
}

// What y hands to the map, of the thread's columns of row m; zeros past the sample's last row.
template <class Io, class Real, int kLanes>
ATTSNN_DEVICE void map_gradient(const PfaBackward<Io, Real>& call, const PfaColumns<Io, kLanes>& own,
                                int64_t n, int64_t group, int m, const PfaRow& row,
                                Real (&values)[PfaTile<Io, kLanes>::kV]) {
  constexpr int kV = PfaTile<Io, kLanes>::kV;
  const int64_t columns = call.shape.columns(), at = row.i * columns + own.first;
#pragma unroll
  for (int j = 0; j < kV; ++j) values[j] = 0;
  if (!row.there || own.count == 0) return;
  const auto grad = load<kV>(call.grad_y.at(row.t, n) + at, own.count, own.whole);
  if (call.fusion == Fusion::kAdd) {
    const uint8_t* bits = call.bits + (n * call.shape.groups() + group) * columns + own.first;
#pragma unroll
    for (int j = 0; j < kV; ++j)
      if (j < own.count) values[j] = (bits[j] >> m & 1) != 0 ? Real(grad[j]) : Real(0);
  } else {
    const auto x = load<kV>(call.x.at(row.t, n) + at, own.count, own.whole);
#pragma unroll
    for (int j = 0; j < kV; ++j)
      if (j < own.count) values[j] = to_map(call.fusion, Real(grad[j]), Real(x[j]));
  }
}

// by_column [N, T, J] and by_row [N, T, I]: what the means hand back. Grid: as above.
template <class Io, class Real, int kLanes>
__global__ void __launch_bounds__(kPfaThreads)
    pfa_gradient_kernel(PfaBackward<Io, Real> call, const Real* by_column, const Real* by_row, bool aligned,
                        int64_t tiles, int64_t chunk, int64_t first) {
  ATTSNN_DYNAMIC_SHARED(unsigned char, shared);
  constexpr int kV = PfaTile<Io, kLanes>::kV;
  const PfaBlock block(call.shape, first + blockIdx.x, tiles, chunk);
  const bool added = call.fusion == Fusion::kAdd;
  over_groups<Io, Real, kLanes>(
      call, block, !added, aligned, reinterpret_cast<Real*>(shared),
      [&](const PfaColumns<Io, kLanes>& own, int64_t group, const Real(&sums)[kRowsPerByte][kV]) {
        const int64_t columns = call.shape.columns(), steps = call.shape.maps.steps;
#pragma unroll
        for (int m = 0; m < kRowsPerByte; ++m) {
          const PfaRow row(call.shape, group, m);
          if (!row.there) break;
          const int64_t at = row.i * columns + own.first, nt = block.n * steps + row.t;
          Real passed[kV];
          if (added) {
            map_gradient(call, own, block.n, group, m, row, passed);
          } else {
            const auto grad = load<kV>(call.grad_y.at(row.t, block.n) + at, own.count, own.whole);
            const auto x = load<kV>(call.x.at(row.t, block.n) + at, own.count, own.whole);
#pragma unroll
            for (int j = 0; j < kV; ++j) passed[j] = to_x(call.fusion, Real(grad[j]), sums[m][j], Real(x[j]));
          }
          const Real of_row = by_row[nt * call.shape.rows() + row.i];
          Pack<Io, kV> to;
#pragma unroll
          for (int j = 0; j < kV; ++j)
            if (j < own.count) to[j] = Io(passed[j] + (by_column[nt * columns + own.first + j] + of_row));
          store<kV>(call.grad_x.at(row.t, block.n) + at, to, own.count, own.whole);
        }
      });
}

}  // namespace attsnn
