// Chooses the kernels of projected full attention and launches them. Torch-free; `launch` and `Stream` come
// from cuda/launch.cuh, or from the shim of the host-run tests.
#pragma once
#include "cuda/pfa_launch.h"
#include "cuda/pfa_works.cuh"

namespace attsnn {

// Whether a row of every sample can be reached by accesses of that many bytes.
template <class T>
bool rows_aligned(const Places<T>& places, int64_t columns, size_t bytes) {
  const auto fits = [&](int64_t elements) { return elements * sizeof(T) % bytes == 0; };
  return places.data == nullptr || (reinterpret_cast<uintptr_t>(places.data) % bytes == 0 && fits(columns) &&
                                    fits(places.step) && fits(places.sample));
}

// Blocks that are enough for a large device, and groups of rows that a block walks at the most where there
// are so many; sums of chunks follow from the shape alone.
inline constexpr int64_t kPfaBlocks = 1024, kPfaChunk = 64;

struct PfaGrid {
  int64_t tiles, chunk, chunks;

  PfaGrid(const PfaShape& shape, int64_t enough, int64_t columns_of_tile, int64_t slots) {
    tiles = blocks_for(shape.columns(), columns_of_tile);
    const int64_t blocks = shape.maps.samples * tiles, groups = shape.groups();
    const int64_t wanted = std::max<int64_t>(1, enough / std::max<int64_t>(1, blocks));
    chunk = std::clamp(blocks_for(groups, wanted), slots, std::max(slots, kPfaChunk));
    chunks = blocks_for(groups, chunk);
  }
  int64_t blocks(const PfaShape& shape) const { return shape.maps.samples * tiles * chunks; }
};

// f(Number of lanes beside each other): 8 where 32 would idle more.
template <class Io, class F>
void dispatch_lanes(const PfaShape& shape, const F& f) {
  const int64_t vectors = blocks_for(shape.columns(), PfaTile<Io, 32>::kV);
  vectors > 16 ? f(std::integral_constant<int, 32>{}) : f(std::integral_constant<int, 8>{});
}

template <class Io, class Real>
void launch_pfa_forward_in(int64_t enough, const PfaForward<Io, Real>& call, const Scratch<Real>& scratch,
                           Stream stream) {
  const PfaShape& shape = call.shape;
  const int64_t rows = shape.rows(), columns = shape.columns(), samples = shape.maps.samples;
  dispatch_lanes<Io>(shape, [&](auto number) {
    constexpr int kLanes = decltype(number)::value;
    using Tile = PfaTile<Io, kLanes>;
    const size_t bytes = Tile::kV * sizeof(Io);
    const bool aligned = rows_aligned(call.x, columns, bytes) && rows_aligned(call.y, columns, bytes);
    MeansTiles<Real> means{blocks_for(rows, kMeansRows), blocks_for(columns, Tile::kColumns), nullptr,
                           nullptr};
    const int64_t all = samples * shape.maps.steps;
    means.by_column = scratch(all * means.row_tiles * columns);
    means.by_row = scratch(all * means.column_tiles * rows);
    const bool still = call.x.step == 0;
    const int64_t read = still ? samples : all;
    in_launches(read * means.row_tiles * means.column_tiles, limits().x, [&](int64_t first, int64_t blocks) {
      launch(stream, pfa_means_kernel<Io, Real, kLanes>, blocks, kPfaThreads, 0, call, means, aligned, first);
    });
    Real *by_column = call.small.by_pixel, *by_row = call.small.by_channel;
    if (shape.maps.channels_last) std::swap(by_column, by_row);
    const PfaMeans<Real> finish{shape, means, still, by_column, by_row};
    launch_each(finish.tasks(), finish, stream);
    const PfaFactors<Real> factors{shape, call.weights, call.small};
    launch_each(factors.tasks(), factors, stream);
    launch_teams(samples, PfaTemporal<Real>{shape, call.weights, call.small}, stream);
    const PfaGrid grid(shape, enough, Tile::kColumns, Tile::kSlots);
    in_launches(grid.blocks(shape), limits().x, [&](int64_t first, int64_t blocks) {
      launch(stream, pfa_apply_kernel<Io, Real, kLanes>, blocks, kPfaThreads,
             shared_of_compose<Io, kLanes, Real>(shape.rank), call, aligned, grid.tiles, grid.chunk, first);
    });
  });
}

template <class Io, class Real, int kLanes>
void launch_pfa_reduce(const PfaBackward<Io, Real>& call, const FactorTiles<Real>& to, const PfaGrid& grid,
                       bool aligned, Stream stream) {
  const auto with_ranks = [&](auto number) {
    constexpr int kRanks = decltype(number)::value;
    const int64_t all = grid.blocks(call.shape) * blocks_for(call.shape.rank, kRanks);
    in_launches(all, limits().x, [&](int64_t first, int64_t blocks) {
      launch(stream, pfa_reduce_kernel<Io, Real, kLanes, kRanks>, blocks, kPfaThreads,
             shared_of_reduce<Io, kLanes, kRanks, Real>(), call, to, aligned, grid.chunk, first);
    });
  };
  if constexpr (sizeof(Real) == sizeof(float))  // more, or in double, would spill
    if (call.shape.rank > 4) return with_ranks(std::integral_constant<int, 8>{});
  with_ranks(std::integral_constant<int, 4>{});
}

template <class Io, class Real>
void launch_pfa_backward_in(int64_t enough, const PfaBackward<Io, Real>& call, const Scratch<Real>& scratch,
                            Stream stream) {
  const PfaShape& shape = call.shape;
  const int64_t samples = shape.maps.samples, steps = shape.maps.steps, columns = shape.columns();
  dispatch_lanes<Io>(shape, [&](auto number) {
    constexpr int kLanes = decltype(number)::value;
    using Tile = PfaTile<Io, kLanes>;
    const size_t bytes = Tile::kV * sizeof(Io);
    const bool aligned = rows_aligned(call.grad_y, columns, bytes) && rows_aligned(call.x, columns, bytes) &&
                         rows_aligned(call.grad_x, columns, bytes);
    const PfaGrid grid(shape, enough, Tile::kColumns, Tile::kSlots);
    FactorTiles<Real> tiles{grid.tiles, grid.chunks, nullptr, nullptr};
    tiles.columns = scratch(samples * grid.chunks * shape.rank * columns);
    tiles.rows = scratch(samples * grid.tiles * steps * shape.rows() * shape.rank);
    launch_pfa_reduce<Io, Real, kLanes>(call, tiles, grid, aligned, stream);

    const PfaBefore<Real> before{scratch(samples * shape.rank * shape.maps.pixels()),
                                 scratch(samples * steps * shape.rank),
                                 scratch(samples * shape.maps.channels * shape.rank)};
    const PfaFactorsBack<Real> factors{shape, call.scale, tiles, call.small, before};
    launch_each(factors.tasks(), factors, stream);
    launch_teams(samples * steps, PfaTemporalBack<Real>{shape, call.scale, tiles, call.small, before},
                 stream);
    const PfaBefore<const Real> read{before.spatial, before.temporal, before.channel};
    const PfaWeightsBack<Real> weights{shape, call.small, read, call.grads};
    launch_teams(weights.tasks(), weights, stream);
    if (call.grad_x.data == nullptr) return;
    Real *by_pixel = scratch(shape.by_pixel()), *by_channel = scratch(shape.by_channel());
    const PfaMeansBack<Real> means{shape, call.weights, read, by_pixel, by_channel};
    launch_each(means.tasks(), means, stream);
    if (shape.maps.channels_last) std::swap(by_pixel, by_channel);
    const size_t shared = call.fusion == Fusion::kAdd ? 0 : shared_of_compose<Io, kLanes, Real>(shape.rank);
    in_launches(grid.blocks(shape), limits().x, [&](int64_t first, int64_t blocks) {
      launch(stream, pfa_gradient_kernel<Io, Real, kLanes>, blocks, kPfaThreads, shared, call,
             static_cast<const Real*>(by_pixel), static_cast<const Real*>(by_channel), aligned, grid.tiles,
             grid.chunk, first);
    });
  });
}

template <class Io, class Real>
void launch_pfa_forward(const PfaForward<Io, Real>& call, const Scratch<Real>& scratch, Stream stream) {
  launch_pfa_forward_in(kPfaBlocks, call, scratch, stream);
}

template <class Io, class Real>
void launch_pfa_backward(const PfaBackward<Io, Real>& call, const Scratch<Real>& scratch, Stream stream) {
  launch_pfa_backward_in(kPfaBlocks, call, scratch, stream);
}

// Names the launchers of one type, as `instantiate` does for the neurons.
template <class Io, class Real>
void instantiate_pfa() {
  const auto name = [](auto launcher) { [[maybe_unused]] static auto volatile named = launcher; };
  name(&launch_pfa_forward<Io, Real>);
  name(&launch_pfa_backward<Io, Real>);
}

}  // namespace attsnn
