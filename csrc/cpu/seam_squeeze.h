// SA's descriptors, on the way there, and pass B, on the way back: loops that vectorise, in the state's type,
// and what they are run on.
#pragma once
#include <algorithm>
#include <limits>

#include "cpu/memory.h"
#include "cpu/over_tasks.h"
#include "cpu/seam_rows.h"

namespace attsnn {

inline constexpr int64_t kDescribed = 256;  // pixels that SA's descriptors are taken of together

// A p + B of `count` values, added to `sum` and met by `best`; places come in rising order. kMoves: A and B
// differ by value.
template <class Real, bool kMoves>
ATTSNN_INLINE void squeeze_row(int64_t count, const Real* __restrict p, const Real* a_at, const Real* b_at,
                               int32_t there, Real* __restrict sum, Real* __restrict best,
                               int32_t* __restrict place) {
  const Along<Real, kMoves> a(a_at), b(b_at);
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const Real y = a[i] * p[i] + b[i];
    sum[i] += y;
    const bool beats = outdoes(y, best[i]);
    best[i] = beats ? y : best[i];
    place[i] = beats ? there : place[i];
  }
}

// The same for one step of neighbouring whole planes of a size that the compiler knows, `there` being the
// place of the first and `sum`, `best` and `place` those of its pixels: here a lane is a pixel of every so
// many planes.
template <class Real, int kPixels>
ATTSNN_INLINE void squeeze_small_planes(int64_t planes, const Real* __restrict p, const Real* __restrict a,
                                        const Real* __restrict b, int32_t there, Real* __restrict sum,
                                        Real* __restrict best, int32_t* __restrict place) {
  static_assert(kLanes % kPixels == 0);
  constexpr int kPlanes = kLanes / kPixels;
  alignas(64) Real y[kTile];
  Partials<Real> sums;
  Real most[kLanes];
  int32_t block[kLanes] = {};
  std::fill_n(most, kLanes, -std::numeric_limits<Real>::infinity());
  for (int64_t first = 0; first < planes; first += kTile / kPixels) {
    const int64_t count = std::min(planes - first, kTile / kPixels);
#pragma GCC ivdep
    for (int64_t k = 0; k < count; ++k)
#pragma GCC unroll 16
      for (int i = 0; i < kPixels; ++i)
        y[k * kPixels + i] = a[first + k] * p[(first + k) * kPixels + i] + b[first + k];
    in_lanes(count * kPixels, [&](int64_t j, int l) {
      sums.of[l] += y[j];
      const bool beats = outdoes(y[j], most[l]);
      most[l] = beats ? y[j] : most[l];
      block[l] = beats ? int32_t((first * kPixels + j) / kLanes) : block[l];
    });
  }
  for (int l = 0; l < kLanes && l < planes * kPixels; ++l) {
    Extremum<Real> found{best[l % kPixels], place[l % kPixels]};
    found.meet(most[l], there + block[l] * kPlanes + l / kPixels);
    sum[l % kPixels] += sums.of[l];
    best[l % kPixels] = found.value;
    place[l % kPixels] = found.place;
  }
}

// The sums of neighbouring planes; centre null: 0.
template <class Real>
ATTSNN_INLINE void project_planes(int64_t planes, int64_t pixels, const Real* __restrict p,
                                  const Real* __restrict weight, const Real* centre, double* sum) {
  for (int64_t k = 0; k < planes; ++k) {
    const Real middle = centre == nullptr ? Real(0) : centre[k];
    const Real* plane = p + k * pixels;
    const auto term = [&](int64_t i) { return weight[i] * (plane[i] - middle); };
    Real few = 0;
    Partials<Real> lanes;
    if (pixels < kLanes)
      for (int64_t i = 0; i < pixels; ++i) few += term(i);
    else
      in_lanes(pixels, [&](int64_t i, int l) { lanes.of[l] += term(i); });
    sum[k] = pixels < kLanes ? double(few) : lanes.total();
  }
}

// The same for planes of a size that the compiler knows: here a lane is a plane.
template <class Real, int kPixels>
ATTSNN_INLINE void project_small_planes(int64_t planes, const Real* __restrict p,
                                        const Real* __restrict weight, const Real* __restrict centre,
                                        double* __restrict sum) {
  Real by_pixel[kPixels];
  std::copy_n(weight, kPixels, by_pixel);
#pragma GCC ivdep
  for (int64_t k = 0; k < planes; ++k) {
    const Real middle = centre == nullptr ? Real(0) : centre[k];
    Real parts[4] = {};
#pragma GCC unroll 16
    for (int i = 0; i < kPixels; ++i) parts[i % 4] += by_pixel[i] * (p[k * kPixels + i] - middle);
    sum[k] = (parts[0] + parts[2]) + (parts[1] + parts[3]);
  }
}

// One pixel's part of the sums of every channel.
template <class Real>
ATTSNN_INLINE void project_pixel(int64_t channels, const Real* __restrict p, Real weight,
                                 const Real* __restrict centre, double* __restrict sum) {
#pragma GCC ivdep
  for (int64_t c = 0; c < channels; ++c)
    sum[c] += weight * (p[c] - (centre == nullptr ? Real(0) : centre[c]));
}

// SA's descriptors of neighbouring pixels of one sample.
template <class Io, class Real>
void squeeze_pixels(const SqueezeCall<Io, Real>& call, int64_t n, int64_t first, int64_t count) {
  const Maps& maps = call.maps;
  const int64_t channels = maps.channels, at = n * maps.pixels() + first;
  constexpr Real kLowest = -std::numeric_limits<Real>::infinity();
  if (!maps.channels_last) {
    Real *total = call.mean + at, *best = call.extremum + at;
    int32_t* place = call.place + at;
    alignas(64) Real sum[kDescribed], buffer[kDescribed];
    std::fill_n(total, count, Real(0));
    std::fill_n(best, count, kLowest);
    std::fill_n(place, count, 0);
    for (int64_t t = 0; t < maps.steps; ++t) {
      std::fill_n(sum, count, Real(0));
      const Real *a = call.affine.a + call.affine.at(t, n), *b = call.affine.b + call.affine.at(t, n);
      const int32_t there = int32_t(t * channels);
      with_planes(maps, [&]<bool, int kSize>() {
        if constexpr (kSize > 0) {
          const int64_t values = channels * kSize;
          const Real* p = as_real(call.p[t] + maps.at(n, 0, 0), values, scratch<Real, 0>(values));
          with_isa<squeeze_small_planes<Real, kSize>>(channels, p, a, b, there, &sum[0], best, place);
        } else {
          for (int64_t c = 0; c < channels; ++c) {
            const Real* p = as_real(call.p[t] + maps.at(n, c, first), count, buffer);
            with_isa<squeeze_row<Real, false>>(count, p, a + c, b + c, there + int32_t(c), &sum[0], best,
                                               place);
          }
        }
      });
      for (int64_t i = 0; i < count; ++i) total[i] += sum[i];
    }
    for (int64_t i = 0; i < count; ++i) total[i] /= Real(maps.steps * channels);
    return;
  }
  Real* reals = scratch<Real, 3>(3 * channels);
  Real *sum = reals, *best = reals + channels, *buffer = reals + 2 * channels;
  int32_t* when = scratch<int32_t, 0>(channels);
  for (int64_t i = 0; i < count; ++i) {
    std::fill_n(sum, channels, Real(0));
    std::fill_n(best, channels, kLowest);
    std::fill_n(when, channels, 0);
    for (int64_t t = 0; t < maps.steps; ++t) {
      const Real* p = as_real(call.p[t] + maps.at(n, 0, first + i), channels, buffer);
      const int64_t of = call.affine.at(t, n);
      with_isa<squeeze_row<Real, true>>(channels, p, call.affine.a + of, call.affine.b + of, int32_t(t), sum,
                                        best, when);
    }
    double total = 0;
    Extremum<Real> most{best[0], int32_t(when[0] * channels)};
    for (int64_t c = 0; c < channels; ++c) {
      total += sum[c];
      most.meet(best[c], int32_t(when[c] * channels + c));
    }
    call.mean[at + i] = Real(total / double(maps.steps * channels));
    call.extremum[at + i] = most.value;
    call.place[at + i] = most.place;
  }
}

template <class Io, class Real>
void project_sample(const ProjectCall<Io, Real>& call, int64_t t, int64_t n) {
  const Maps& maps = call.maps;
  const int64_t channels = maps.channels, pixels = maps.pixels();
  double* sum = call.sum + maps.plane(t, n, 0);
  const Real* weight = call.weight + n * pixels;
  if (maps.channels_last) {
    std::fill_n(sum, channels, 0.0);
    Real* buffer = scratch<Real, 0>(channels);
    for (int64_t pixel = 0; pixel < pixels; ++pixel)
      with_isa<project_pixel<Real>>(channels, as_real(call.p[t] + maps.at(n, 0, pixel), channels, buffer),
                                    weight[pixel], call.centre, sum);
    return;
  }
  const Real* p =
      as_real(call.p[t] + maps.at(n, 0, 0), channels * pixels, scratch<Real, 0>(channels * pixels));
  with_planes(maps, [&]<bool, int kSize>() {
    if constexpr (kSize > 0)
      with_isa<project_small_planes<Real, kSize>>(channels, p, weight, call.centre, sum);
    else
      with_isa<project_planes<Real>>(channels, pixels, p, weight, call.centre, sum);
  });
}

}  // namespace attsnn
