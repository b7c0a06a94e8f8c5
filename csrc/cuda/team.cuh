// The threads of a CUDA block as the team of core/channels.h: sums in an order that only the lengths decide,
// without atomics. All threads of the block call together.
#pragma once
#include "cuda/fold_kernel.cuh"

namespace attsnn {

inline constexpr int kTeamThreads = 512, kTeamWarps = kTeamThreads / 32;

struct Block {
  template <class F>
  ATTSNN_DEVICE void each(int64_t count, const F& f) const {
    for (int64_t i = threadIdx.x; i < count; i += kTeamThreads) f(i);
    __syncthreads();
  }

  // A warp a row.
  template <class Term, class Finish>
  ATTSNN_DEVICE void rows(int64_t count, int64_t length, const Term& term, const Finish& finish) const {
    const int lane = int(threadIdx.x % 32);
    for (int64_t row = threadIdx.x / 32; row < count; row += kTeamWarps) {
      decltype(term(row, row)) sum = 0;
      for (int64_t i = lane; i < length; i += 32) sum += term(row, i);
#pragma unroll
      for (int delta = 16; delta > 0; delta /= 2) sum += __shfl_xor_sync(~0u, sum, delta);
      if (lane == 0) finish(row, sum);
    }
    __syncthreads();
  }

  // A lane a column, whose terms the warps share.
  template <class Term, class Finish>
  ATTSNN_DEVICE void columns(int64_t length, int64_t count, const Term& term, const Finish& finish) const {
    using Sum = decltype(term(length, count));
    __shared__ Sum of_warp[kTeamWarps][32];
    const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
    for (int64_t first = 0; first < count; first += 32) {
      const int64_t column = first + lane;
      Sum sum = 0;
      if (column < count)
#pragma unroll 4
        for (int64_t i = warp; i < length; i += kTeamWarps) sum += term(i, column);
      of_warp[warp][lane] = sum;
      __syncthreads();
      if (warp == 0 && column < count) {
        for (int other = 1; other < kTeamWarps; ++other) sum += of_warp[other][lane];
        finish(column, sum);
      }
      __syncthreads();
    }
  }

  // A warp a row.
  template <class Value, class Finish>
  ATTSNN_DEVICE void peaks(int64_t count, int64_t length, const Value& value, const Finish& finish) const {
    using Real = decltype(value(count, length));
    const int lane = int(threadIdx.x % 32);
    for (int64_t row = threadIdx.x / 32; row < count; row += kTeamWarps) {
      Extremum<Real> most = no_extremum<Real>();
      for (int64_t i = lane; i < length; i += 32) most.meet(value(row, i), int32_t(i));
#pragma unroll
      for (int delta = 16; delta > 0; delta /= 2) {
        const Extremum<Real> other = shuffle_down(most, delta);
        most.meet(other.value, other.place);
      }
      if (lane == 0) finish(row, most);
    }
    __syncthreads();
  }

  // All threads look at all targets, each keeps to its own: no atomics, one order.
  template <class Target, class F>
  ATTSNN_DEVICE void scatter(int64_t count, const Target& target, const F& f) const {
    for (int64_t i = 0; i < count; ++i)
      if (uint32_t(target(i)) % kTeamThreads == threadIdx.x) f(i);
    __syncthreads();
  }
};

}  // namespace attsnn
