// What a seam does to rows: loops that vectorise, in the state's type. A row may cross planes (or pixels,
// where channels are innermost); it is walked in pieces over which one of the two is constant.
#pragma once
#include <algorithm>
#include <type_traits>

#include "core/seam_call.h"
#include "cpu/isa.h"

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

// f(length) with the lengths of the smallest planes, 2 x 2 and 4 x 4, known to the compiler: a loop's start
// and end take longer there than its values.
template <class F>
ATTSNN_INLINE void with_length(int64_t length, const F& f) {
  if (length == 4)
    f(std::integral_constant<int64_t, 4>{});
  else if (length == 16)
    f(std::integral_constant<int64_t, 16>{});
  else
    f(length);
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

// x of one step.
template <class Real, bool kLast, bool kSpatial, bool kShortcut>
ATTSNN_INLINE void source_row(SeamRow<Real> row, const Real* __restrict p, const Real* __restrict shortcut,
                              Real* __restrict x) {
  const Real one = 1;
  over_pieces<kLast>(
      row.maps, row.first, row.count, [&](int64_t n, int64_t c, int64_t pixel, int64_t j, int64_t length) {
        const int64_t at = row.affine.at(row.t, n) + c;
        const Along<Real, kLast> a(row.affine.a + at), b(row.affine.b + at);
        const Along<Real, kSpatial && !kLast> gate(kSpatial ? row.spatial + n * row.maps.pixels() + pixel
                                                            : &one);
        with_length(length, [&](auto size) {
#pragma GCC ivdep
          for (int64_t i = 0; i < size; ++i) {
            Real value = rectified(a[i] * p[j + i] + b[i], row.floor);
            if constexpr (kSpatial) value = gate[i] * value;
            x[j + i] = kShortcut ? value + shortcut[j + i] : value;
          }
        });
      });
}

// The lanes of a sum over a row: a fixed tree, whatever the instruction set. They stay an array, whose loop
// is not unrolled: so it vectorises, and each lane waits for itself alone.
inline constexpr int kLanes = 32;
template <class T>
struct Lanes {
  T of[kLanes] = {};
  ATTSNN_INLINE double total() {
    for (int half = kLanes / 2; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) of[l] += of[l + half];
    return of[0];
  }
};
// f(i, lane) for i < count.
template <class F>
ATTSNN_INLINE void in_lanes(int64_t count, const F& f) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
#pragma GCC ivdep
#pragma GCC unroll 1
    for (int l = 0; l < kLanes; ++l) f(i + l, l);
  const int rest = int(count - i);
#pragma GCC ivdep
#pragma GCC unroll 1
  for (int l = 0; l < rest; ++l) f(i + l, l);
}
// Of fewer values than lanes: one after the other, or, of a number that the compiler knows, in four lanes.
template <class T, class Length>
ATTSNN_INLINE T sum_of_few(const T* values, Length length) {
  if constexpr (std::is_same_v<Length, int64_t>) {
    T sum = 0;
    for (int64_t i = 0; i < length; ++i) sum += values[i];
    return sum;
  } else {
    T lanes[4] = {values[0], values[1], values[2], values[3]};
    for (int64_t i = 4; i < length; i += 4)
      for (int l = 0; l < 4; ++l) lanes[l] += values[i + l];
    return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
  }
}

// The sums of one step of pass A, added to sum and centred [C] of this step and to grad_spatial [pixels].
// kFew: planes are shorter than the lanes.
template <class Real, bool kSpatial, bool kFew>
ATTSNN_INLINE void sums_of_plane(SeamRow<Real> row, int64_t length, Real a, Real b,
                                 const Real* __restrict gate, const Real* __restrict p,
                                 const Real* __restrict up, Real mean, double* sum, double* centred,
                                 double* __restrict grad_spatial) {
  const auto gated = [&](int64_t i) {
    const Real d = through(a * p[i] + b, row.floor, up[i]);
    return kSpatial ? d * gate[i] : d;
  };
  if constexpr (kFew) {
    with_length(length, [&](auto size) {
      Real plain[kLanes], against[kLanes];
#pragma GCC ivdep
      for (int64_t i = 0; i < size; ++i) {
        plain[i] = gated(i);
        against[i] = plain[i] * (p[i] - mean);
      }
      *sum += sum_of_few(plain, size);
      *centred += sum_of_few(against, size);
    });
  } else {
    Lanes<Real> plain, against;
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
    Lanes<Real> total;
    in_lanes(length, [&](int64_t i, int l) {
      const Real y = a[i] * p[i] + b[i];
      total.of[l] += through(y, row.floor, up[i]) * y;
    });
    *grad_spatial += total.total();
  }
}

template <class Real, bool kLast, bool kSpatial, bool kFew>
ATTSNN_INLINE void sums_row(SeamRow<Real> row, const Real* p, const Real* up, const Real* centre, double* sum,
                            double* centred, double* grad_spatial) {
  over_pieces<kLast>(row.maps, row.first, row.count,
                     [&](int64_t n, int64_t c, int64_t pixel, int64_t j, int64_t length) {
                       const int64_t at = row.affine.at(row.t, n) + c;
                       const Real *a = row.affine.a + at, *b = row.affine.b + at;
                       const Real* gate = kSpatial ? row.spatial + n * row.maps.pixels() + pixel : nullptr;
                       double* of_pixel = kSpatial ? grad_spatial + pixel : nullptr;
                       if constexpr (kLast)
                         sums_of_pixel<Real, kSpatial>(row, length, a, b, kSpatial ? *gate : Real(1), p + j,
                                                       up + j, centre == nullptr ? nullptr : centre + c,
                                                       sum + c, centred + c, of_pixel);
                       else
                         sums_of_plane<Real, kSpatial, kFew>(row, length, *a, *b, gate, p + j, up + j,
                                                             centre == nullptr ? Real(0) : centre[c], sum + c,
                                                             centred + c, of_pixel);
                     });
}

}  // namespace attsnn
