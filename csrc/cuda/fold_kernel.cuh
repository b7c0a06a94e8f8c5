// Sums over the pixels of every plane, and over the (t, c) of every pixel: each in one read, in an order that
// only the shape decides, without atomics and without scratch. A fold says what is loaded, how it joins a
// state and where the state goes; the two layouts share it. Torch-free, and run on the host by tests/cpp.
#pragma once
#include "core/seam_call.h"
#include "cuda/seam_rows.cuh"

namespace attsnn {

inline constexpr int kFoldThreads = 256, kFoldWarps = kFoldThreads / 32;
inline constexpr int kFoldChannels = 32;  // of a block, channels-last
inline constexpr int32_t kNowhere = INT32_MAX;

// The vectors of a fold are always whole: kV divides what is innermost, and rows are aligned, or kV is 1.
template <int kV, class Io>
ATTSNN_INLINE Pack<Io, kV> load_whole(const Io* from) {
  return load_streaming(reinterpret_cast<const Pack<Io, kV>*>(from));
}

// The states of the lane `delta` further up. The host-run tests move them whole: a word each time takes
// minutes.
template <class State, int kStates>
struct Bundle {
  State states[kStates];
};
template <class T>
__device__ T shuffle_down(const T& value, int delta) {
#if defined(__CUDACC__)
  static_assert(sizeof(T) % sizeof(uint64_t) == 0);
  uint64_t words[sizeof(T) / sizeof(uint64_t)];
  memcpy(words, &value, sizeof(T));
#pragma unroll
  for (uint64_t& word : words) word = __shfl_down_sync(~0u, word, delta);
  T other;
  memcpy(&other, words, sizeof(T));
  return other;
#else
  return __shfl_down_sync(~0u, value, delta);
#endif
}

// Merges the states of a warp's lanes that are kLast, 2 kLast, ... apart into those of its first kLast lanes.
template <int kLast, class Fold, int kStates>
__device__ void merge_warp(const Fold& fold, Bundle<typename Fold::State, kStates>& own) {
#pragma unroll
  for (int delta = 16; delta >= kLast; delta /= 2) {
    const auto other = shuffle_down(own, delta);
#pragma unroll
    for (int j = 0; j < kStates; ++j) fold.merge(own.states[j], other.states[j]);
  }
}

// A thread's items, `stride` apart: the accesses of Fold::kAhead of them are in flight together.
template <class Fold>
__device__ void visit_items(const Fold& fold, const typename Fold::Own& own, int from, int stride, int end,
                            typename Fold::State* states) {
  constexpr int kItems = Fold::kAhead;
  for (int first = from; first < end; first += kItems * stride) {
    typename Fold::Raw raw[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i)
      if (first + i * stride < end) raw[i] = fold.load(own, first + i * stride);
#pragma unroll
    for (int i = 0; i < kItems; ++i)
      if (first + i * stride < end) fold.visit(own, raw[i], first + i * stride, states);
  }
}

// The extremum of a thread, whose visits are in rising order of the place: what Extremum::meet does, in half
// the operations.
template <class Real>
ATTSNN_INLINE void meet_later(Extremum<Real>& extremum, Real other, int32_t there) {
  const bool beats =
      (!(other <= extremum.value) && extremum.value == extremum.value) || extremum.place == kNowhere;
  extremum.value = beats ? other : extremum.value;
  extremum.place = beats ? there : extremum.place;
}
template <class Real>
ATTSNN_INLINE Extremum<Real> no_extremum() {
  return {-Real(INFINITY), kNowhere};
}

// Channels within planes: `lanes` threads a plane, a warp or the block. Grid: planes, in x. `first`, here and
// below: the first block of the launch.
template <class Fold>
__global__ void __launch_bounds__(kFoldThreads)
    fold_planes_kernel(Fold fold, Maps maps, int64_t first, int lanes) {
  __shared__ typename Fold::State of_warp[kFoldWarps];
  const int64_t plane = (first + blockIdx.x) * (kFoldThreads / lanes) + threadIdx.x / lanes;
  if (plane >= maps.planes()) return;  // whole warps
  int64_t c, n;
  const int64_t t = divide(divide(plane, maps.channels, c), maps.samples, n);
  const int lane = threadIdx.x % lanes;
  Bundle<typename Fold::State, 1> own;
  fold.start(own.states[0]);
  visit_items(fold, typename Fold::Own(fold, t, n, c), lane, lanes, fold.items(), own.states);
  merge_warp<1>(fold, own);
  if (lanes > 32) {
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = own.states[0];
    __syncthreads();
    if (threadIdx.x == 0)
      for (int warp = 1; warp < kFoldWarps; ++warp) fold.merge(own.states[0], of_warp[warp]);
  }
  if (lane == 0) fold.finish(own.states[0], t, n, c);
}

// Channels innermost: a block takes kFoldChannels of them at one (t, n), a thread Fold::kStates. Grid: T * N
// * tiles of channels, in x.
template <class Fold>
__global__ void __launch_bounds__(kFoldThreads) fold_channels_kernel(Fold fold, Maps maps, int64_t first) {
  constexpr int kStates = Fold::kStates, kAcross = kFoldChannels / kStates, kLanes = kFoldThreads / kAcross;
  __shared__ typename Fold::State of_warp[kFoldWarps][kFoldChannels];
  int64_t tile, n;
  const int64_t row = divide(first + blockIdx.x, (maps.channels + kFoldChannels - 1) / kFoldChannels, tile);
  const int64_t t = divide(row, maps.samples, n);
  const int across = threadIdx.x % kAcross, lane = threadIdx.x / kAcross;
  const int64_t c0 = tile * kFoldChannels + across * kStates;
  Bundle<typename Fold::State, kStates> own;
#pragma unroll
  for (int j = 0; j < kStates; ++j) fold.start(own.states[j]);
  if (c0 < maps.channels)
    visit_items(fold, typename Fold::Own(fold, t, n, c0), lane, kLanes, fold.items(), own.states);
  merge_warp<kAcross>(fold, own);
  if (threadIdx.x % 32 < kAcross)
#pragma unroll
    for (int j = 0; j < kStates; ++j) of_warp[threadIdx.x / 32][across * kStates + j] = own.states[j];
  __syncthreads();
  const int64_t c = tile * kFoldChannels + threadIdx.x;
  if (threadIdx.x >= kFoldChannels || c >= maps.channels) return;
  typename Fold::State all = of_warp[0][threadIdx.x];
  for (int warp = 1; warp < kFoldWarps; ++warp) fold.merge(all, of_warp[warp][threadIdx.x]);
  fold.finish(all, t, n, c);
}

// A pixel, channels within planes: 32 vectors of neighbouring pixels a block, whose warps share the (t, c).
// Grid: vectors of pixels, in x.
template <class Fold>
__global__ void __launch_bounds__(kFoldThreads) fold_steps_kernel(Fold fold, Maps maps, int64_t first) {
  constexpr int kStates = Fold::kStates;
  __shared__ typename Fold::State of_warp[kFoldWarps][32 * kStates];
  const int64_t block = first + blockIdx.x, vector = block * 32 + threadIdx.x % 32;
  const int warp = threadIdx.x / 32, count = int(maps.steps * maps.channels);
  int64_t pixel;
  const int64_t n = divide(vector * kStates, maps.pixels(), pixel);
  typename Fold::State states[kStates];
#pragma unroll
  for (int j = 0; j < kStates; ++j) fold.start(states[j]);
  if (n < maps.samples)
    visit_items(fold, typename Fold::Own(fold, n, pixel), warp, kFoldWarps, count, states);
#pragma unroll
  for (int j = 0; j < kStates; ++j) of_warp[warp][threadIdx.x % 32 * kStates + j] = states[j];
  __syncthreads();
  const int64_t to = block * 32 * kStates + threadIdx.x;
  if (threadIdx.x >= 32 * kStates || to >= maps.samples * maps.pixels()) return;
  typename Fold::State all = of_warp[0][threadIdx.x];
  for (int other = 1; other < kFoldWarps; ++other) fold.merge(all, of_warp[other][threadIdx.x]);
  fold.finish(all, to);
}

// A pixel, channels innermost: a warp each. Grid: pixels, in x.
template <class Fold>
__global__ void __launch_bounds__(kFoldThreads) fold_rows_kernel(Fold fold, Maps maps, int64_t first) {
  const int64_t to = (first + blockIdx.x) * kFoldWarps + threadIdx.x / 32;
  if (to >= maps.samples * maps.pixels()) return;  // whole warps
  int64_t pixel;
  const int64_t n = divide(to, maps.pixels(), pixel);
  const int lane = threadIdx.x % 32;
  Bundle<typename Fold::State, 1> own;
  fold.start(own.states[0]);
  visit_items(fold, typename Fold::Own(fold, n, pixel), lane * Fold::kWide, 32 * Fold::kWide,
              int(maps.steps * maps.channels), own.states);
  merge_warp<1>(fold, own);
  if (lane == 0) fold.finish(own.states[0], to);
}

}  // namespace attsnn
