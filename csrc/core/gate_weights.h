// The gradients of the gates' weights, summed over the samples in double.
#pragma once
#include "channels.h"
#include "gates_call.h"

namespace attsnn {

// Of TA and CA. A task is a hidden value of one of the two MLPs, TA's first.
template <class Real>
struct GateWeights {
  Gate<Real> time, channel;
  ATTSNN_INLINE int64_t tasks() const { return time.width + channel.width; }

  template <class Team>
  ATTSNN_DEVICE void operator()(const Team& team, int64_t task) const {
    const bool of_time = task < time.width;
    const Gate<Real>& gate = of_time ? time : channel;
    const int64_t r = of_time ? task : task - time.width, size = gate.size, width = gate.width;
    // Both of a sample's ways through an MLP, its mean's and its maximum's, meet the same weights.
    team.columns(
        2 * gate.samples, size,
        [&](int64_t i, int64_t d) {
          return double(gate.by_hidden[i * width + r]) * double(gate.inputs[i * size + d]);
        },
        [&](int64_t d, double sum) { gate.by_reduce[r * size + d] = Real(sum); });
    team.columns(
        gate.samples, size,
        [&](int64_t n, int64_t d) {
          const double hidden =
              double(gate.within(gate.hidden, 0, n)[r]) + double(gate.within(gate.hidden, 1, n)[r]);
          return double(gate.by_sum[n * size + d]) * hidden;
        },
        [&](int64_t d, double sum) { gate.by_expand[d * width + r] = Real(sum); });
  }
};

// Of SA, whose kernel has so many values. A task is a tile of them.
template <class Real>
struct KernelSums {
  int64_t samples, size;
  const double* by_sample;  // [N, size]
  Real* kernel;
  ATTSNN_INLINE ChannelTiles tiles() const { return {samples, size}; }

  template <class Team>
  ATTSNN_DEVICE void operator()(const Team& team, int64_t tile) const {
    const double* from = by_sample + tiles().first(tile);
    Real* to = kernel + tiles().first(tile);
    team.columns(
        samples, tiles().size(tile), [&](int64_t n, int64_t i) { return from[n * size + i]; },
        [&](int64_t i, double sum) { to[i] = Real(sum); });
  }
};

}  // namespace attsnn
