// The surrogates whose slope is more than arithmetic, which a loop does not vectorise around:
// kCallsAFunction.
#pragma once
#include <cmath>

#include "host_device.h"

namespace attsnn {

inline constexpr double kPi = 3.14159265358979323846;

template <class Real>
struct Sigmoid {
  static constexpr const char* kName = "sigmoid";
  static constexpr bool kCallsAFunction = true;
  Real k, height;
  Sigmoid(double steepness, double tall) : k(Real(steepness)), height(Real(tall)) {}
  ATTSNN_INLINE Real slope(Real z) const {
    const Real e = std::exp(-std::fabs(k * z)), one = 1 + e;  // of |z|: never overflows
    return k * height * (e / (one * one));
  }
  ATTSNN_INLINE Real value(Real z) const { return height / (1 + std::exp(-k * z)); }
};

template <class Real>
struct Erf {
  static constexpr const char* kName = "erf";
  static constexpr bool kCallsAFunction = true;
  Real k, peak, height;
  Erf(double steepness, double tall)
      : k(Real(steepness)), peak(Real(steepness / std::sqrt(kPi)) * Real(tall)), height(Real(tall)) {}
  ATTSNN_INLINE Real slope(Real z) const {
    const Real u = k * z;
    return peak * std::exp(-(u * u));
  }
  ATTSNN_INLINE Real value(Real z) const { return height * (Real(0.5) * std::erfc(-k * z)); }
};

template <class Real>
struct PiecewiseExp {
  static constexpr const char* kName = "piecewise_exp";
  static constexpr bool kCallsAFunction = true;
  Real k, peak, height;
  PiecewiseExp(double steepness, double tall)
      : k(Real(steepness)), peak(Real(steepness / 2) * Real(tall)), height(Real(tall)) {}
  // Not of -|k z|, where ptxas spills registers.
  ATTSNN_INLINE Real slope(Real z) const { return peak * std::exp(std::fmin(k * z, -k * z)); }
  ATTSNN_INLINE Real value(Real z) const {
    const Real half = Real(0.5) * std::exp(-std::fabs(k * z));
    return height * (z < 0 ? half : 1 - half);
  }
};

}  // namespace attsnn
