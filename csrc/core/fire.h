// How a membrane becomes a spike.
#pragma once
#include "host_device.h"
#include "levels.h"

namespace attsnn {

// A step: 1 above the threshold, and on it unless the comparison is strict. NaN does not fire.
template <class Real, bool kStrict>
struct StepFire {
  template <class Terms>
  ATTSNN_INLINE Real operator()(Real h, const Terms& terms) const {
    const Real distance = h - terms.threshold;
    return (kStrict ? distance > 0 : distance >= 0) ? Real(1) : Real(0);
  }
};

// The same, chosen at run time.
template <class Real>
struct HardFire {
  bool strict;
  template <class Terms>
  ATTSNN_INLINE Real operator()(Real h, const Terms& terms) const {
    return strict ? StepFire<Real, true>{}(h, terms) : StepFire<Real, false>{}(h, terms);
  }
};

// The surrogate's primitive: a differentiable spike, whose gradients can be checked by finite differences.
template <class Real, class Surrogate>
struct SoftFire {
  Surrogate surrogate;
  template <class Terms>
  ATTSNN_INLINE Real operator()(Real h, const Terms& terms) const {
    return value_at(surrogate, h, terms);
  }
};

}  // namespace attsnn
