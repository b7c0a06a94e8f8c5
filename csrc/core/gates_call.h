// What TA and CA work on: the gates of all samples, and the planes of p.
#pragma once
#include <cstdint>

#include "host_device.h"

namespace attsnn {

// D values a sample, T or C; R is the width of the MLP. Everything [N, ...]; `which` is 0 for the mean, 1 for
// the maximum.
template <class Real>
struct Gate {
  int64_t samples = 0, size = 0, width = 0;
  const Real *reduce = nullptr, *expand = nullptr;             // [R, D], [D, R]; null: there is no such gate
  Real *gate = nullptr, *inputs = nullptr, *hidden = nullptr;  // [N, D], descriptors [2, N, D], [2, N, R]
  int32_t* place = nullptr;                                    // [N, D]: where the maxima are
  // gradients: of what the sigmoid reads [N, D], of what the ReLU reads, of the descriptors, of the weights
  Real *by_sum = nullptr, *by_hidden = nullptr, *by_inputs = nullptr;
  Real *by_reduce = nullptr, *by_expand = nullptr;

  ATTSNN_INLINE bool there() const { return reduce != nullptr; }
  ATTSNN_INLINE Real* of(Real* all, int which, int64_t n) const { return all + (which * samples + n) * size; }
  ATTSNN_INLINE Real* within(Real* all, int which, int64_t n) const {
    return all + (which * samples + n) * width;
  }
};

// mean and peak: of the planes of p, [T, N, C].
template <class Real>
struct Gates {
  int64_t steps, samples, channels;
  const double* mean;
  const Real* peak;
  Gate<Real> time, channel;
  ATTSNN_INLINE int64_t planes() const { return steps * samples * channels; }
  ATTSNN_INLINE int64_t at(int64_t t, int64_t n, int64_t c) const { return (t * samples + n) * channels + c; }
};

}  // namespace attsnn
