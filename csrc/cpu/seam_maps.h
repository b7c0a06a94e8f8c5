// What a seam does to whole planes (pixels innermost) and pixels (channels innermost): loops that vectorise,
// in the state's type.
#pragma once
#include <limits>
#include <type_traits>

#include "cpu/seam_rows.h"

namespace attsnn {

// A plane's mean and centred second moment, about its first value: right whatever its mean.
template <class Real>
ATTSNN_INLINE void plane_moments(int64_t count, const Real* __restrict z, double* mean, double* moment) {
  const double shift = z[0];
  Lanes<double> sums, squares;
  in_lanes(count, [&](int64_t i, int l) {
    const double d = double(z[i]) - shift;
    sums.of[l] += d;
    squares.of[l] += d * d;
  });
  const double sum = sums.total();
  *mean = shift + sum / double(count);
  if (moment != nullptr) *moment = squares.total() - sum * (sum / double(count));
}

// Where sign * z is largest, for the first time; NaN wins. First how large, then where: two simple loops are
// faster than one that carries both.
template <class Real>
ATTSNN_INLINE void plane_extremum(int64_t count, const Real* __restrict z, Real sign, Real* value,
                                  int32_t* place) {
  Real best[kLanes], odd[kLanes];  // odd: NaN once a lane has met one
  for (int l = 0; l < kLanes; ++l) best[l] = odd[l] = sign * z[0];
  in_lanes(count, [&](int64_t i, int l) {
    const Real w = sign * z[i];
    best[l] = w > best[l] ? w : best[l];
    odd[l] = w != w ? w : odd[l];
  });
  for (int half = kLanes / 2; half > 0; half /= 2)
#pragma GCC ivdep
#pragma GCC unroll 1
    for (int l = 0; l < half; ++l) {
      best[l] = best[l + half] > best[l] ? best[l + half] : best[l];
      odd[l] = odd[l + half] != odd[l + half] ? odd[l + half] : odd[l];
    }
  const bool met = odd[0] != odd[0];
  int64_t at = 0;
  for (int hits = 0; !met && at + kLanes <= count; at += kLanes) {  // no value alone before its block has it
#pragma GCC unroll 1
    for (int l = 0; l < kLanes; ++l) hits += sign * z[at + l] == best[0];
    if (hits > 0) break;
  }
  while (met ? sign * z[at] == sign * z[at] : sign * z[at] != best[0]) ++at;
  *value = z[at];
  *place = int32_t(at);
}

template <class Real>
ATTSNN_INLINE Real sign_of(Real gamma) {
  return Real((gamma > 0) - (gamma < 0));
}

// Of neighbouring short planes a lane is a plane, and nothing is left to be added up in it. The moments
// alone, of planes whose size the compiler knows:
template <class Real, int kPixels>
ATTSNN_INLINE void short_planes_moments(int64_t planes, const Real* __restrict z, double* __restrict mean,
                                        double* __restrict moment) {
#pragma GCC ivdep
  for (int64_t k = 0; k < planes; ++k) {
    const double shift = z[k * kPixels];
    double sum = 0, square = 0;
#pragma GCC unroll 16
    for (int i = 1; i < kPixels; ++i) {
      const double d = double(z[k * kPixels + i]) - shift;
      sum += d;
      square += d * d;
    }
    mean[k] = shift + sum / double(kPixels);
    moment[k] = square - sum * (sum / double(kPixels));
  }
}

// Moments and extrema, of planes of any size up to:
inline constexpr int64_t kShortPlane = 64;
template <class Real>
ATTSNN_INLINE void short_planes_statistics(int64_t planes, int64_t pixels, const Real* __restrict z,
                                           const Real* gamma, double* mean, double* moment, Real* extremum,
                                           int32_t* place) {
  Real turned[kShortPlane][kLanes];  // by pixel
  for (int64_t first = 0; first < planes; first += kLanes) {
    const int64_t width = std::min<int64_t>(kLanes, planes - first);
    for (int64_t k = 0; k < width; ++k)
      for (int64_t i = 0; i < pixels; ++i) turned[i][k] = z[(first + k) * pixels + i];
    Lanes<double> sums, squares;
    for (int64_t i = 1; i < pixels; ++i)
      in_lanes(width, [&](int64_t k, int l) {
        const double d = double(turned[i][k]) - double(turned[0][k]);
        sums.of[l] += d;
        squares.of[l] += d * d;
      });
    for (int64_t k = 0; k < width; ++k) {
      mean[first + k] = double(turned[0][k]) + sums.of[k] / double(pixels);
      moment[first + k] = squares.of[k] - sums.of[k] * (sums.of[k] / double(pixels));
    }
    Real sign[kLanes], best[kLanes];
    int32_t at[kLanes] = {};
    for (int64_t k = 0; k < width; ++k) {
      sign[k] = gamma == nullptr ? Real(1) : sign_of(gamma[first + k]);
      best[k] = sign[k] * turned[0][k];
    }
    for (int32_t i = 1; i < pixels; ++i)
      in_lanes(width, [&](int64_t k, int l) {
        const Real w = sign[l] * turned[i][k];
        const bool beats = (w > best[l]) | ((w != w) & (best[l] == best[l]));
        best[l] = beats ? w : best[l];
        at[l] = beats ? i : at[l];
      });
    for (int64_t k = 0; k < width; ++k) {
      extremum[first + k] = turned[at[k]][k];
      place[first + k] = at[k];
    }
  }
}

// Both of neighbouring planes; gamma null: maxima; extremum null: not wanted.
template <class Real>
ATTSNN_INLINE void planes_statistics(int64_t planes, int64_t pixels, const Real* __restrict z,
                                     const Real* gamma, double* mean, double* moment, Real* extremum,
                                     int32_t* place) {
  if (extremum != nullptr && pixels <= kShortPlane)
    return short_planes_statistics<Real>(planes, pixels, z, gamma, mean, moment, extremum, place);
  if (pixels == 4) return short_planes_moments<Real, 4>(planes, z, mean, moment);
  if (pixels == 16) return short_planes_moments<Real, 16>(planes, z, mean, moment);
  for (int64_t k = 0; k < planes; ++k) {
    plane_moments<Real>(pixels, z + k * pixels, mean + k, moment + k);
    if (extremum == nullptr) continue;
    const Real sign = gamma == nullptr ? Real(1) : sign_of(gamma[k]);
    plane_extremum<Real>(pixels, z + k * pixels, sign, extremum + k, place + k);
  }
}

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

// One pixel's part of the moments of every channel, about `shift`.
template <class Real>
ATTSNN_INLINE void pixel_moments(int64_t channels, const Real* __restrict z, const double* __restrict shift,
                                 double* __restrict sum, double* __restrict square) {
#pragma GCC ivdep
  for (int64_t c = 0; c < channels; ++c) {
    const double d = double(z[c]) - shift[c];
    sum[c] += d;
    square[c] += d * d;
  }
}

// The largest of sign * p so far, by channel; pixels come in logical order.
template <class Real>
ATTSNN_INLINE void pixel_extrema(int64_t channels, int32_t pixel, const Real* __restrict p,
                                 const Real* __restrict sign, Real* __restrict best,
                                 int32_t* __restrict place) {
#pragma GCC ivdep
  for (int64_t c = 0; c < channels; ++c) {
    const Real w = sign[c] * p[c];
    const bool beats = w > best[c] || (w != w && best[c] == best[c]);
    best[c] = beats ? w : best[c];
    place[c] = beats ? pixel : place[c];
  }
}

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
    const bool beats = y > best[i] || (y != y && best[i] == best[i]);
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
  Lanes<Real> sums;
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
      const bool beats = (y[j] > most[l]) | ((y[j] != y[j]) & (most[l] == most[l]));
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
    Lanes<Real> lanes;
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
template <class Real>
ATTSNN_INLINE void project_pixel(int64_t channels, const Real* __restrict p, Real weight,
                                 const Real* __restrict centre, double* __restrict sum) {
#pragma GCC ivdep
  for (int64_t c = 0; c < channels; ++c)
    sum[c] += weight * (p[c] - (centre == nullptr ? Real(0) : centre[c]));
}

// What pass C adds at a piece; null pointers are zeros, ones for `spatial`.
template <class Real>
struct PieceGradient {
  const Real *a, *b, *spatial, *level, *point, *uniform, *spike;
  const int32_t *spatial_place, *place;
  int32_t here, pixel;  // t * C + c of the plane or of the first channel; the pixel, where channels move
  Real floor, factor;   // 1 / pool^2
};

// The gradient of `count` pooled values, ready to spread over their windows; kLast: channels of one pixel,
// else pixels of one plane. The spike of a plane is left to the caller.
template <class Real, bool kLast, bool kSpatial>
ATTSNN_INLINE void gradient_row(int64_t count, PieceGradient<Real> g, const Real* __restrict p,
                                const Real* up, Real* share) {
  const Real zero = 0, one = 1;
  const Along<Real, kLast> a(g.a), b(g.b), uniform(g.uniform);
  const Along<Real, kSpatial && !kLast> gate(kSpatial ? g.spatial : &one), level(kSpatial ? g.level : &zero),
      point(kSpatial ? g.point : &zero);
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    Real at_point = 0, spike = 0;
    if constexpr (kSpatial) {
      const int32_t here = kLast ? g.here + int32_t(i) : g.here;
      at_point = g.spatial_place[kLast ? 0 : i] == here ? point[i] : Real(0);
    }
    if constexpr (kLast) spike = g.place[i] == g.pixel ? g.spike[i] : Real(0);
    share[i] =
        plane_gradient(a[i], b[i], gate[i], g.floor, p[i], up[i], level[i], at_point, uniform[i], spike);
  }
}

template <class Real>
ATTSNN_INLINE void scale_row(int64_t count, Real factor, Real* __restrict row) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) row[i] *= factor;
}

// Shares to the gradient of z. kLast: every channel has its own numbers, else one plane's serve all.
template <class Real, bool kLast>
ATTSNN_INLINE void norm_row(int64_t count, const Real* __restrict share, const Real* __restrict z,
                            const Real* offset_at, const Real* slope_at, const Real* centre_at,
                            Real* __restrict grad) {
  const Along<Real, kLast> offset(offset_at), slope(slope_at), centre(centre_at);
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) grad[i] = norm_gradient(share[i], z[i], offset[i], slope[i], centre[i]);
}

// What the gradient takes from the batch's statistics, by channel; null: nothing.
template <class Real>
struct NormGradient {
  const Real *offset, *slope, *centre;
};

// The gradient of z of neighbouring planes without a pool; `described`: the planes' uniform, spike and place
// are there.
template <class Real, bool kSpatial>
ATTSNN_INLINE void gradient_planes(int64_t planes, int64_t pixels, PieceGradient<Real> g, bool described,
                                   NormGradient<Real> norm, const Real* __restrict p, const Real* up,
                                   Real* share, Real* grad) {
  for (int64_t k = 0; k < planes; ++k) {
    const int64_t at = k * pixels;
    Real* mine = norm.offset == nullptr ? grad + at : share;
    gradient_row<Real, false, kSpatial>(pixels, g, p + at, up + at, mine);
    if (*g.place >= 0) mine[*g.place] += *g.spike;
    if (norm.offset != nullptr)
      norm_row<Real, false>(pixels, mine, p + at, norm.offset + k, norm.slope + k, norm.centre + k,
                            grad + at);
    ++g.a, ++g.b, ++g.here;
    if (described) ++g.uniform, ++g.spike, ++g.place;
  }
}

// The same behind batch statistics for planes of a size that the compiler knows: here a lane is a plane. What
// is chosen is read first: a loop does not vectorise around a read that may not happen.
template <class Real, bool kSpatial, bool kDescribed, int kPixels>
ATTSNN_INLINE void gradient_small_planes(int64_t planes, PieceGradient<Real> g, NormGradient<Real> norm,
                                         const Real* __restrict p, const Real* up, Real* grad) {
  Real gate[kPixels], level[kPixels], point[kPixels];
  int32_t pointed[kPixels];
  for (int i = 0; i < kPixels; ++i) {
    gate[i] = kSpatial ? g.spatial[i] : Real(1);
    level[i] = kSpatial ? g.level[i] : Real(0);
    point[i] = kSpatial ? g.point[i] : Real(0);
    pointed[i] = kSpatial ? g.spatial_place[i] : -1;
  }
#pragma GCC ivdep
  for (int64_t k = 0; k < planes; ++k) {
    const Real a = g.a[k], b = g.b[k], offset = norm.offset[k], slope = norm.slope[k],
               centre = norm.centre[k];
    const Real uniform = kDescribed ? g.uniform[k] : Real(0), spike = kDescribed ? g.spike[k] : Real(0);
    const int32_t here = g.here + int32_t(k), place = kDescribed ? g.place[k] : -1;
#pragma GCC unroll 16
    for (int i = 0; i < kPixels; ++i) {
      const int64_t j = k * kPixels + i;
      const Real share = plane_gradient(a, b, gate[i], g.floor, p[j], up[j], level[i],
                                        kSpatial && pointed[i] == here ? point[i] : Real(0), uniform,
                                        place == i ? spike : Real(0));
      grad[j] = norm_gradient(share, p[j], offset, slope, centre);
    }
  }
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
