// Integer spikes (I-LIF; Luo et al., SpikeYOLO, 2024): as many as the membrane holds thresholds, rounded half
// to even, at most so many. A way to fire, and the slope that goes with it: 1 / threshold where u is from 0
// to `levels`, u being h / threshold. What is emitted may be divided by the levels. The formulas are those of
// attsnn/reference/neuron.py.
#pragma once
#include "host_device.h"

namespace attsnn {

// Half to even, of less than 2^22: the sum has no room for a fraction. std::rint is a call without SSE 4.1.
template <class Real>
ATTSNN_INLINE Real nearest(Real value) {
  constexpr Real kShift = sizeof(Real) == sizeof(double) ? Real(6755399441055744.0) : Real(12582912.0);
  return (value + kShift) - kShift;
}

template <class Real>
struct Levels {
  Real levels;
  Real portion;  // what divides the emitted: levels, or 1
  ATTSNN_INLINE Real slope(Real u) const { return (u >= 0) & (u <= levels) ? Real(1) : Real(0); }
  // NaN does not fire.
  ATTSNN_INLINE Real value(Real u) const { return u > 0 ? (u < levels ? u : levels) : Real(0); }
};

template <class Real>
struct LevelFire {
  Levels<Real> surrogate;
  template <class Terms>
  ATTSNN_INLINE Real operator()(Real h, const Terms& terms) const {
    return nearest(surrogate.value(h / terms.threshold));
  }
  static constexpr bool whole() { return true; }  // not so of the soft spike
};

// The slope of any surrogate, and its primitive, at h.
template <class Surrogate, class Real, class Terms>
ATTSNN_INLINE Real slope_at(const Surrogate& surrogate, Real h, const Terms& terms) {
  if constexpr (requires { surrogate.portion; })
    return surrogate.slope(h / terms.threshold) / terms.threshold;
  else
    return surrogate.slope(h - terms.centre);
}
template <class Surrogate, class Real, class Terms>
ATTSNN_INLINE Real value_at(const Surrogate& surrogate, Real h, const Terms& terms) {
  if constexpr (requires { surrogate.portion; })
    return surrogate.value(h / terms.threshold);
  else
    return surrogate.value(h - terms.centre);
}

// What is emitted of a spike, and so the gradient of a spike from that of what was emitted.
template <class Fire, class Real>
ATTSNN_INLINE Real emitted(const Fire& fire, Real s) {
  if constexpr (requires { fire.surrogate.portion; })
    return s / fire.surrogate.portion;
  else
    return s;
}

}  // namespace attsnn
