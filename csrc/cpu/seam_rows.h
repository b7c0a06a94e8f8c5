// What a seam does to rows: loops that vectorise, in the state's type. A row may cross planes (or pixels,
// where channels are innermost); it is walked in pieces over which one of the two is constant.
#pragma once
#include <algorithm>
#include <type_traits>

#include "core/seam_call.h"
#include "cpu/isa.h"
#include "cpu/partials.h"
#include "cpu/tiles.h"

namespace attsnn {

// f(n, c, pixel, j, length): `length` values from place j of the row on, of one plane and neighbouring
// pixels, or, kLast, of one pixel and neighbouring channels. `first` is the row's place in the memory of a
// step.
template <bool kLast, class F>
ATTSNN_INLINE void over_pieces(const Maps& maps, int64_t first, int64_t count, const F& f) {
  const int64_t inner = kLast ? maps.channels : maps.pixels(), outer = kLast ? maps.pixels() : maps.channels;
  int64_t in = first % inner, out = first / inner % outer, n = first / (inner * outer);
  for (int64_t j = 0; j < count;) {
    const int64_t length = std::min(inner - in, count - j);
    f(n, kLast ? in : out, kLast ? out : in, j, length);
    j += length;
    in = 0;
    if (++out == outer) out = 0, ++n;
  }
}

// f.operator()<kLast, kPixels>(), kPixels of planes of the smallest sizes, 2 x 2, 4 x 4 and, where that is
// the largest, 8 x 8, whose loops' start and end would take longer than their values; else 0.
template <int kLargest = 16, class F>
ATTSNN_INLINE void with_planes(const Maps& maps, const F& f) {
  if (maps.channels_last)
    f.template operator()<true, 0>();
  else if (maps.pixels() == 4)
    f.template operator()<false, 4>();
  else if (maps.pixels() == 16)
    f.template operator()<false, 16>();
  else if (kLargest >= 64 && maps.pixels() == 64)
    f.template operator()<false, kLargest>();
  else
    f.template operator()<false, 0>();
}

// f.operator()<flags...>() for run-time flags.
template <class F>
void with_flags(bool a, const F& f) {
  a ? f.template operator()<true>() : f.template operator()<false>();
}
template <class F>
void with_flags(bool a, bool b, const F& f) {
  with_flags(a, [&]<bool kA>() { with_flags(b, [&]<bool kB>() { f.template operator()<kA, kB>(); }); });
}

// A value of each plane or of each pixel along a piece: moves with the index, or stands.
template <class Real, bool kMoves>
struct Along {
  const Real* values;
  Real constant;
  ATTSNN_INLINE explicit Along(const Real* at) : values(at), constant(*at) {}
  ATTSNN_INLINE Real operator[](int64_t i) const { return kMoves ? values[i] : constant; }
};

template <class Real>
struct SeamRow {
  Maps maps;
  int64_t t, first, count;
  Affine<Real> affine;
  const Real* spatial;
  Real floor;
};

// Where the whole planes of a row, which is of one sample, begin: f(n, c).
template <int kPixels, class Real, class F>
ATTSNN_INLINE void at_first_plane(const SeamRow<Real>& row, const F& f) {
  f(row.first / row.maps.sample_size(), row.first / kPixels % row.maps.channels);
}

// x of one step. kPixels: of planes that a row holds whole, where it is known; else 0.
template <class Real, bool kLast, bool kSpatial, bool kShortcut, int kPixels>
ATTSNN_INLINE void source_row(SeamRow<Real> row, const Real* __restrict p, const Real* __restrict shortcut,
                              Real* __restrict x) {
  const auto set = [&](int64_t i, Real a, Real b, Real gate) ATTSNN_INLINED {
    Real value = rectified(a * p[i] + b, row.floor);
    if constexpr (kSpatial) value = gate * value;
    x[i] = kShortcut ? value + shortcut[i] : value;
  };
  const Real one = 1;
  if constexpr (kPixels > 0) {
    at_first_plane<kPixels>(row, [&](int64_t n, int64_t c) ATTSNN_INLINED {
      const int64_t at = row.affine.at(row.t, n) + c;
      const Real *a = row.affine.a + at, *b = row.affine.b + at;
      const Real* gate = kSpatial ? row.spatial + n * kPixels : nullptr;
      const auto plane = [&](int64_t k) ATTSNN_INLINED {
#pragma GCC ivdep
#pragma GCC unroll 1
        for (int i = 0; i < kPixels; ++i) set(k * kPixels + i, a[k], b[k], kSpatial ? gate[i] : one);
      };
      for (int64_t k = 0; k < row.count / kPixels; ++k) plane(k);
    });
  } else {
    over_pieces<kLast>(row.maps, row.first, row.count,
                       [&](int64_t n, int64_t c, int64_t pixel, int64_t j, int64_t length) ATTSNN_INLINED {
                         const int64_t at = row.affine.at(row.t, n) + c;
                         const Along<Real, kLast> a(row.affine.a + at), b(row.affine.b + at);
                         const Along<Real, kSpatial && !kLast> gate(
                             kSpatial ? row.spatial + n * row.maps.pixels() + pixel : &one);
#pragma GCC ivdep
                         for (int64_t i = 0; i < length; ++i) set(j + i, a[i], b[i], gate[i]);
                       });
  }
}

// The sums of one step of pass A, added to sum and centred [C] of this step and to grad_spatial [pixels].
template <class Real, bool kSpatial>
ATTSNN_INLINE void sums_of_plane(SeamRow<Real> row, int64_t length, Real a, Real b,
                                 const Real* __restrict gate, const Real* __restrict p,
                                 const Real* __restrict up, Real mean, double* sum, double* centred,
                                 double* __restrict grad_spatial) {
  const auto gated = [&](int64_t i) {
    const Real d = through(a * p[i] + b, row.floor, up[i]);
    return kSpatial ? d * gate[i] : d;
  };
  if (length < kLanes) {
    Real few = 0, few_against = 0;
    for (int64_t i = 0; i < length; ++i) {
      const Real value = gated(i);
      few += value;
      few_against += value * (p[i] - mean);
    }
    *sum += few;
    *centred += few_against;
  } else {
    Partials<Real> plain, against;
    in_lanes(length, [&](int64_t i, int l) {
      const Real value = gated(i);
      plain.of[l] += value;
      against.of[l] += value * (p[i] - mean);
    });
    *sum += plain.total();
    *centred += against.total();
  }
  if constexpr (kSpatial)
#pragma GCC ivdep
    for (int64_t i = 0; i < length; ++i) {
      const Real y = a * p[i] + b;
      grad_spatial[i] += through(y, row.floor, up[i]) * y;
    }
}

// The same for whole neighbouring planes of a size that the compiler knows: here a lane is a plane, or, for
// grad_spatial, a pixel of one in several planes.
template <class Real, bool kSpatial, int kPixels>
ATTSNN_INLINE void sums_of_small_planes(int64_t planes, Real floor, const Real* __restrict a,
                                        const Real* __restrict b, const Real* __restrict gate,
                                        const Real* __restrict p, const Real* __restrict up,
                                        const Real* __restrict centre, double* __restrict sum,
                                        double* __restrict centred, double* __restrict grad_spatial) {
  alignas(64) Real by_value[kSpatial ? kTile : 1];
#pragma GCC ivdep
  for (int64_t k = 0; k < planes; ++k) {
    const Real mean = centre == nullptr ? Real(0) : centre[k];
    Real plain[4] = {}, against[4] = {};
#pragma GCC unroll 16
    for (int i = 0; i < kPixels; ++i) {
      const int64_t j = k * kPixels + i;
      const Real y = a[k] * p[j] + b[k], d = through(y, floor, up[j]), value = kSpatial ? d * gate[i] : d;
      plain[i % 4] += value;
      against[i % 4] += value * (p[j] - mean);
      if constexpr (kSpatial) by_value[j] = d * y;
    }
    sum[k] += (plain[0] + plain[2]) + (plain[1] + plain[3]);
    centred[k] += (against[0] + against[2]) + (against[1] + against[3]);
  }
  if constexpr (kSpatial) {
    static_assert(kLanes % kPixels == 0);
    Partials<double> lanes;
    in_lanes(planes * kPixels, [&](int64_t j, int l) { lanes.of[l] += by_value[j]; });
    for (int half = kLanes / 2; half >= kPixels; half /= 2)
      for (int l = 0; l < half; ++l) lanes.of[l] += lanes.of[l + half];
    for (int i = 0; i < kPixels; ++i) grad_spatial[i] += lanes.of[i];
  }
}

// The same for neighbouring channels of a pixel.
template <class Real, bool kSpatial>
ATTSNN_INLINE void sums_of_pixel(SeamRow<Real> row, int64_t length, const Real* __restrict a,
                                 const Real* __restrict b, Real gate, const Real* __restrict p,
                                 const Real* __restrict up, const Real* __restrict mean,
                                 double* __restrict sum, double* __restrict centred, double* grad_spatial) {
#pragma GCC ivdep
  for (int64_t i = 0; i < length; ++i) {
    const Real d = through(a[i] * p[i] + b[i], row.floor, up[i]), gated = kSpatial ? d * gate : d;
    sum[i] += gated;
    centred[i] += gated * (p[i] - (mean == nullptr ? Real(0) : mean[i]));
  }
  if constexpr (kSpatial) {
    Partials<Real> total;
    in_lanes(length, [&](int64_t i, int l) {
      const Real y = a[i] * p[i] + b[i];
      total.of[l] += through(y, row.floor, up[i]) * y;
    });
    *grad_spatial += total.total();
  }
}

// kPixels: of planes that a row holds whole, where it is known; else 0.
template <class Real, bool kLast, bool kSpatial, int kPixels>
ATTSNN_INLINE void sums_row(SeamRow<Real> row, const Real* p, const Real* up, const Real* centre, double* sum,
                            double* centred, double* grad_spatial) {
  const auto piece = [&](int64_t n, int64_t c, int64_t pixel, int64_t j, int64_t length) ATTSNN_INLINED {
    const int64_t at = row.affine.at(row.t, n) + c;
    const Real *a = row.affine.a + at, *b = row.affine.b + at;
    const Real* gate = kSpatial ? row.spatial + n * row.maps.pixels() + pixel : nullptr;
    double* of_pixel = kSpatial ? grad_spatial + pixel : nullptr;
    const Real* mean = centre == nullptr ? nullptr : centre + c;
    if constexpr (kPixels > 0)
      sums_of_small_planes<Real, kSpatial, kPixels>(length / kPixels, row.floor, a, b, gate, p + j, up + j,
                                                    mean, sum + c, centred + c, of_pixel);
    else if constexpr (kLast)
      sums_of_pixel<Real, kSpatial>(row, length, a, b, kSpatial ? *gate : Real(1), p + j, up + j, mean,
                                    sum + c, centred + c, of_pixel);
    else
      sums_of_plane<Real, kSpatial>(row, length, *a, *b, gate, p + j, up + j,
                                    mean == nullptr ? Real(0) : *mean, sum + c, centred + c, of_pixel);
  };
  if constexpr (kPixels > 0)
    at_first_plane<kPixels>(row, [&](int64_t n, int64_t c) ATTSNN_INLINED { piece(n, c, 0, 0, row.count); });
  else
    over_pieces<kLast>(row.maps, row.first, row.count, piece);
}

}  // namespace attsnn
