// What a norm makes of a seam's small tensors, by channel: the statistics of planes become those of channels
// and these A and B before the gates, and the way back. Planes are [rows, C], rows = T N.
// A work is a functor of a task's number. Where it sums, a team does the task: a CPU thread (cpu/team.h), or
// the threads of a CUDA block (cuda/team.cuh).
#pragma once
#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace attsnn {

inline constexpr int64_t kChannelTile = 32;  // channels of a task

struct ChannelTiles {
  int64_t rows, channels;
  ATTSNN_INLINE int64_t count() const { return (channels + kChannelTile - 1) / kChannelTile; }
  ATTSNN_INLINE int64_t first(int64_t tile) const { return tile * kChannelTile; }
  ATTSNN_INLINE int64_t size(int64_t tile) const {
    const int64_t left = channels - first(tile);
    return left < kChannelTile ? left : kChannelTile;
  }
};

// Mean and centred second moment of planes of so many pixels -> totals [1 + 2 C]: the number of values, and
// by channel the mean and the centred second moment of all. A task is a tile.
struct Totals {
  ChannelTiles tiles;
  double pixels;
  const double *mean, *moment;
  double* totals;

  template <class Team>
  ATTSNN_DEVICE void operator()(const Team& team, int64_t tile) const {
    const int64_t first = tiles.first(tile), size = tiles.size(tile), rows = tiles.rows;
    double *own = totals + 1 + first, *square = own + tiles.channels;
    const auto at = [&](int64_t row, int64_t k) { return row * tiles.channels + first + k; };
    if (tile == 0) team.each(1, [&](int64_t) { totals[0] = double(rows) * pixels; });
    team.columns(
        rows, size, [&](int64_t row, int64_t k) { return mean[at(row, k)]; },
        [&](int64_t k, double sum) { own[k] = rows > 0 ? sum / double(rows) : 0; });
    team.columns(
        rows, size,
        [&](int64_t row, int64_t k) {
          const double apart = mean[at(row, k)] - own[k];
          return moment[at(row, k)] + pixels * (apart * apart);
        },
        [&](int64_t k, double sum) { square[k] = sum; });
  }
};

// The numbers of a norm, [4, C]: 1 / sigma, the mean as the maps' passes have it, gamma, beta; where there is
// no norm those that change nothing.
template <class T>
struct NormNumbers {
  T *inverse, *centre, *gamma, *beta;
  NormNumbers() = default;
  ATTSNN_INLINE NormNumbers(T* from, int64_t channels)
      : inverse(from), centre(from + channels), gamma(from + 2 * channels), beta(from + 3 * channels) {}
};

// Statistics, gamma and beta -> A, B, numbers. A task is a channel.
template <class Real>
struct NormAffine {
  int64_t repeats;
  double eps;
  const double *count = nullptr, *mean = nullptr, *var = nullptr;  // count: var is the moment of so many
  const Real *weight = nullptr, *bias = nullptr;                   // null: 1 and 0; mean null: no norm
  Real *a, *b, *centre, *unbiased;
  NormNumbers<double> numbers;

  ATTSNN_INLINE void operator()(int64_t c) const {
    const double values = count == nullptr ? 1 : *count, shown = values * double(repeats);
    const double middle = mean == nullptr ? 0 : mean[c], biased = mean == nullptr ? 1 : var[c] / values;
    const double inverse = mean == nullptr ? 1 : 1 / std::sqrt(biased + eps);
    const double gamma = weight == nullptr ? 1 : double(weight[c]),
                 beta = bias == nullptr ? 0 : double(bias[c]);
    a[c] = Real(gamma * inverse);
    b[c] = Real(beta - gamma * inverse * middle);
    centre[c] = Real(middle);
    unbiased[c] = Real(biased * (shown / (shown - 1)));
    numbers.inverse[c] = inverse;
    numbers.centre[c] = double(centre[c]);
    numbers.gamma[c] = gamma;
    numbers.beta[c] = beta;
  }
};

}  // namespace attsnn
