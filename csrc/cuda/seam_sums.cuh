// Pass A's sums, where the neurons' backward pass writes the gradient that they are of: of tiles, in an order
// that only the shape decides, without atomics; a second kernel adds the tiles. Torch-free, and run on the
// host by tests/cpp. Bytes: p, read again, and up, written.
#pragma once
#include "cuda/fold_kernel.cuh"

namespace attsnn {

// The neurons of a block, of one sample. Pixels innermost: a warp takes 32 vectors of neighbouring pixels of
// a channel, the block as many channels as it has warps. Channels innermost: kAcross vectors of neighbouring
// channels lie side by side, at as many pixels as its threads then have.
template <class Io, int kV>
struct SumTiles {
  static constexpr int kBytes = 64;  // side by side
  static constexpr int kAcross = kBytes / (kV * int(sizeof(Io)));
  int channels, pixels;  // of a tile
  int64_t channel_tiles, pixel_tiles;

  ATTSNN_INLINE SumTiles(const Maps& maps, int threads)
      : channels(maps.channels_last ? kAcross * kV : threads / 32),
        pixels(maps.channels_last ? threads / kAcross : 32 * kV),
        channel_tiles((maps.channels + channels - 1) / channels),
        pixel_tiles((maps.pixels() + pixels - 1) / pixels) {}
  ATTSNN_INLINE int64_t blocks(const Maps& maps) const { return maps.samples * channel_tiles * pixel_tiles; }
};

// The sink on the device, with room for the sums of the tiles.
template <class Io, class Real>
struct SummingSink : SeamSink<Io, Real> {
  Real* by_plane;                // [pixel tiles, 2, T, N, C]
  Real* by_pixel;                // [channel tiles, N, pixels]; null: there is no SA
  const Scratch<Real>* scratch;  // on the host: what makes the room
  int64_t first_block;           // of the launch
};

// Where a thread is in its block's tile.
template <class Io, int kV>
struct TilePlace {
  using Tiles = SumTiles<Io, kV>;
  int64_t n, c, pixel, channel_tile, pixel_tile;
  int count;

  ATTSNN_DEVICE TilePlace(const Maps& maps, int64_t first_block) {
    const Tiles tiles(maps, int(blockDim.x));
    const bool last = maps.channels_last;
    const int thread = int(threadIdx.x);
    int64_t& inner = last ? channel_tile : pixel_tile;
    int64_t& outer = last ? pixel_tile : channel_tile;
    n = divide(divide(first_block + blockIdx.x, last ? tiles.channel_tiles : tiles.pixel_tiles, inner),
               last ? tiles.pixel_tiles : tiles.channel_tiles, outer);
    c = channel_tile * tiles.channels + (last ? thread % Tiles::kAcross * kV : thread / 32);
    pixel = pixel_tile * tiles.pixels + (last ? thread / Tiles::kAcross : thread % 32 * kV);
    const int64_t left = last ? (pixel < maps.pixels() ? maps.channels - c : 0)
                              : (c < maps.channels ? maps.pixels() - pixel : 0);
    count = left < 0 ? 0 : left < kV ? int(left) : kV;
    if (count == 0) c = pixel = 0;  // a place to read from
  }
  ATTSNN_INLINE Slot slot(const Maps& maps) const { return {maps.at(n, c, pixel), count}; }
};

// Sums kN values over the lanes of a warp that are kApart, 2 kApart, ... apart. Every stage halves the values
// that a lane goes on with, and the lanes share them in the end: a lane has values[0 .. kLeft), of which the
// first was values[first]; `owner`: no other lane has the same.
template <class Real, int kN, int kApart>
struct SharedSums {
  static constexpr int kLanes = 32 / kApart, kLeft = kN > kLanes ? kN / kLanes : 1;
  int first = 0;
  bool owner = true;

  ATTSNN_DEVICE SharedSums(Real (&values)[kN], int lane) { halve<kN, 16>(values, lane); }

 private:
  template <int kMany, int kDelta>
  ATTSNN_DEVICE void halve(Real (&values)[kN], int lane) {
    const bool upper = (lane & kDelta) != 0;
    constexpr int kHalf = kMany / 2;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const Real theirs = upper ? values[i] : values[i + kHalf], mine = upper ? values[i + kHalf] : values[i];
      values[i] = mine + __shfl_xor_sync(~0u, theirs, kDelta);
    }
    if constexpr (kMany == 1) {
      values[0] += __shfl_xor_sync(~0u, values[0], kDelta);
      owner = owner && !upper;
    }
    first += upper ? kHalf : 0;
    if constexpr (kDelta > kApart) halve<(kMany > 1 ? kHalf : 1), kDelta / 2>(values, lane);
  }
};

template <class Io, class Real, int kVector>
struct SinkRows<SummingSink<Io, Real>, kVector> {
  static constexpr int kBlocks = 1;  // left to choose, the compiler spills
  static constexpr bool kTogether = true;
  static constexpr int kAcross = SumTiles<Io, kVector>::kAcross, kMostWarps = kForwardThreads / 32;
  struct Raw {
    Pack<Io, kVector> grad_membrane, p;
  };
  const SummingSink<Io, Real>& sink;
  TilePlace<Io, kVector> place;
  Real spatial[kVector], by_pixel[kVector];

  ATTSNN_DEVICE static Slot slot(const SummingSink<Io, Real>& sink, const Shape&) {
    return TilePlace<Io, kVector>(sink.maps, sink.first_block).slot(sink.maps);
  }
  template <class L>
  ATTSNN_DEVICE SinkRows(const SummingSink<Io, Real>& to, const L&)
      : sink(to), place(to.maps, to.first_block) {
    const bool last = sink.maps.channels_last;
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      const int64_t at = place.n * sink.maps.pixels() + place.pixel + (last || j >= place.count ? 0 : j);
      spatial[j] = sink.spatial == nullptr ? Real(1) : sink.spatial[at];
      by_pixel[j] = 0;
    }
  }

  template <class L>
  ATTSNN_DEVICE Raw load(int64_t t, const L& lanes) const {
    Raw raw{};
    raw.p = attsnn::load<kVector>(sink.p[t] + lanes.first, lanes.count, lanes.whole);
    if (sink.grad_membrane.data != nullptr)
      raw.grad_membrane =
          attsnn::load<kVector>(sink.grad_membrane[t] + lanes.first, lanes.count, lanes.whole);
    return raw;
  }
  ATTSNN_DEVICE Io value(const Raw& raw, int j, Real grad_x) const {
    return Io(sink.grad_membrane.data != nullptr ? grad_x + Real(raw.grad_membrane[j]) : grad_x);
  }

  template <class L>
  ATTSNN_DEVICE void store(int64_t t, const L& lanes, const Raw& raw, const Pack<Io, kVector>& up) {
    if (sink.up.data != nullptr)
      attsnn::store<kVector>(sink.up[t] + lanes.first, up, lanes.count, lanes.whole);
    const int64_t affine = sink.affine.at(t, place.n) + place.c;
    Real a[kVector], b[kVector], centre[kVector]{};
    of_channels(sink.affine.a + affine, a);
    of_channels(sink.affine.b + affine, b);
    if (sink.centre != nullptr) of_channels(sink.centre + place.c, centre);
    Real sums[2 * kVector]{};
#pragma unroll
    for (int j = 0; j < kVector; ++j)
      if (j < place.count) {
        const Real p = Real(raw.p[j]), gated = a[j] * p + b[j];
        const Real passed = through(gated, sink.floor, Real(up[j]));
        by_pixel[j] += passed * gated;
        sums[2 * j] = passed * spatial[j];
        sums[2 * j + 1] = passed * spatial[j] * (p - centre[j]);
      }
    sink.maps.channels_last ? join_channels(t, sums) : join_pixels(t, sums);
  }

  template <class L>
  ATTSNN_DEVICE void finish(const L&) {
    if (sink.by_pixel == nullptr) return;
    Real* to = sink.by_pixel + (place.channel_tile * sink.maps.samples + place.n) * sink.maps.pixels();
    if (sink.maps.channels_last) {
      Real sum = 0;
#pragma unroll
      for (int j = 0; j < kVector; ++j) sum += by_pixel[j];
#pragma unroll
      for (int delta = kAcross / 2; delta > 0; delta /= 2) sum += __shfl_xor_sync(~0u, sum, delta);
      if (threadIdx.x % kAcross == 0 && place.count > 0) to[place.pixel] = sum;
      return;
    }
    __shared__ Real of_warp[kMostWarps][32 * kVector];
#pragma unroll
    for (int j = 0; j < kVector; ++j) of_warp[threadIdx.x / 32][threadIdx.x % 32 * kVector + j] = by_pixel[j];
    __syncthreads();
    for (int i = int(threadIdx.x); i < 32 * kVector; i += int(blockDim.x)) {
      const int64_t pixel = place.pixel_tile * 32 * kVector + i;
      if (pixel >= sink.maps.pixels()) break;
      Real sum = of_warp[0][i];
      for (int warp = 1; warp < int(blockDim.x / 32); ++warp) sum += of_warp[warp][i];
      to[pixel] = sum;
    }
  }

 private:
  // Of a number a channel: that of each neuron.
  ATTSNN_DEVICE void of_channels(const Real* from, Real* to) const {
    if (sink.maps.channels_last && place.count == kVector) return load_cached<kVector>(from, to);
#pragma unroll
    for (int j = 0; j < kVector; ++j) to[j] = from[sink.maps.channels_last && j < place.count ? j : 0];
  }

  ATTSNN_DEVICE Real* plane(int64_t t, int which, int64_t c) const {
    const Maps& maps = sink.maps;
    return sink.by_plane +
           (((place.pixel_tile * 2 + which) * maps.steps + t) * maps.samples + place.n) * maps.channels + c;
  }

  // A warp has one plane.
  ATTSNN_DEVICE void join_pixels(int64_t t, const Real (&sums)[2 * kVector]) const {
    Real both[2]{};
#pragma unroll
    for (int j = 0; j < 2 * kVector; ++j) both[j % 2] += sums[j];
    const SharedSums<Real, 2, 1> shared(both, int(threadIdx.x % 32));
    const int64_t c = place.channel_tile * (blockDim.x / 32) + threadIdx.x / 32;
    if (shared.owner && c < sink.maps.channels) *plane(t, shared.first, c) = both[0];
  }

  // Every warp has all channels of the tile, at other pixels. Two buffers: whoever writes the next step's
  // sums has passed the barrier behind which the last step's were read.
  ATTSNN_DEVICE void join_channels(int64_t t, Real (&sums)[2 * kVector]) const {
    constexpr int kAll = 2 * kVector * kAcross;
    __shared__ Real of_warp[2][kMostWarps][kAll];
    auto& mine = of_warp[t % 2];
    const int lane = int(threadIdx.x % 32);
    const SharedSums<Real, 2 * kVector, kAcross> shared(sums, lane);
    if (shared.owner)
#pragma unroll
      for (int i = 0; i < shared.kLeft; ++i)
        mine[threadIdx.x / 32][lane % kAcross * 2 * kVector + shared.first + i] = sums[i];
    __syncthreads();
    const int i = int(threadIdx.x);
    const int64_t c = place.channel_tile * kAcross * kVector + i / 2;
    if (i >= kAll || c >= sink.maps.channels) return;
    Real sum = mine[0][i];
    for (int warp = 1; warp < int(blockDim.x / 32); ++warp) sum += mine[warp][i];
    *plane(t, i % 2, c) = sum;
  }
};

// The sums of the tiles [tiles, size] -> to [size].
template <class Real, class To>
__global__ void __launch_bounds__(kFoldThreads)
    add_tiles_kernel(const Real* of_tile, int64_t tiles, int64_t size, To* to) {
  const int64_t i = int64_t(blockIdx.x) * kFoldThreads + threadIdx.x;
  if (i >= size) return;
  double sum = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) sum += double(of_tile[tile * size + i]);
  to[i] = To(sum);
}

}  // namespace attsnn
