// The average pool: loops that vectorise, in the state's type.
#pragma once
#include <algorithm>
#include <type_traits>

#include "core/seam.h"

namespace attsnn {

// f(side) with the side of a window known to the compiler where it is the usual one: its loops then unroll.
template <class F>
ATTSNN_INLINE void with_side(int64_t pool, const F& f) {
  pool == 2 ? f(std::integral_constant<int64_t, 2>{}) : f(pool);
}

// The pooled rows of one plane.
template <class Real, class Io>
ATTSNN_INLINE void pool_plane(Maps z_maps, int64_t pool, const Io* __restrict z, Io* __restrict pooled) {
  const int64_t height = z_maps.height / pool, width = z_maps.width / pool;
  with_side(pool, [&](auto k) {
    for (int64_t y = 0; y < height; ++y)
#pragma GCC ivdep
      for (int64_t x = 0; x < width; ++x)
        pooled[y * width + x] = Io(window_mean<Real>(z + y * k * z_maps.width + x * k, k, z_maps.width, 1));
  });
}

// The pooled channels of one pixel.
template <class Real, class Io>
ATTSNN_INLINE void pool_pixel(int64_t channels, int64_t pool, int64_t width, const Io* __restrict z,
                              Io* __restrict pooled) {
#pragma GCC ivdep
  for (int64_t c = 0; c < channels; ++c)
    pooled[c] = Io(window_mean<Real>(z + c, pool, width * channels, channels));
}

// A pooled row times `factor` over the columns of its windows; columns past the last window get 0.
template <class Real, class Io>
ATTSNN_INLINE void spread_row(int64_t width, int64_t z_width, int64_t pool, Real factor,
                              const Io* __restrict row, Io* __restrict wide) {
  with_side(pool, [&](auto side) {
#pragma GCC ivdep
    for (int64_t x = 0; x < width; ++x)
      for (int64_t k = 0; k < side; ++k) wide[x * side + k] = Io(factor * Real(row[x]));
  });
  for (int64_t x = width * pool; x < z_width; ++x) wide[x] = Io(0);
}

// Rows of a width that the compiler knows, spread over the windows of side 2 that they came from.
template <class Real, int kWidth, class Io>
ATTSNN_INLINE void spread_short_rows(int64_t rows, const Io* __restrict from, Io* __restrict to) {
#pragma GCC ivdep
  for (int64_t y = 0; y < rows; ++y)
#pragma GCC unroll 8
    for (int x = 0; x < kWidth; ++x) {
      const Io value = Io(Real(0.25) * Real(from[y * kWidth + x]));
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) to[(4 * y + i / 2 * 2) * kWidth + 2 * x + i % 2] = value;
    }
}

// ---- The average pool on its own, of one step of one sample, whose maps `maps` tells.

template <class Real, class Io>
ATTSNN_INLINE void pool_sample(Maps maps, int64_t pool, const Io* x, Io* pooled) {
  const Maps small = maps.pooled(pool);
  if (!maps.channels_last) {
    for (int64_t c = 0; c < maps.channels; ++c)
      pool_plane<Real>(maps, pool, x + maps.at(0, c, 0), pooled + small.at(0, c, 0));
    return;
  }
  for (int64_t row = 0; row < small.height; ++row)
    for (int64_t column = 0; column < small.width; ++column)
      pool_pixel<Real>(maps.channels, pool, maps.width, x + maps.at(0, 0, (row * maps.width + column) * pool),
                       pooled + (row * small.width + column) * maps.channels);
}

// The gradient of x from that of the pooled map.
template <class Real, class Io>
ATTSNN_INLINE void spread_sample(Maps maps, int64_t pool, const Io* grad, Io* grad_x) {
  const Maps small = maps.pooled(pool);
  const Real factor = Real(1) / Real(pool * pool);
  if (const int64_t rows = maps.channels * small.height;
      !maps.channels_last && pool == 2 && maps.height % 2 == 0 && maps.width % 2 == 0) {
    if (small.width == 2) return spread_short_rows<Real, 2>(rows, grad, grad_x);
    if (small.width == 4) return spread_short_rows<Real, 4>(rows, grad, grad_x);
    if (small.width == 8) return spread_short_rows<Real, 8>(rows, grad, grad_x);
  }
  // A row of planes, or of pixels with all their channels; what is spread sideways is so once a window.
  const int64_t inner = maps.channels_last ? maps.channels : 1, row_size = maps.width * inner;
  for (int64_t plane = 0; plane < (maps.channels_last ? 1 : maps.channels); ++plane)
    for (int64_t y = 0; y < maps.height; ++y) {
      Io* to = grad_x + (plane * maps.height + y) * row_size;
      if (y >= small.height * pool)
        std::fill_n(to, row_size, Io(0));
      else if (y % pool != 0)
        std::copy_n(to - row_size, row_size, to);
      else if (const Io* from = grad + (plane * small.height + y / pool) * small.width * inner; inner == 1)
        spread_row<Real>(small.width, maps.width, pool, factor, from, to);
      else
        for (int64_t x = 0; x < maps.width; ++x)
#pragma GCC ivdep
          for (int64_t c = 0; c < inner; ++c)
            to[x * inner + c] =
                x < small.width * pool ? Io(factor * Real(from[x / pool * inner + c])) : Io(0);
    }
}

}  // namespace attsnn
