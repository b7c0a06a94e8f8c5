// Surrogate gradients: the slope that stands in for the derivative of a spike, and its primitive, the soft
// spike. z is the distance of the membrane from the slope's centre. The formulas are those of
// attsnn/reference/surrogate.py. kCallsAFunction, where a struct has it: the slope is more than arithmetic.
#pragma once
#include <cmath>

#include "host_device.h"
#include "list.h"

namespace attsnn {

inline constexpr double kPi = 3.14159265358979323846;

template <class Real>
struct Rectangular {
  static constexpr const char* kName = "rectangular";
  Real half_width, height;
  explicit Rectangular(double a) : half_width(Real(a)), height(Real(1 / (2 * a))) {}
  ATTSNN_INLINE bool inside(Real z) const { return z < half_width && z > -half_width; }
  ATTSNN_INLINE Real slope(Real z) const { return inside(z) ? height : Real(0); }
  ATTSNN_INLINE Real value(Real z) const {
    const Real u = (z + half_width) / (2 * half_width);
    return u < 0 ? Real(0) : u > 1 ? Real(1) : u;
  }
};

template <class Real>
struct Arctan {
  static constexpr const char* kName = "arctan";
  Real half, inner;
  explicit Arctan(double k) : half(Real(k / 2)), inner(Real(kPi / 2 * k)) {}
  ATTSNN_INLINE Real slope(Real z) const {
    const Real u = inner * z;
    return half / (1 + u * u);
  }
  ATTSNN_INLINE Real value(Real z) const { return std::atan(inner * z) / Real(kPi) + Real(0.5); }
};

template <class Real>
struct Sigmoid {
  static constexpr const char* kName = "sigmoid";
  static constexpr bool kCallsAFunction = true;
  Real k;
  explicit Sigmoid(double steepness) : k(Real(steepness)) {}
  ATTSNN_INLINE Real slope(Real z) const {
    const Real e = std::exp(-std::fabs(k * z)), one = 1 + e;  // of |z|: never overflows
    return k * (e / (one * one));
  }
  ATTSNN_INLINE Real value(Real z) const { return 1 / (1 + std::exp(-k * z)); }
};

template <class Real>
struct Triangle {
  static constexpr const char* kName = "triangle";
  Real half_width;
  explicit Triangle(double a) : half_width(Real(a)) {}
  ATTSNN_INLINE Real height(Real z) const {
    const Real u = 1 - std::fabs(z) / half_width;
    return u <= 0 ? Real(0) : u;  // NaN stays NaN
  }
  ATTSNN_INLINE Real slope(Real z) const { return height(z) / half_width; }
  ATTSNN_INLINE Real value(Real z) const {
    const Real u = height(z), area = Real(0.5) * u * u;
    return z < 0 ? area : 1 - area;
  }
};

template <class Real>
struct FastSigmoid {
  static constexpr const char* kName = "fast_sigmoid";
  Real k;
  explicit FastSigmoid(double steepness) : k(Real(steepness)) {}
  ATTSNN_INLINE Real slope(Real z) const {
    const Real u = 1 + k * std::fabs(z);
    return 1 / (u * u);
  }
  ATTSNN_INLINE Real value(Real z) const { return z / (1 + k * std::fabs(z)) + Real(0.5); }
};

template <class Real>
struct Erf {
  static constexpr const char* kName = "erf";
  static constexpr bool kCallsAFunction = true;
  Real k, height;
  explicit Erf(double steepness) : k(Real(steepness)), height(Real(steepness / std::sqrt(kPi))) {}
  ATTSNN_INLINE Real slope(Real z) const {
    const Real u = k * z;
    return height * std::exp(-(u * u));
  }
  ATTSNN_INLINE Real value(Real z) const { return Real(0.5) * std::erfc(-k * z); }
};

// The list of surrogates, in the order of attsnn/reference/surrogate.py; a test compares the two.
template <class Real>
using Surrogates =
    List<Rectangular<Real>, Arctan<Real>, Sigmoid<Real>, Triangle<Real>, FastSigmoid<Real>, Erf<Real>>;

}  // namespace attsnn
