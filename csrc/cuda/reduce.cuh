// Sums that are the same bits every time: fixed tiles by shape, a fixed tree in a block, no atomics.
// Torch-free; `launch` and `Stream` come from cuda/launch.cuh, or from the shim of the host-run tests.
#pragma once
#include "core/call.h"
#include "cuda/grid.cuh"

namespace attsnn {

inline constexpr int kReduceThreads = 256, kReduceTile = 16 * kReduceThreads;

// The sum over a block's threads, in thread 0.
template <int kThreads>
__device__ double block_sum(double value) {
  __shared__ double of_warp[kThreads / 32];
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_down_sync(~0u, value, lane);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
#ifndef ATTSNN_DROP_BARRIER  // a test drops it, and must see that
  __syncthreads();
#endif
  if (threadIdx.x == 0)
    for (int warp = 1; warp < kThreads / 32; ++warp) value += of_warp[warp];
  return value;
}

// sums [constants, neurons] -> partial [constants * channels, tiles]. Grid: rows * tiles, from `first`, in x,
// which alone has room for many channels and for many neurons.
template <class Real>
__global__ void __launch_bounds__(kReduceThreads)
    sum_tiles_kernel(const Real* sums, Shape shape, int64_t tiles, int64_t first, double* partial) {
  const int64_t block = first + blockIdx.x, row = block / tiles, begin = block % tiles * kReduceTile;
  const int64_t channel = row % shape.channels, members = shape.neurons / shape.channels;
  const Real* values = sums + row / shape.channels * shape.neurons;
  const int64_t end = begin + kReduceTile < members ? begin + kReduceTile : members;
  double sum = 0;
  for (int64_t k = begin + threadIdx.x; k < end; k += kReduceThreads) sum += values[shape.member(channel, k)];
  sum = block_sum<kReduceThreads>(sum);
  if (threadIdx.x == 0) partial[block] = sum;
}

// partial [rows, tiles] -> result [rows]. Grid: rows, from `first`.
template <class Real>
__global__ void __launch_bounds__(kReduceThreads)
    sum_partials_kernel(const double* partial, int64_t tiles, int64_t first, Real* result) {
  const int64_t row = first + blockIdx.x;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < tiles; i += kReduceThreads) sum += partial[row * tiles + i];
  sum = block_sum<kReduceThreads>(sum);
  if (threadIdx.x == 0) result[row] = Real(sum);
}

// sums [constants, neurons] -> result [constants, channels]; partial holds reduce_tiles(shape) doubles a
// result.
inline int64_t reduce_tiles(const Shape& shape) {
  return (shape.neurons / shape.channels + kReduceTile - 1) / kReduceTile;
}
template <class Real>
void launch_reduce(const Real* sums, const Shape& shape, int constants, double* partial, Real* result,
                   Stream stream) {
  const int64_t rows = constants * shape.channels, tiles = reduce_tiles(shape);
  in_launches(rows * tiles, limits().x, [&](int64_t first, int64_t blocks) {
    launch(stream, sum_tiles_kernel<Real>, blocks, kReduceThreads, 0, sums, shape, tiles, first, partial);
  });
  in_launches(rows, limits().x, [&](int64_t first, int64_t blocks) {
    launch(stream, sum_partials_kernel<Real>, blocks, kReduceThreads, 0, static_cast<const double*>(partial),
           tiles, first, result);
  });
}

}  // namespace attsnn
