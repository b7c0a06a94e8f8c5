// The pass that takes statistics: moments and extrema of whole planes (pixels innermost), or of pixels
// (channels innermost). Loops that vectorise, in the state's type, and what they are run on.
#pragma once
#include <algorithm>

#include "cpu/memory.h"
#include "cpu/over_tasks.h"
#include "cpu/pool.h"
#include "cpu/seam_rows.h"

namespace attsnn {

// A plane's mean and centred second moment, about its first value: right whatever its mean.
template <class Real>
ATTSNN_INLINE void plane_moments(int64_t count, const Real* __restrict z, double* mean, double* moment) {
  const double shift = z[0];
  Partials<double> sums, squares;
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
    Partials<double> sums, squares;
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
        const bool beats = outdoes(w, best[l]);
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
    const bool beats = outdoes(w, best[c]);
    best[c] = beats ? w : best[c];
    place[c] = beats ? pixel : place[c];
  }
}

template <class Io, class Real>
void statistics_of_planes(const StatisticsCall<Io, Real>& call, int64_t t, int64_t n, int64_t c,
                          int64_t count) {
  const Maps& maps = call.maps;
  const int64_t plane = maps.plane(t, n, c), values = count * maps.pixels();
  const Real* z = as_real(call.z[t] + maps.at(n, c, 0), values, scratch<Real, 0>(values));
  with_isa<planes_statistics<Real>>(
      count, maps.pixels(), z, call.gamma == nullptr ? nullptr : call.gamma + c, call.mean + plane,
      call.moment + plane, call.extremum == nullptr ? nullptr : call.extremum + plane, call.place + plane);
  std::copy_n(call.mean + plane, count, call.pooled_mean + plane);
}

template <class Io, class Real>
void statistics_of_pooled(const StatisticsCall<Io, Real>& call, int64_t t, int64_t n, int64_t c) {
  const Maps &maps = call.maps, p_maps = maps.pooled(call.pool);
  const int64_t plane = maps.plane(t, n, c), pixels = maps.pixels();
  const Real* z = as_real(call.z[t] + maps.at(n, c, 0), pixels, scratch<Real, 0>(pixels));
  with_isa<plane_moments<Real>>(pixels, z, call.mean + plane, call.moment + plane);
  Io* to = call.pooled[t] + p_maps.at(n, c, 0);
  with_isa<pool_plane<Real, Io>>(maps, call.pool, call.z[t] + maps.at(n, c, 0), to);
  const Real* p = as_real(static_cast<const Io*>(to), p_maps.pixels(), scratch<Real, 1>(p_maps.pixels()));
  with_isa<plane_moments<Real>>(p_maps.pixels(), p, call.pooled_mean + plane, static_cast<double*>(nullptr));
  if (call.extremum == nullptr) return;
  const Real sign = call.gamma == nullptr ? Real(1) : sign_of(call.gamma[c]);
  with_isa<plane_extremum<Real>>(p_maps.pixels(), p, sign, call.extremum + plane, call.place + plane);
}

// Channels innermost: all planes of one step of one sample.
template <class Io, class Real>
void statistics_of_sample(const StatisticsCall<Io, Real>& call, int64_t at) {
  const Maps &maps = call.maps, p_maps = maps.pooled(call.pool);
  const int64_t channels = maps.channels, n = at % maps.samples, t = at / maps.samples;
  double* doubles = scratch<double, 0>(3 * channels);
  Real* reals = scratch<Real, 2>(3 * channels);
  double *shift = doubles, *sum = doubles + channels, *square = doubles + 2 * channels;
  Real *sign = reals, *best = reals + channels, *buffer = reals + 2 * channels;
  const bool wanted = call.extremum != nullptr;
  int32_t* place = wanted ? call.place + at * channels : nullptr;
  const auto moments = [&](const Steps<const Io>& from, const Maps& of, double* mean, double* moment,
                           const auto& also) {
    const Io* sample = from[t] + of.at(n, 0, 0);
    std::copy_n(sample, channels, shift);
    std::fill_n(sum, 2 * channels, 0.0);
    for (int64_t pixel = 0; pixel < of.pixels(); ++pixel) {
      const Real* values = as_real(sample + pixel * channels, channels, buffer);
      with_isa<pixel_moments<Real>>(channels, values, static_cast<const double*>(shift), sum, square);
      also(int32_t(pixel), values);
    }
    for (int64_t c = 0; c < channels; ++c) {
      mean[at * channels + c] = shift[c] + sum[c] / double(of.pixels());
      if (moment != nullptr) moment[at * channels + c] = square[c] - sum[c] * (sum[c] / double(of.pixels()));
    }
  };
  for (int64_t c = 0; wanted && c < channels; ++c) {
    const Real gamma = call.gamma == nullptr ? Real(1) : call.gamma[c];
    sign[c] = sign_of(gamma);
    place[c] = 0;
  }
  const auto meet = [&](int32_t pixel, const Real* values) {
    if (!wanted) return;
    if (pixel == 0)
      for (int64_t c = 0; c < channels; ++c) best[c] = sign[c] * values[c];
    with_isa<pixel_extrema<Real>>(channels, pixel, values, static_cast<const Real*>(sign), best, place);
  };
  if (call.pool == 1) {
    moments(call.z, maps, call.mean, call.moment, meet);
    std::copy_n(call.mean + at * channels, channels, call.pooled_mean + at * channels);
  } else {
    moments(call.z, maps, call.mean, call.moment, [](int32_t, const Real*) {});
    with_isa<pool_sample<Real, Io>>(maps, call.pool, call.z[t] + maps.at(n, 0, 0),
                                    call.pooled[t] + p_maps.at(n, 0, 0));
    moments({call.pooled.data, call.pooled.stride}, p_maps, call.pooled_mean, nullptr, meet);
  }
  const Steps<const Io> p = call.pool == 1 ? call.z : Steps<const Io>{call.pooled.data, call.pooled.stride};
  for (int64_t c = 0; wanted && c < channels; ++c)
    call.extremum[at * channels + c] = Real(p[t][p_maps.at(n, c, place[c])]);
}

}  // namespace attsnn
