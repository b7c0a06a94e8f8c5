// SA backward: from its gradient to what it hands to its descriptors, and these to the planes.
#pragma once
#include "channels.h"
#include "seam.h"
#include "space.h"

namespace attsnn {

// From the gradient of SA to what pass C reads (the gate, the gradients of what each pixel's mean hands to
// every value and of its maximum, [3, N, pixels]), the sum over all pixels of the former, and the kernel's
// gradient by sample.
template <class Real>
struct SpaceBackward {
  int64_t samples, averaged;  // averaged: values in a mean, T C
  Framed frame;
  const Real *grad, *space, *padded, *kernel;
  Real *framed, *spatial;     // framed: room for [N, size]
  double *total, *by_kernel;  // [N], [N, 2, k, k]

  template <class Team>
  ATTSNN_DEVICE void operator()(const Team& team, int64_t n) const {
    const int64_t size = frame.size(), pixels = frame.pixels(), first = n * pixels;
    Real *g = framed + n * size, *level = spatial + samples * pixels + first;
    team.each(size, [&](int64_t i) {
      g[i] = frame.framed(i, [&](int64_t pixel) {
        const Real gate = space[first + pixel];
        return grad[first + pixel] * gate * (1 - gate);
      });
    });
    team.each(pixels, [&](int64_t pixel) { spatial[first + pixel] = space[first + pixel]; });
    const int taps = frame.taps();
    for (int which = 0; which < 2; ++which) {
      Real* to = level + which * samples * pixels;
      const Real part = which == 0 ? Real(averaged) : Real(1);
      team.columns(
          taps, frame.positions(),
          [&](int64_t tap, int64_t q) {
            return g[q + frame.shift(tap)] * kernel[which * taps + taps - 1 - tap];
          },
          [&](int64_t q, Real sum) { frame.at_pixel(q, [&](int64_t pixel) { to[pixel] = sum / part; }); });
    }
    team.rows(
        1, pixels, [&](int64_t, int64_t pixel) { return double(level[pixel]); },
        [&](int64_t, double sum) { total[n] = sum; });
    team.rows(
        2 * taps, frame.positions(),
        [&](int64_t tap, int64_t q) {
          const int64_t which = tap >= taps;
          const Real* from = padded + (2 * n + which) * size;
          return double(from[q + frame.shift(tap - which * taps)]) * double(g[q + frame.middle()]);
        },
        [&](int64_t tap, double sum) { by_kernel[n * 2 * taps + tap] = sum; });
  }
};

// Adds to pass A's sums [2, T, N, C], against 1 and against p - mean, what SA's descriptors say: every value
// of a pixel its share of the mean's gradient (by plane `total` and `by_level`), one value of each pixel that
// of the maximum. A task is a sample.
template <class Io, class Real>
struct SpaceSums {
  Maps maps;
  Steps<const Io> p;
  const Real* point;  // [N, pixels], and where that value is, t * C + c
  const int32_t* place;
  const double *total, *by_level;
  NormNumbers<const double> norm;
  double* sums;

  template <class Team>
  ATTSNN_DEVICE void operator()(const Team& team, int64_t n) const {
    const int64_t channels = maps.channels, planes = maps.planes(), first = n * maps.pixels();
    for (int64_t t = 0; t < maps.steps; ++t)
      team.each(channels, [&](int64_t c) {
        const int64_t i = maps.plane(t, n, c);
        sums[i] += total[n];
        sums[planes + i] += by_level[i];
      });
    team.scatter(
        maps.pixels(), [&](int64_t pixel) { return place[first + pixel]; },
        [&](int64_t pixel) {
          const int64_t t = place[first + pixel] / channels, c = place[first + pixel] % channels;
          const int64_t i = maps.plane(t, n, c);
          const double value = double(point[first + pixel]), at = double(Real(p[t][maps.at(n, c, pixel)]));
          sums[i] += value;
          sums[planes + i] += value * (at - norm.centre[c]);
        });
  }
};

}  // namespace attsnn
