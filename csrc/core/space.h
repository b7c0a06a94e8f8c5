// SA: the convolution of the two descriptors of a pixel, and its sigmoid. A task is a sample,
// done by a team (channels.h). Maps of H W pixels lie in a frame of zeros, k / 2 wide, so that a tap of the
// kernel is a shift: q = y (W + k - 1) + x reads q + shift(tap).
#pragma once
#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace attsnn {

struct Framed {
  int64_t height, width;
  int side;  // of the kernel, odd

  ATTSNN_INLINE int64_t pixels() const { return height * width; }
  ATTSNN_INLINE int taps() const { return side * side; }
  ATTSNN_INLINE int64_t row() const { return width + side - 1; }
  // Behind the last row what the last taps of columns that are no pixels read.
  ATTSNN_INLINE int64_t size() const { return (height + side - 1) * row() + side - 1; }
  ATTSNN_INLINE int64_t positions() const { return height * row(); }
  ATTSNN_INLINE int64_t shift(int64_t tap) const { return int(tap) / side * row() + int(tap) % side; }
  ATTSNN_INLINE int64_t middle() const { return shift(taps() / 2); }

  // f(pixel, q), q the position of a pixel; nothing where q is none.
  template <class F>
  ATTSNN_INLINE void at_pixel(int64_t q, const F& f) const {
    const int64_t y = q / row(), x = q - y * row();
    if (x < width) f(y * width + x);
  }
  // What lies at i in the frame, value(pixel) or 0.
  template <class Value>
  ATTSNN_INLINE auto framed(int64_t i, const Value& value) const {
    const int64_t y = i / row() - side / 2, x = i % row() - side / 2;
    return y >= 0 && y < height && x >= 0 && x < width ? value(y * width + x) : decltype(value(i))(0);
  }
};

template <class Real>
struct SpaceForward {
  int64_t samples;
  Framed frame;
  const Real *descriptors, *kernel;  // [2, N, pixels], [2, k, k]
  Real *space, *padded;              // [N, pixels], [N, 2, size]

  template <class Team>
  ATTSNN_DEVICE void operator()(const Team& team, int64_t n) const {
    const int64_t size = frame.size();
    Real* to = padded + n * 2 * size;
    for (int which = 0; which < 2; ++which) {
      const Real* from = descriptors + (which * samples + n) * frame.pixels();
      team.each(size, [&](int64_t i) {
        to[which * size + i] = frame.framed(i, [&](int64_t pixel) { return from[pixel]; });
      });
    }
    const int taps = frame.taps();
    team.columns(
        2 * taps, frame.positions(),
        [&](int64_t tap, int64_t q) {
          const int64_t which = tap >= taps;
          return to[which * size + q + frame.shift(tap - which * taps)] * kernel[tap];
        },
        [&](int64_t q, Real sum) {
          frame.at_pixel(
              q, [&](int64_t pixel) { space[n * frame.pixels() + pixel] = 1 / (1 + std::exp(-sum)); });
        });
  }
};

}  // namespace attsnn
