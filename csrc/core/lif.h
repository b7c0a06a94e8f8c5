// The LIF family: affine charge, fire, reset. One step forward, one step back; attsnn/reference/neuron.py
// says the same equation. Every operation rounds on its own (no contraction), so that spikes are equal to the
// bit everywhere. Rules enter as factors 0 or 1: a product with 1 and a sum with 0 round to nothing, and a
// step has no branch. Where a rule cuts h out of a gradient it selects instead: h may be infinite.
#pragma once
#include <limits>

#include "host_device.h"

namespace attsnn {

enum class Emit { kSpike, kMembrane, kReluMembrane, kReluOvershoot };
inline constexpr const char* kEmits[] = {"spike", "membrane", "relu_membrane", "relu_overshoot"};

template <class Real>
struct Rules {
  Real hard;     // reset to v_reset, else by subtraction of the threshold or of an amount of its own
  Real own;      // a soft reset's own amount, which then stands in the place of v_reset
  Real kept;     // the reset's spike stays in the graph
  Real centred;  // the surrogate is centred on the threshold, which then has a gradient through the spike
  bool start_at_reset;  // without a given state: as from rest, else from nothing
  Emit emit;
};

struct Lif {
  static constexpr const char* kName = "lif";
  static constexpr int kConstants = 5, kTerms = 6;

  template <class Real>
  struct Constants {
    Real leak, gain, bias, threshold, v_reset;
  };

  // The constants as a step uses them: a reset is v = (1 - hard s) h + s target.
  template <class Real>
  struct Terms {
    Real leak, gain, bias, threshold, target, centre;
  };

  template <class Real>
  static ATTSNN_INLINE Terms<Real> terms(const Constants<Real>& c, const Rules<Real>& rules, Real centre) {
    return {c.leak,
            c.gain,
            c.bias,
            c.threshold,
            rules.hard != 0  ? c.v_reset
            : rules.own != 0 ? -c.v_reset
                             : -c.threshold,
            rules.centred != 0 ? c.threshold : centre};
  }

  // The state at rest.
  template <class Real>
  static ATTSNN_INLINE Real rest(const Terms<Real>& c, const Rules<Real>& rules) {
    return rules.hard * c.target;
  }

  // `carried` is 0 in the first step of a sequence that starts from nothing, else 1.
  template <class Real>
  static ATTSNN_INLINE Real charge(const Terms<Real>& c, Real carried, Real v, Real x) {
    return carried * (c.leak * v + c.bias) + c.gain * x;
  }

  template <class Real>
  static ATTSNN_INLINE Real reset(const Terms<Real>& c, const Rules<Real>& rules, Real h, Real s) {
    return (1 - rules.hard * s) * h + s * c.target;
  }

  template <class Real>
  static ATTSNN_INLINE Real emit(const Terms<Real>& c, Emit what, Real h, Real s) {
    // NaN stays NaN. One rule in two forms, as in `back`: GCC does not vectorise around the first.
#if defined(__CUDA_ARCH__)
    const Real u = what == Emit::kReluOvershoot ? h - c.threshold : h;
    const Real rectified = u <= 0 ? Real(0) : u;
    return what == Emit::kSpike ? s : what == Emit::kMembrane ? h : rectified;
#else
    const Real floor = what == Emit::kMembrane ? -std::numeric_limits<Real>::infinity() : Real(0);
    const Real u = h - (what == Emit::kReluOvershoot ? c.threshold : Real(0));
    return what == Emit::kSpike ? s : u <= floor ? floor : u;
#endif
  }

  // Gradients of the five constants, summed over the steps of one neuron.
  template <class Real>
  using Sums = Constants<Real>;

  // One step back: the gradient of h from those of what was emitted and of the state after the reset, `slope`
  // = ds/dh.
  template <class Real>
  static ATTSNN_INLINE Real back(const Terms<Real>& c, const Rules<Real>& rules, Emit what, Real h, Real s,
                                 Real slope, Real grad_out, Real grad_v, Sums<Real>& sums) {
    const bool overshoot = what == Emit::kReluOvershoot;
    // One rule in two forms: GCC does not vectorise around the first, with the second ptxas spills.
#if defined(__CUDA_ARCH__)
    const Real rectified = (overshoot ? h - c.threshold : h) <= 0 ? Real(0) : grad_out;
    const Real emitted = what == Emit::kSpike ? Real(0) : what == Emit::kMembrane ? grad_out : rectified;
#else
    const bool passes = !(h - (overshoot ? c.threshold : Real(0)) <= 0) | (what == Emit::kMembrane);
    const Real emitted = what != Emit::kSpike && passes ? grad_out : Real(0);
#endif
    const Real by_reset = rules.hard != 0 ? c.target - h : c.target;  // dv/ds
    const Real grad_s =
        (what == Emit::kSpike ? grad_out : Real(0)) + (rules.kept != 0 ? grad_v * by_reset : Real(0));
    const Real through = grad_s * slope, by_target = grad_v * s;
    sums.v_reset += (rules.hard - rules.own) * by_target;
    sums.threshold -=
        rules.centred * through + (1 - rules.hard - rules.own) * by_target + (overshoot ? emitted : Real(0));
    return through + emitted + grad_v * (1 - rules.hard * s);
  }

  // Through the charge to its constants. The gradients of x and of the state before are gain and carried *
  // leak times that of h.
  template <class Real>
  static ATTSNN_INLINE void back_charge(Real carried, Real grad_h, Real v, Real x, Sums<Real>& sums) {
    sums.gain += grad_h * x;
    sums.leak += carried * (grad_h * v);
    sums.bias += carried * grad_h;
  }

  // Through the state at rest, from the gradient of that state.
  template <class Real>
  static ATTSNN_INLINE void back_rest(const Rules<Real>& rules, Real grad_v, Sums<Real>& sums) {
    sums.v_reset += rules.start_at_reset ? rules.hard * grad_v : Real(0);
  }
};

}  // namespace attsnn
