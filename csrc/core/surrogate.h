// Surrogate gradients: the slope that stands in for the derivative of a spike, and its primitive, the soft
// spike, each times a height, which is 1 as a rule. z is the distance of the membrane from the slope's
// centre. The formulas are those of attsnn/reference/surrogate.py.
#pragma once
#include <cmath>

#include "host_device.h"
#include "list.h"
#include "surrogate_exp.h"

namespace attsnn {

template <class Real>
struct Rectangular {
  static constexpr const char* kName = "rectangular";
  Real half_width, height, area;
  Rectangular(double a, double tall)
      : half_width(Real(a)), height(Real(1 / (2 * a)) * Real(tall)), area(Real(tall)) {}
  ATTSNN_INLINE bool inside(Real z) const { return z < half_width && z > -half_width; }
  ATTSNN_INLINE Real slope(Real z) const { return inside(z) ? height : Real(0); }
  ATTSNN_INLINE Real value(Real z) const {
    const Real u = (z + half_width) / (2 * half_width);
    return area * (u < 0 ? Real(0) : u > 1 ? Real(1) : u);
  }
};

template <class Real>
struct Arctan {
  static constexpr const char* kName = "arctan";
  Real half, inner, height;
  Arctan(double k, double tall)
      : half(Real(k / 2) * Real(tall)), inner(Real(kPi / 2 * k)), height(Real(tall)) {}
  ATTSNN_INLINE Real slope(Real z) const {
    const Real u = inner * z;
    return half / (1 + u * u);
  }
  ATTSNN_INLINE Real value(Real z) const { return height * (std::atan(inner * z) / Real(kPi) + Real(0.5)); }
};

template <class Real>
struct Triangle {
  static constexpr const char* kName = "triangle";
  Real half_width, height;
  Triangle(double a, double tall) : half_width(Real(a)), height(Real(tall)) {}
  ATTSNN_INLINE Real below(Real z) const {
    const Real u = 1 - std::fabs(z) / half_width;
    return u <= 0 ? Real(0) : u;  // NaN stays NaN
  }
  ATTSNN_INLINE Real slope(Real z) const { return height * below(z) / half_width; }
  ATTSNN_INLINE Real value(Real z) const {
    const Real u = below(z), area = Real(0.5) * u * u;
    return height * (z < 0 ? area : 1 - area);
  }
};

template <class Real>
struct FastSigmoid {
  static constexpr const char* kName = "fast_sigmoid";
  Real k, height;
  FastSigmoid(double steepness, double tall) : k(Real(steepness)), height(Real(tall)) {}
  ATTSNN_INLINE Real slope(Real z) const {
    const Real u = 1 + k * std::fabs(z);
    return height / (u * u);
  }
  ATTSNN_INLINE Real value(Real z) const { return height * (z / (1 + k * std::fabs(z)) + Real(0.5)); }
};

// The list of surrogates, in the order of attsnn/reference/surrogate.py; a test compares the two.
template <class Real>
using Surrogates = List<Rectangular<Real>, Arctan<Real>, Sigmoid<Real>, Triangle<Real>, FastSigmoid<Real>,
                        Erf<Real>, PiecewiseExp<Real>>;

}  // namespace attsnn
