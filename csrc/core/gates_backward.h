// TA and CA of one sample, backward. What is summed over pixels is double.
#pragma once
#include "channels.h"
#include "excite.h"

namespace attsnn {

// From the sums of pass A, against 1 and against p - mean, to those of the normed map (by_norm), and to the
// gradients of the planes' mean and maximum for pass C (planes), all [2, T, N, C]. A task is a sample.
template <class Real>
struct GatesBackward {
  Gates<Real> gates;
  const double* sums;
  NormNumbers<const double> norm;
  int64_t pixels;
  Real* planes;
  double* by_norm;

  // The gradient of the product of a plane's gates.
  ATTSNN_INLINE double by_gate(int64_t i, int64_t c) const {
    return norm.gamma[c] * (norm.inverse[c] * sums[gates.planes() + i]) + norm.beta[c] * sums[i];
  }
  ATTSNN_INLINE double normed(double p, int64_t c) const {
    return norm.gamma[c] * (norm.inverse[c] * (p - norm.centre[c])) + norm.beta[c];
  }

  template <class Team>
  ATTSNN_DEVICE void operator()(const Team& team, int64_t n) const {
    if (gates.channel.there())
      go<true>(team, n);
    else
      go<false>(team, n);
  }

 private:
  template <bool kChannel, class Team>
  ATTSNN_DEVICE void go(const Team& team, int64_t n) const {
    const Gate<Real>&time = gates.time, &channel = gates.channel;
    const int64_t steps = gates.steps, channels = gates.channels;
    const Real* by_time = time.there() ? time.of(time.gate, 0, n) : nullptr;
    const auto timed = [&](int64_t t) { return by_time == nullptr ? 1.0 : double(by_time[t]); };
    // CA of a plane, and the gradients of its descriptors there
    const Real* by_channel = kChannel ? channel.of(channel.gate, 0, n) : nullptr;
    const Real* inputs = kChannel ? channel.of(channel.by_inputs, 0, n) : nullptr;
    const Real* peaks = kChannel ? channel.of(channel.by_inputs, 1, n) : nullptr;
    const int32_t* places = kChannel ? channel.place + n * channels : nullptr;
    const auto channelled = [&](int64_t c) { return kChannel ? double(by_channel[c]) : 1.0; };
    const auto of_mean = [&](int64_t c) { return kChannel ? double(inputs[c]) / double(steps) : 0.0; };
    const auto of_peak = [&](int64_t t, int64_t c) {
      const double peak = kChannel ? double(peaks[c]) : 0.0;
      return kChannel && places[c] == int32_t(t) ? peak : 0.0;
    };
    if constexpr (kChannel) {
      Real* by_sum = channel.of(channel.by_sum, 0, n);
      team.columns(
          steps, channels, [&](int64_t t, int64_t c) { return timed(t) * by_gate(gates.at(t, n, c), c); },
          [&](int64_t c, double sum) { by_sum[c] = Real(sum) * by_channel[c] * (1 - by_channel[c]); });
      excite_backward(team, channel, n);
    }
    if (time.there()) {
      Real* by_sum = time.of(time.by_sum, 0, n);
      team.rows(
          steps, channels,
          [&](int64_t t, int64_t c) {
            const int64_t i = gates.at(t, n, c);
            return channelled(c) * by_gate(i, c) + of_mean(c) * normed(gates.mean[i], c) +
                   of_peak(t, c) * normed(double(gates.peak[i]), c);
          },
          [&](int64_t t, double sum) { by_sum[t] = Real(sum) * by_time[t] * (1 - by_time[t]); });
      excite_backward(team, time, n);
    }
    for (int64_t t = 0; t < steps; ++t) {
      const double step = timed(t);
      const double level =
          by_time == nullptr ? 0.0 : double(time.of(time.by_inputs, 0, n)[t]) / double(channels);
      const double point = by_time == nullptr ? 0.0 : double(time.of(time.by_inputs, 1, n)[t]);
      const int64_t place = by_time == nullptr ? -1 : time.place[n * steps + t];
      team.each(channels, [&](int64_t c) {
        const int64_t i = gates.at(t, n, c), centred = gates.planes() + i;
        const double gate = step * channelled(c), scale = norm.gamma[c] * norm.inverse[c];
        const double uniform = step * of_mean(c) + level;
        const double at_peak = step * of_peak(t, c) + (place == c ? point : 0.0);
        by_norm[i] = gate * sums[i] + uniform + at_peak;
        by_norm[centred] = gate * sums[centred] + uniform * (gates.mean[i] - norm.centre[c]) +
                           at_peak * (double(gates.peak[i]) - norm.centre[c]);
        planes[i] = Real(scale / double(pixels) * uniform);
        planes[centred] = Real(scale * at_peak);
      });
    }
  }
};

}  // namespace attsnn
