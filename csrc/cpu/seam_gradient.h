// Pass C, the gradient of z: loops that vectorise, in the state's type, and what they are run on.
#pragma once
#include <algorithm>
#include <type_traits>
#include <vector>

#include "cpu/memory.h"
#include "cpu/over_tasks.h"
#include "cpu/pool.h"
#include "cpu/seam_rows.h"

namespace attsnn {

// What pass C adds at a piece; null pointers are zeros, ones for `spatial`.
template <class Real>
struct PieceGradient {
  const Real *a, *b, *spatial, *level, *point, *uniform, *at_peak;
  const int32_t *spatial_place, *place;
  int32_t here, pixel;  // t * C + c of the plane or of the first channel; the pixel, where channels move
  Real floor, factor;   // 1 / pool^2
};

// The gradient of `count` pooled values, ready to spread over their windows; kLast: channels of one pixel,
// else pixels of one plane. The at_peak of a plane is left to the caller.
template <class Real, bool kLast, bool kSpatial>
ATTSNN_INLINE void gradient_row(int64_t count, PieceGradient<Real> g, const Real* __restrict p,
                                const Real* up, Real* share) {
  const Real zero = 0, one = 1;
  const Along<Real, kLast> a(g.a), b(g.b), uniform(g.uniform);
  const Along<Real, kSpatial && !kLast> gate(kSpatial ? g.spatial : &one), level(kSpatial ? g.level : &zero),
      point(kSpatial ? g.point : &zero);
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    Real at_point = 0, at_peak = 0;
    if constexpr (kSpatial) {
      const int32_t here = kLast ? g.here + int32_t(i) : g.here;
      at_point = g.spatial_place[kLast ? 0 : i] == here ? point[i] : Real(0);
    }
    if constexpr (kLast) at_peak = g.place[i] == g.pixel ? g.at_peak[i] : Real(0);
    share[i] =
        plane_gradient(a[i], b[i], gate[i], g.floor, p[i], up[i], level[i], at_point, uniform[i], at_peak);
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

// The gradient of z of neighbouring planes without a pool; `described`: the planes' uniform, at_peak and
// place are there.
template <class Real, bool kSpatial>
ATTSNN_INLINE void gradient_planes(int64_t planes, int64_t pixels, PieceGradient<Real> g, bool described,
                                   NormGradient<Real> norm, const Real* __restrict p, const Real* up,
                                   Real* share, Real* grad) {
  for (int64_t k = 0; k < planes; ++k) {
    const int64_t at = k * pixels;
    Real* mine = norm.offset == nullptr ? grad + at : share;
    gradient_row<Real, false, kSpatial>(pixels, g, p + at, up + at, mine);
    if (*g.place >= 0) mine[*g.place] += *g.at_peak;
    if (norm.offset != nullptr)
      norm_row<Real, false>(pixels, mine, p + at, norm.offset + k, norm.slope + k, norm.centre + k,
                            grad + at);
    ++g.a, ++g.b, ++g.here;
    if (described) ++g.uniform, ++g.at_peak, ++g.place;
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
    const Real uniform = kDescribed ? g.uniform[k] : Real(0), at_peak = kDescribed ? g.at_peak[k] : Real(0);
    const int32_t here = g.here + int32_t(k), place = kDescribed ? g.place[k] : -1;
#pragma GCC unroll 16
    for (int i = 0; i < kPixels; ++i) {
      const int64_t j = k * kPixels + i;
      const Real share = plane_gradient(a, b, gate[i], g.floor, p[j], up[j], level[i],
                                        kSpatial && pointed[i] == here ? point[i] : Real(0), uniform,
                                        place == i ? at_peak : Real(0));
      grad[j] = norm_gradient(share, p[j], offset, slope, centre);
    }
  }
}

template <class Real>
inline constexpr Real kNone[1] = {0};

// The numbers of pass C at a piece: of the plane c, or, channels innermost, of all channels of one pixel.
template <class Io, class Real>
PieceGradient<Real> piece_of(const GradCall<Io, Real>& call, int64_t t, int64_t n, int64_t c, int64_t pixel,
                             const Real* zeros, const int32_t* nowhere) {
  const Maps maps = call.maps.pooled(call.pool);
  const int64_t at = call.affine.at(t, n) + c, plane = maps.plane(t, n, c);
  const int64_t of = n * maps.pixels() + pixel;
  const bool gated = call.spatial != nullptr, described = call.uniform != nullptr;
  return {call.affine.a + at,
          call.affine.b + at,
          gated ? call.spatial + of : nullptr,
          gated ? call.level + of : nullptr,
          gated ? call.point + of : nullptr,
          described ? call.uniform + plane : zeros,
          described ? call.at_peak + plane : zeros,
          gated ? call.spatial_place + of : nullptr,
          described ? call.place + plane : nowhere,
          int32_t(t * maps.channels + c),
          int32_t(pixel),
          call.floor,
          Real(1) / Real(call.pool * call.pool)};
}

// Writes a row of shares, through the norm where it has batch statistics.
template <bool kLast, class Io, class Real>
void write_gradient(const GradCall<Io, Real>& call, int64_t count, const Real* share, int64_t c,
                    const Io* z_at, Real* z_buffer, Real* buffer, Io* to) {
  const Real* result = share;
  if (call.offset != nullptr) {
    Real* direct = buffer;
    if constexpr (std::is_same_v<Io, Real>) direct = to;
    with_isa<norm_row<Real, kLast>>(count, share, as_real(z_at, count, z_buffer), call.offset + c,
                                    call.slope + c, call.centre + c, direct);
    if constexpr (std::is_same_v<Io, Real>) return;
    result = direct;
  }
  with_isa<convert_row<Real, Io>>(count, result, to);
}

template <class Io, class Real>
void gradient_of_planes(const GradCall<Io, Real>& call, int64_t t, int64_t n, int64_t c, int64_t count) {
  const Maps& maps = call.maps;
  const int64_t pixels = maps.pixels(), values = count * pixels, from = maps.at(n, c, 0);
  static const int32_t nowhere = -1;
  const auto piece = piece_of(call, t, n, c, 0, kNone<Real>, &nowhere);
  NormGradient<Real> norm{};
  if (call.offset != nullptr) norm = {call.offset + c, call.slope + c, call.centre + c};
  const Real* p = as_real(call.p[t] + from, values, scratch<Real, 0>(values));
  const Real* up = as_real(call.up[t] + from, values, scratch<Real, 1>(values));
  Real* grad = scratch<Real, 4>(values);
  if constexpr (std::is_same_v<Io, Real>) grad = call.grad_z[t] + from;
  with_flags(call.spatial != nullptr, call.uniform != nullptr, [&]<bool kSpatial, bool kDescribed>() {
    with_planes(maps, [&]<bool, int kPixels>() {
      if constexpr (kPixels > 0)
        if (call.offset != nullptr)
          return with_isa<gradient_small_planes<Real, kSpatial, kDescribed, kPixels>>(count, piece, norm, p,
                                                                                      up, grad);
      with_isa<gradient_planes<Real, kSpatial>>(count, pixels, piece, kDescribed, norm, p, up,
                                                scratch<Real, 2>(pixels), grad);
    });
  });
  if constexpr (!std::is_same_v<Io, Real>)
    with_isa<convert_row<Real, Io>>(values, static_cast<const Real*>(grad), call.grad_z[t] + from);
}

template <class Io, class Real>
void gradient_of_pooled(const GradCall<Io, Real>& call, int64_t t, int64_t n, int64_t c) {
  const Maps &maps = call.maps, p_maps = maps.pooled(call.pool);
  const int64_t pixels = p_maps.pixels(), from = p_maps.at(n, c, 0), width = maps.width;
  static const int32_t nowhere = -1;
  const auto piece = piece_of(call, t, n, c, 0, kNone<Real>, &nowhere);
  const Real* p = as_real(call.p[t] + from, pixels, scratch<Real, 0>(pixels));
  const Real* up = as_real(call.up[t] + from, pixels, scratch<Real, 1>(pixels));
  Real* share = scratch<Real, 2>(pixels);
  with_flags(call.spatial != nullptr, [&]<bool kSpatial>() {
    with_isa<gradient_row<Real, false, kSpatial>>(pixels, piece, p, up, share);
  });
  if (*piece.place >= 0) share[*piece.place] += *piece.at_peak;
  const Io* z = call.z[t] + maps.at(n, c, 0);
  Io* to = call.grad_z[t] + maps.at(n, c, 0);
  const int64_t longest = std::max(maps.pixels(), width);
  Real *z_buffer = scratch<Real, 3>(longest), *buffer = scratch<Real, 4>(longest);
  Real* wide = scratch<Real, 5>(width);
  for (int64_t y = 0; y < maps.height; ++y) {
    if (y >= p_maps.height * call.pool)
      std::fill_n(wide, width, Real(0));
    else if (y % call.pool == 0)
      with_isa<spread_row<Real, Real>>(p_maps.width, width, call.pool, piece.factor,
                                       static_cast<const Real*>(share + y / call.pool * p_maps.width), wide);
    write_gradient<false>(call, width, static_cast<const Real*>(wide), c, z + y * width, z_buffer, buffer,
                          to + y * width);
  }
}

// Channels innermost: the rows of windows at height y of one step of one sample.
template <class Io, class Real>
void gradient_of_rows(const GradCall<Io, Real>& call, int64_t t, int64_t n, int64_t y) {
  const Maps &maps = call.maps, p_maps = maps.pooled(call.pool);
  const int64_t channels = maps.channels, pool = call.pool;
  Real* reals = scratch<Real, 0>(5 * channels);
  Real *share = reals, *p_buffer = reals + channels, *up_buffer = reals + 2 * channels;
  Real *z_buffer = reals + 3 * channels, *buffer = reals + 4 * channels;
  static thread_local std::vector<Real> zeros;
  static thread_local std::vector<int32_t> nowhere;
  zeros.assign(channels, 0);
  nowhere.assign(channels, -1);
  const auto write = [&](int64_t row, int64_t column) {
    const int64_t at = maps.at(n, 0, row * maps.width + column);
    write_gradient<true>(call, channels, static_cast<const Real*>(share), 0, call.z[t] + at, z_buffer, buffer,
                         call.grad_z[t] + at);
  };
  const bool whole = y < p_maps.height;
  for (int64_t x = 0; whole && x < p_maps.width; ++x) {
    const int64_t pixel = y * p_maps.width + x, from = p_maps.at(n, 0, pixel);
    const auto piece = piece_of(call, t, n, 0, pixel, zeros.data(), nowhere.data());
    const Real* p = as_real(call.p[t] + from, channels, p_buffer);
    const Real* up = as_real(call.up[t] + from, channels, up_buffer);
    with_flags(call.spatial != nullptr, [&]<bool kSpatial>() {
      with_isa<gradient_row<Real, true, kSpatial>>(channels, piece, p, up, share);
    });
    if (pool > 1) with_isa<scale_row<Real>>(channels, piece.factor, share);
    for (int64_t i = 0; i < pool * pool; ++i) write(y * pool + i / pool, x * pool + i % pool);
  }
  std::fill_n(share, channels, Real(0));  // beyond the last window
  for (int64_t row = y * pool; row < std::min((y + 1) * pool, maps.height); ++row)
    for (int64_t column = whole ? p_maps.width * pool : 0; column < maps.width; ++column) write(row, column);
}

}  // namespace attsnn
