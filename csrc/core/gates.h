// TA and CA of one sample, from the means and extrema of its planes (csrc/README.md): descriptors,
// excitation, their product with A and B.
#pragma once
#include "excite.h"

namespace attsnn {

// A and B times the gates. A task is a sample.
template <class Real>
struct GatesForward {
  Gates<Real> gates;
  const Real *a, *b;  // [C]
  Real* gated;        // [2, T or 1, N, C]

  template <class Team>
  ATTSNN_DEVICE void operator()(const Team& team, int64_t n) const {
    const Gate<Real>&time = gates.time, &channel = gates.channel;
    const int64_t steps = gates.steps, channels = gates.channels;
    const auto y_mean = [&](int64_t t, int64_t c) {
      return b[c] + a[c] * Real(gates.mean[gates.at(t, n, c)]);
    };
    const auto y_peak = [&](int64_t t, int64_t c) { return b[c] + a[c] * gates.peak[gates.at(t, n, c)]; };
    if (time.there()) {
      Real *mean = time.of(time.inputs, 0, n), *peak = time.of(time.inputs, 1, n);
      int32_t* place = time.place + n * steps;
      team.rows(steps, channels, y_mean, [&](int64_t t, Real sum) { mean[t] = sum / Real(channels); });
      team.peaks(steps, channels, y_peak, [&](int64_t t, const Extremum<Real>& most) {
        peak[t] = most.value;
        place[t] = most.place;
      });
      excite(team, time, n);
    }
    // A factor of 1 changes nothing, and channels vectorise.
    const Real* by_time = time.there() ? time.of(time.gate, 0, n) : nullptr;
    const auto timed = [&](int64_t t) { return by_time == nullptr ? Real(1) : by_time[t]; };
    if (channel.there()) {
      Real *mean = channel.of(channel.inputs, 0, n), *peak = channel.of(channel.inputs, 1, n);
      int32_t* place = channel.place + n * channels;
      for (int64_t t = 0; t < steps; ++t) {
        const Real gate = timed(t);
        if (t == 0)
          team.each(channels, [&](int64_t c) {
            mean[c] = gate * y_mean(0, c);
            peak[c] = gate * y_peak(0, c);
            place[c] = 0;
          });
        else
          team.each(channels, [&](int64_t c) {
            mean[c] += gate * y_mean(t, c);
            Extremum<Real> most{peak[c], place[c]};
            most.meet(gate * y_peak(t, c), int32_t(t));
            peak[c] = most.value;
            place[c] = most.place;
          });
      }
      team.each(channels, [&](int64_t c) { mean[c] /= Real(steps); });
      excite(team, channel, n);
    }
    const Real* by_channel = channel.there() ? channel.of(channel.gate, 0, n) : nullptr;
    const int64_t alike = time.there() ? steps : 1, half = alike * gates.samples * channels;
    for (int64_t t = 0; t < alike; ++t) {
      const Real gate = timed(t);
      team.each(channels, [&](int64_t c) {
        const Real both = by_channel == nullptr ? gate : gate * by_channel[c];
        gated[gates.at(t, n, c)] = both * a[c];
        gated[half + gates.at(t, n, c)] = both * b[c];
      });
    }
  }
};

}  // namespace attsnn
