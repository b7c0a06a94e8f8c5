// What a driver of projected full attention gets: raw pointers and numbers (core/pfa.h has the arithmetic).
#pragma once
#include "pfa.h"

namespace attsnn {

// Samples of x in memory: dense inside, and any distance between steps and between samples.
template <class T>
struct Places {
  T* data = nullptr;
  int64_t step = 0, sample = 0;
  ATTSNN_INLINE T* at(int64_t t, int64_t n) const { return data + t * step + n * sample; }
};

// The convolution [R, T, k, k] of the means over C, and the linear maps [R, C] and [R, T] of those over the
// pixels; biases [R], null backward.
template <class T>
struct PfaWeights {
  T *spatial, *spatial_bias, *temporal, *temporal_bias, *channel, *channel_bias;
};

// Small tensors of a sample: the means, the factors of the map S [N, R, pixels], Tm [N, T, R], Cm [N, C, R].
template <class T>
struct PfaSmall {
  T *by_pixel, *by_channel, *spatial, *temporal, *channel;
};

template <class Io, class Real>
struct PfaForward {
  PfaShape shape;
  Fusion fusion;
  Real scale;
  Places<const Io> x;
  Places<Io> y;
  PfaWeights<const Real> weights;
  PfaSmall<Real> small;
  uint8_t* bits;  // null: not kept
};

template <class Io, class Real>
struct PfaBackward {
  PfaShape shape;
  Fusion fusion;
  Real scale;
  Places<const Io> grad_y, x;  // x null where the map is additive
  PfaWeights<const Real> weights;
  PfaSmall<const Real> small;
  const uint8_t* bits;
  Places<Io> grad_x;  // null: not wanted
  PfaWeights<Real> grads;
};

}  // namespace attsnn
