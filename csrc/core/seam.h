// A seam: what lies between two convolutions, from z to spikes (kernels.md 4.4 of the design; the algebra is
// told in csrc/README.md). Norm and gates are folded into one product and one sum a plane, A and B; p is z,
// or z pooled; r a shortcut:
//   x = SA * relu(A p + B) + r,   then the neuron.
// Every operation rounds on its own, in the order written here and in attsnn/reference/seam.py.
#pragma once
#include "call.h"

namespace attsnn {

// [T, N, C, H, W]; one step is dense, pixels innermost or channels.
struct Maps {
  int64_t steps, samples, channels, height, width;
  bool channels_last;

  ATTSNN_INLINE int64_t pixels() const { return height * width; }
  ATTSNN_INLINE int64_t planes() const { return steps * samples * channels; }
  ATTSNN_INLINE int64_t sample_size() const { return channels * pixels(); }
  ATTSNN_INLINE int64_t plane(int64_t t, int64_t n, int64_t c) const {
    return (t * samples + n) * channels + c;
  }
  ATTSNN_INLINE int64_t at(int64_t n, int64_t c, int64_t pixel) const {
    return channels_last ? (n * pixels() + pixel) * channels + c : (n * channels + c) * pixels() + pixel;
  }
  ATTSNN_INLINE Maps pooled(int64_t pool) const {
    return {steps, samples, channels, height / pool, width / pool, channels_last};
  }
  // Of one pixel they lie the same either way, and count as channels innermost.
  Maps laid() const { return {steps, samples, channels, height, width, channels_last || pixels() == 1}; }
};

// A and B: [T or 1, N or 1, C], a stride is 0 where one value serves all.
template <class Real>
struct Affine {
  const Real *a = nullptr, *b = nullptr;
  int64_t step = 0, sample = 0;
  ATTSNN_INLINE int64_t at(int64_t t, int64_t n) const { return t * step + n * sample; }
};

// relu where a seam has one; the identity is a floor of -infinity. NaN stays NaN, and lets a gradient
// through.
template <class Real>
ATTSNN_INLINE Real rectified(Real value, Real floor) {
  return value <= floor ? floor : value;
}
template <class Real>
ATTSNN_INLINE Real through(Real value, Real floor, Real gradient) {
  return value <= floor ? Real{} : gradient;
}

// Whether `other`, which comes later, takes the place of the largest so far: it is larger, or the first NaN.
// Without branches, so that loops over this vectorise.
template <class Real>
ATTSNN_INLINE bool outdoes(Real other, Real best) {
  return (other > best) | ((other != other) & (best == best));
}

// A maximum and where it is first: the lower place wins a tie, whatever the order of the visits; NaN wins.
template <class Real>
struct Extremum {
  Real value;
  int32_t place;
  ATTSNN_INLINE void meet(Real other, int32_t there) {
    // By `outdoes`, of which a kernel would spill, this is outdoes(other) or neither of the two and first.
    const bool nan = value != value, other_nan = other != other, first = there < place;
    const bool beats =
        (other_nan & (!nan | first)) | (!other_nan & !nan & ((other > value) | ((other == value) & first)));
    value = beats ? other : value;
    place = beats ? there : place;
  }
};

// The pooled value of the window whose first value is at `from`: its mean, summed row by row.
template <class Real, class Io>
ATTSNN_INLINE Real window_mean(const Io* from, int64_t pool, int64_t row_stride, int64_t column_stride) {
  Real sum = 0;
  for (int64_t y = 0; y < pool; ++y)
    for (int64_t x = 0; x < pool; ++x) sum += Real(from[y * row_stride + x * column_stride]);
  return sum / Real(pool * pool);
}

// The gradient of one pooled value, times gamma / sigma, before it spreads over its window: from `up`, the
// neuron's gradient of x. level and point: of SA's mean and of its maximum, where that is here; uniform and
// at_peak: of TA's and CA's mean and maximum.
template <class Real>
ATTSNN_INLINE Real plane_gradient(Real a, Real b, Real sa, Real floor, Real p, Real up, Real level,
                                  Real point, Real uniform, Real at_peak) {
  const Real gated = through(a * p + b, floor, up) * sa;
  return ((a * (gated + level) + a * point) + uniform) + at_peak;
}

// The gradient of z from its share of that, through the batch statistics.
template <class Real>
ATTSNN_INLINE Real norm_gradient(Real share, Real z, Real offset, Real slope, Real centre) {
  return (share - offset) - slope * (z - centre);
}

}  // namespace attsnn
