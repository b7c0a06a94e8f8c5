// PFA's small tensors, for one sample: from the means to the factors of the map, and back.
#pragma once
#include <bit>
#include <cmath>

#include "cpu/partials.h"
#include "cpu/pfa_rows.h"

namespace attsnn {

// Cephes' expf, in operations that vectorise: relative error below 2e-7.
ATTSNN_INLINE float fast_exp(float x) {
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;  // NaN stays
  constexpr float kRound = 12582912.0f;             // 1.5 * 2^23: its last bit is worth 1
  const float n = (x * 1.44269504f + kRound) - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float power = std::bit_cast<float>((int32_t(n) + 127) << 23);
  return (p * (r * r) + r + 1.0f) * power;
}

// to[i] = sigmoid(from[i] + bias).
template <class Real>
ATTSNN_INLINE void sigmoid_row(int64_t count, const Real* from, Real bias, Real* to) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const Real value = -(from[i] + bias);
    if constexpr (std::is_same_v<Real, float>)
      to[i] = 1 / (1 + fast_exp(value));
    else
      to[i] = 1 / (1 + std::exp(value));
  }
}

// Through the sigmoid whose result is `value`.
template <class Real>
ATTSNN_INLINE Real through_sigmoid(Real grad, Real value) {
  return grad * (value * (1 - value));
}

// Maps in a frame of zeros, one row after the other: a tap of a convolution is the same maps from another
// start. Of the results, those that fall on the frame mean nothing.
template <class Real>
struct Frame {
  int64_t height, width, frame, row, size, distance;  // `row`: of a map; `size`: of its results

  ATTSNN_INLINE Frame(const PfaShape& shape) {
    height = shape.maps.height, width = shape.maps.width, frame = shape.side / 2;
    row = width + 2 * frame;
    size = padded<Real>(height * row);
    distance = padded<Real>(size + 2 * frame * (row + 1));
  }
  ATTSNN_INLINE int64_t at(int64_t y) const { return (y + frame) * row + frame; }
  ATTSNN_INLINE int64_t tap(int64_t k) const { return frame == 0 ? 0 : k / 3 * row + k % 3; }

  void put(int64_t maps, const Real* from, Real* to) const {
    std::fill_n(to, maps * distance, Real(0));
    for (int64_t c = 0; c < maps; ++c)
      for (int64_t y = 0; y < height; ++y)
        std::copy_n(from + (c * height + y) * width, width, to + c * distance + at(y));
  }
};

template <class Real>
struct Taps {
  const Real* maps;
  const Frame<Real>* frame;
  ATTSNN_INLINE const Real* operator()(int64_t k) const { return maps + frame->tap(k); }
};

// A sample's means as the loops want them.
template <class Real>
struct Means {
  Frame<Real> frame;
  int64_t channels;     // padded
  Real *maps, *planes;  // [T, distance], [T, channels]
};

template <class Real>
Means<Real> means_of(const PfaShape& shape, const PfaSmall<const Real>& small, int64_t n) {
  const int64_t steps = shape.maps.steps, channels = shape.maps.channels, pixels = shape.maps.pixels();
  Means<Real> means{Frame<Real>(shape), padded<Real>(channels), nullptr, nullptr};
  means.maps = scratch<Real, 3>(steps * means.frame.distance);
  means.planes = scratch<Real, 4>(steps * means.channels);
  means.frame.put(steps, small.by_pixel + n * steps * pixels, means.maps);
  with_isa<pad_rows<Real>>(steps, channels, small.by_channel + n * steps * channels, means.channels,
                           means.planes);
  return means;
}

// Values that the loops below need room for.
template <class Real>
int64_t room_for_maps(const PfaShape& shape) {
  const int64_t steps = shape.maps.steps, rank = shape.rank;
  const int64_t width = padded<Real>(shape.maps.channels), ranks = padded<Real>(rank);
  const Frame<Real> frame(shape);
  const int64_t convolution = rank * frame.distance + std::max(steps, rank) * frame.size;
  return std::max(convolution,
                  (std::max(steps, rank) + rank) * width + (shape.maps.channels + steps) * ranks);
}

// From the means to the factors, written where `small` has them.
template <class Real>
struct MapsLoops {
  template <int kBytes>
  static ATTSNN_INLINE void run(const PfaShape* shape, const PfaWeights<const Real>* weights,
                                const Real* temporal, const Means<Real>* means, Real* spatial_to,
                                Real* temporal_to, Real* channel_to, Real* room) {
    const int64_t rank = shape->rank, steps = shape->maps.steps, channels = shape->maps.channels;
    const Frame<Real>& frame = means->frame;
    const int64_t taps = shape->taps();
    over_rows<kBytes>(rank, [&](auto m, int64_t r) ATTSNN_INLINED {
      over_columns<kBytes, Real>(frame.size, [&](auto v, int64_t j, int64_t last) ATTSNN_INLINED {
        SumBlock<kBytes, Real, m.value, v.value> block;
        for (int64_t t = 0; t < steps; ++t)
          block.add(taps, weights->spatial + (r * steps + t) * taps, steps * taps, 1,
                    Taps<Real>{means->maps + t * frame.distance + j, &frame}, last);
        block.finish(room + r * frame.size + j, frame.size, last);
      });
    });
    for (int64_t r = 0; r < rank; ++r)
      for (int64_t y = 0; y < frame.height; ++y)
        sigmoid_row(frame.width, room + r * frame.size + y * frame.row, weights->spatial_bias[r],
                    spatial_to + (r * frame.height + y) * frame.width);
    products_of_rows<kBytes, Real>(
        steps, rank, means->channels, {means->planes, means->channels}, {temporal, means->channels},
        [&](int64_t t, int64_t r, Real sum) ATTSNN_INLINED { temporal_to[t * rank + r] = sum; });
    for (int64_t t = 0; t < steps; ++t)
      for (int64_t r = 0; r < rank; ++r)
        sigmoid_row<Real>(1, temporal_to + t * rank + r, weights->temporal_bias[r],
                          temporal_to + t * rank + r);
    product<kBytes, Real>(false, rank, means->channels, steps, weights->channel, steps, 1,
                          {means->planes, means->channels}, room, means->channels);
    for (int64_t r = 0; r < rank; ++r)
      sigmoid_row(channels, room + r * means->channels, weights->channel_bias[r], room + r * means->channels);
    pad_transposed(rank, channels, room, means->channels, rank, channel_to);
  }
};

// From the sums of the factors' gradients to those of the means, and to the sample's part of the weights'.
template <class Real>
struct MapsBackLoops {
  // by_spatial [R, pixels], by_temporal [T, R], by_channel [C, R]: gradients of the factors, which become
  // those before the sigmoid.
  struct Gradients {
    Real *by_spatial, *by_temporal, *by_channel;
  };

  template <int kBytes>
  static ATTSNN_INLINE void run(const PfaShape* shape, const PfaWeights<const Real>* weights,
                                const Real* temporal, const Means<Real>* means,
                                const PfaSmall<const Real>* factors, const Gradients* grads,
                                Real* to_by_pixel, Real* to_by_channel, const PfaWeights<Real>* of_sample,
                                Real* room) {
    const int64_t rank = shape->rank, steps = shape->maps.steps, channels = shape->maps.channels;
    const int64_t pixels = shape->maps.pixels(), taps = shape->taps();
    const int64_t ranks = padded<Real>(rank), width = means->channels;
    const Frame<Real>& frame = means->frame;
    const auto before = [&](int64_t count, const Real* values, Real* grad) ATTSNN_INLINED {
#pragma GCC ivdep
      for (int64_t i = 0; i < count; ++i) grad[i] = through_sigmoid(grad[i], values[i]);
    };
    before(rank * pixels, factors->spatial, grads->by_spatial);
    before(steps * rank, factors->temporal, grads->by_temporal);
    before(channels * rank, factors->channel, grads->by_channel);

    // The convolution: its input, its weight, its bias.
    Real* framed = room;  // [R, distance]
    Real* result = framed + rank * frame.distance;
    frame.put(rank, grads->by_spatial, framed);
    over_rows<kBytes>(steps, [&](auto m, int64_t t) ATTSNN_INLINED {
      over_columns<kBytes, Real>(frame.size, [&](auto v, int64_t j, int64_t last) ATTSNN_INLINED {
        SumBlock<kBytes, Real, m.value, v.value> block;
        for (int64_t r = 0; r < rank; ++r)
          block.add(taps, weights->spatial + (r * steps + t) * taps + taps - 1, taps, -1,
                    Taps<Real>{framed + r * frame.distance + j, &frame}, last);
        block.finish(result + t * frame.size + j, frame.size, last);
      });
    });
    for (int64_t t = 0; t < steps; ++t)
      for (int64_t y = 0; y < frame.height; ++y)
        for (int64_t x = 0; x < frame.width; ++x)
          to_by_pixel[(t * frame.height + y) * frame.width + x] =
              result[t * frame.size + y * frame.row + x] / Real(channels);
    for (int64_t t = 0; t < steps; ++t)
      for (int64_t k = 0; k < taps; k += shape->side)  // taps of a row lie side by side
        products_of_rows<kBytes, Real>(rank, shape->side, frame.size, {framed + frame.at(0), frame.distance},
                                       {means->maps + t * frame.distance + frame.tap(k), 1},
                                       [&](int64_t r, int64_t x, Real sum) ATTSNN_INLINED {
                                         of_sample->spatial[(r * steps + t) * taps + k + x] = sum;
                                       });
    const auto sums = [&](int64_t rows, int64_t columns, int64_t by_row, int64_t by_column, const Real* from,
                          Real* to) ATTSNN_INLINED {
      for (int64_t i = 0; i < rows; ++i) {
        Partials<Real> lanes;
        in_lanes(columns, [&](int64_t j, int l) { lanes.of[l] += from[i * by_row + j * by_column]; });
        to[i] = Real(lanes.total());
      }
    };
    sums(rank, pixels, pixels, 1, grads->by_spatial, of_sample->spatial_bias);
    sums(rank, steps, 1, rank, grads->by_temporal, of_sample->temporal_bias);
    sums(rank, channels, 1, rank, grads->by_channel, of_sample->channel_bias);

    // The linear maps.
    Real *of_planes = room, *across = of_planes + std::max(steps, rank) * width;
    Real* rows = across + rank * width;
    Real* transposed = rows + channels * ranks;
    pad_transposed(channels, rank, grads->by_channel, rank, width, across);  // [R, C]
    pad_rows(channels, rank, grads->by_channel, ranks, rows);                // [C, R]
    product<kBytes, Real>(false, steps, width, rank, grads->by_temporal, rank, 1, {temporal, width},
                          of_planes, width);
    product<kBytes, Real>(true, steps, width, rank, weights->channel, 1, steps, {across, width}, of_planes,
                          width);
    for (int64_t t = 0; t < steps; ++t)
      for (int64_t c = 0; c < channels; ++c)
        to_by_channel[t * channels + c] = of_planes[t * width + c] / Real(pixels);
    product<kBytes, Real>(false, rank, width, steps, grads->by_temporal, 1, rank, {means->planes, width},
                          of_planes, width);
    for (int64_t r = 0; r < rank; ++r)
      std::copy_n(of_planes + r * width, channels, of_sample->temporal + r * channels);
    product<kBytes, Real>(false, steps, ranks, channels, means->planes, width, 1, {rows, ranks}, transposed,
                          ranks);
    for (int64_t r = 0; r < rank; ++r)
      for (int64_t t = 0; t < steps; ++t) of_sample->channel[r * steps + t] = transposed[t * ranks + r];
  }
};

}  // namespace attsnn
