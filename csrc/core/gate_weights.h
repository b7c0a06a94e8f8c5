// The gradients of the weights of TA and CA, summed over the samples in double.
#pragma once
#include "gates_call.h"

namespace attsnn {

// A task is a hidden value of one of the two MLPs, TA's first.
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

}  // namespace attsnn
