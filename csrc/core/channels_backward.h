// The way back of channels.h: what the sums by plane say of gamma and beta, and of the batch's statistics.
#pragma once
#include "channels.h"

namespace attsnn {

// The sums of planes against 1 and against p - mean, [2, rows, C] -> the gradients of beta and gamma, [2, C],
// and again in their own type. A task is a tile of one of the two.
template <class Real>
struct NormSums {
  ChannelTiles tiles;
  const double* sums;
  NormNumbers<const double> numbers;
  double* result;
  Real *beta, *gamma;

  template <class Team>
  ATTSNN_DEVICE void operator()(const Team& team, int64_t task) const {
    const int64_t which = task / tiles.count(), tile = task % tiles.count(), first = tiles.first(tile);
    const double* from = sums + which * tiles.rows * tiles.channels + first;
    team.columns(
        tiles.rows, tiles.size(tile), [&](int64_t row, int64_t k) { return from[row * tiles.channels + k]; },
        [&](int64_t k, double sum) {
          const int64_t c = first + k;
          const double gradient = which == 0 ? sum : numbers.inverse[c] * sum;
          result[which * tiles.channels + c] = gradient;
          (which == 0 ? beta : gamma)[c] = Real(gradient);
        });
  }
};

// What the batch's statistics hand back to z, from those gradients over all `count` values: the offset, slope
// and centre of norm_gradient, [3, C]. A task is a channel.
template <class Real>
struct BatchGradient {
  int64_t channels;
  const double *sums, *count;
  NormNumbers<const double> numbers;
  Real* result;

  ATTSNN_INLINE void operator()(int64_t c) const {
    const double inverse = numbers.inverse[c], scale = numbers.gamma[c] * inverse / *count;
    result[c] = Real(scale * sums[c]);
    result[channels + c] = Real(inverse * (scale * sums[channels + c]));
    result[2 * channels + c] = Real(numbers.centre[c]);
  }
};

}  // namespace attsnn
