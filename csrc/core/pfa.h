// Projected full attention (Deng et al., 2024; the algebra is told in csrc/README.md): x weighed value by
// value by a map of rank R,
//   A[t, i, j] = scale * sum over r of step[t, r] * row[i, r] * column[r, j].
// A sample at a step is I rows of J values side by side. Where x lies plane by plane the rows are channels
// and the columns pixels; channels-last it is the reverse, and the loops are the same.
#pragma once
#include <cmath>

#include "seam.h"

namespace attsnn {

inline constexpr int kMaxRank = 64;
inline constexpr int kRowsPerByte = 8;  // of the bits that an additive map keeps

enum class Fusion { kMultiply, kAdd, kResidual };

// a * b + c, rounded once: PFA is compared by its error, where the neurons are by their bits.
template <class Real>
ATTSNN_INLINE Real multiply_add(Real a, Real b, Real c) {
  return std::fma(a, b, c);
}

// y from the map's value and x. For scalars, and for vectors of them.
template <class Value>
ATTSNN_INLINE Value weigh(Fusion fusion, Value a, Value x) {
  if (fusion == Fusion::kResidual) return x + a * x;
  return rectified(fusion == Fusion::kMultiply ? a * x : a + x, Value{});
}

// What y hands to the map, and past it to x, where the map is not additive: A is positive, so relu(A x) lets
// through what is positive in x. An additive map hands on the gradient itself, where a bit says so.
template <class Value>
ATTSNN_INLINE Value to_map(Fusion fusion, Value grad, Value x) {
  return fusion == Fusion::kMultiply ? through(x, Value{}, grad * x) : grad * x;
}
template <class Value>
ATTSNN_INLINE Value to_x(Fusion fusion, Value grad, Value a, Value x) {
  return fusion == Fusion::kMultiply ? through(x, Value{}, grad * a) : grad + grad * a;
}

// Rows of one sample at all steps, and how an additive map's bits lie: [N, groups of rows, J], a row a bit.
struct PfaShape {
  Maps maps;
  int64_t rank, side;  // R, and that of the convolution's kernel: 1 or 3

  ATTSNN_INLINE int64_t rows() const { return maps.channels_last ? maps.pixels() : maps.channels; }
  ATTSNN_INLINE int64_t columns() const { return maps.channels_last ? maps.channels : maps.pixels(); }
  ATTSNN_INLINE int64_t groups() const {
    return (maps.steps * rows() + kRowsPerByte - 1) / kRowsPerByte;  // of a sample
  }
  ATTSNN_INLINE int64_t bytes_of_bits() const { return maps.samples * groups() * columns(); }
  ATTSNN_INLINE int64_t taps() const { return side * side; }
  // Of the means over C, [N, T, pixels], and over the pixels, [N, T, C].
  ATTSNN_INLINE int64_t by_pixel() const { return maps.samples * maps.steps * maps.pixels(); }
  ATTSNN_INLINE int64_t by_channel() const { return maps.samples * maps.steps * maps.channels; }
};

}  // namespace attsnn
