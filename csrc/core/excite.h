// The excitation of one sample's gate, sigmoid(MLP(mean) + MLP(maximum)), and its way back. A team sums, as
// in channels.h; what a member writes in one call to it, all may read behind that call.
#pragma once
#include "gates_call.h"
#include "seam.h"

namespace attsnn {

template <class Real, class Team>
ATTSNN_DEVICE void excite(const Team& team, const Gate<Real>& gate, int64_t n) {
  Real *mean = gate.within(gate.hidden, 0, n), *peak = gate.within(gate.hidden, 1, n);
  for (int which = 0; which < 2; ++which) {
    const Real* inputs = gate.of(gate.inputs, which, n);
    Real* hidden = which == 0 ? mean : peak;
    team.rows(
        gate.width, gate.size,
        [&](int64_t r, int64_t d) { return gate.reduce[r * gate.size + d] * inputs[d]; },
        [&](int64_t r, Real sum) { hidden[r] = rectified(sum, Real(0)); });
  }
  Real* result = gate.of(gate.gate, 0, n);
  team.rows(
      gate.size, gate.width,
      [&](int64_t d, int64_t r) { return gate.expand[d * gate.width + r] * (mean[r] + peak[r]); },
      [&](int64_t d, Real sum) { result[d] = 1 / (1 + std::exp(-sum)); });
}

// From by_sum to by_hidden and by_inputs.
template <class Real, class Team>
ATTSNN_DEVICE void excite_backward(const Team& team, const Gate<Real>& gate, int64_t n) {
  const Real* by_sum = gate.of(gate.by_sum, 0, n);
  team.columns(
      gate.size, gate.width,
      [&](int64_t d, int64_t r) { return by_sum[d] * gate.expand[d * gate.width + r]; },
      [&](int64_t r, Real sum) {
        for (int which = 0; which < 2; ++which)
          gate.within(gate.by_hidden, which, n)[r] =
              through(gate.within(gate.hidden, which, n)[r], Real(0), sum);
      });
  for (int which = 0; which < 2; ++which) {
    const Real* by_hidden = gate.within(gate.by_hidden, which, n);
    Real* by_inputs = gate.of(gate.by_inputs, which, n);
    team.columns(
        gate.width, gate.size,
        [&](int64_t r, int64_t d) { return by_hidden[r] * gate.reduce[r * gate.size + d]; },
        [&](int64_t d, Real sum) { by_inputs[d] = sum; });
  }
}

}  // namespace attsnn
