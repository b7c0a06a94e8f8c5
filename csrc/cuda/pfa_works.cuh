// PFA's small tensors on CUDA, as works (core/channels.h): from the tiles' sums to the means, to the factors
// of the map, and back to the means and the weights.
#pragma once
#include "cuda/gates_kernel.cuh"
#include "cuda/pfa_reduce_kernel.cuh"

namespace attsnn {

template <class Real>
ATTSNN_DEVICE Real sigmoid(Real x) {
  return 1 / (1 + std::exp(-x));
}

// A value at (y, x) off the middle of a tap, 0 outside of the map.
template <class Real>
ATTSNN_DEVICE Real tapped(const PfaShape& shape, const Real* map, int64_t pixel, int64_t tap, int sign) {
  const int64_t width = shape.maps.width, frame = shape.side / 2;
  const int64_t y = pixel / width + sign * (tap / shape.side - frame);
  const int64_t x = pixel % width + sign * (tap % shape.side - frame);
  return y >= 0 && y < shape.maps.height && x >= 0 && x < width ? map[y * width + x] : Real(0);
}

// The means of sample n at step t from the sums of tiles. A task: a column or a row of one; of a still image
// those of its one step serve all.
template <class Real>
struct PfaMeans {
  PfaShape shape;
  MeansTiles<Real> tiles;
  bool still;
  Real *by_column, *by_row;

  int64_t tasks() const { return shape.by_pixel() + shape.by_channel(); }
  ATTSNN_DEVICE void operator()(int64_t task) const {
    const int64_t rows = shape.rows(), columns = shape.columns();
    const int64_t all = shape.maps.samples * shape.maps.steps * columns;
    task < all ? add(task, columns, rows, tiles.row_tiles, tiles.by_column, by_column)
               : add(task - all, rows, columns, tiles.column_tiles, tiles.by_row, by_row);
  }

 private:
  ATTSNN_DEVICE void add(int64_t task, int64_t size, int64_t others, int64_t count, const Real* from,
                         Real* to) const {
    int64_t place;
    const int64_t nt = divide(task, size, place);
    const int64_t read = still ? nt / shape.maps.steps * shape.maps.steps : nt;
    Real sum = 0;
    for (int64_t k = 0; k < count; ++k) sum += from[(read * count + k) * size + place];
    to[task] = sum / Real(others);
  }
};

// S and Cm. A task is a value of one.
template <class Real>
struct PfaFactors {
  PfaShape shape;
  PfaWeights<const Real> weights;
  PfaSmall<Real> small;

  int64_t tasks() const {
    return shape.maps.samples * shape.rank * (shape.maps.pixels() + shape.maps.channels);
  }
  ATTSNN_DEVICE void operator()(int64_t task) const {
    const int64_t steps = shape.maps.steps, pixels = shape.maps.pixels(), channels = shape.maps.channels;
    const int64_t of_space = shape.maps.samples * shape.rank * pixels;
    int64_t place, r;
    Real sum = 0;
    if (task < of_space) {
      const int64_t n = divide(divide(task, pixels, place), shape.rank, r), taps = shape.taps();
      for (int64_t t = 0; t < steps; ++t)
        for (int64_t k = 0; k < taps; ++k)
          sum =
              multiply_add(weights.spatial[(r * steps + t) * taps + k],
                           tapped<Real>(shape, small.by_pixel + (n * steps + t) * pixels, place, k, 1), sum);
      small.spatial[task] = sigmoid(sum + weights.spatial_bias[r]);
      return;
    }
    const int64_t n = divide(divide(task - of_space, shape.rank, r), channels, place);
    for (int64_t t = 0; t < steps; ++t)
      sum = multiply_add(weights.channel[r * steps + t], small.by_channel[(n * steps + t) * channels + place],
                         sum);
    small.channel[task - of_space] = sigmoid(sum + weights.channel_bias[r]);
  }
};

// Tm. A task is a sample.
template <class Real>
struct PfaTemporal {
  PfaShape shape;
  PfaWeights<const Real> weights;
  PfaSmall<Real> small;

  template <class Team>
  ATTSNN_DEVICE void operator()(const Team& team, int64_t n) const {
    const int64_t channels = shape.maps.channels, steps = shape.maps.steps, rank = shape.rank;
    const Real* means = small.by_channel + n * steps * channels;
    Real* to = small.temporal + n * steps * rank;
    team.rows(
        steps * rank, channels,
        [&](int64_t row, int64_t c) {
          return weights.temporal[row % rank * channels + c] * means[row / rank * channels + c];
        },
        [&](int64_t row, Real sum) { to[row] = sigmoid(sum + weights.temporal_bias[row % rank]); });
  }
};

// Gradients of the factors, before their sigmoid: [N, R, pixels], [N, T, R], [N, C, R].
template <class Real>
struct PfaBefore {
  Real *spatial, *temporal, *channel;
};

template <class Real>
ATTSNN_DEVICE Real before_sigmoid(Real grad, Real value) {
  return grad * (value * (1 - value));
}

// Those of columns and rows. A task is a value of one.
template <class Real>
struct PfaFactorsBack {
  PfaShape shape;
  Real scale;
  FactorTiles<Real> tiles;
  PfaSmall<const Real> small;
  PfaBefore<Real> to;

  int64_t tasks() const { return shape.maps.samples * shape.rank * (shape.rows() + shape.columns()); }
  ATTSNN_DEVICE void operator()(int64_t task) const {
    const int64_t rows = shape.rows(), columns = shape.columns(), steps = shape.maps.steps, rank = shape.rank;
    const int64_t of_columns = shape.maps.samples * rank * columns;
    int64_t place, r;
    Real sum = 0;
    if (task < of_columns) {
      const int64_t n = divide(divide(task, columns, place), rank, r);
      for (int64_t k = 0; k < tiles.chunks; ++k)
        sum += tiles.columns[((n * tiles.chunks + k) * rank + r) * columns + place];
      return put(n, r, place, !shape.maps.channels_last, sum);
    }
    const int64_t n = divide(divide(task - of_columns, rank, r), rows, place);
    for (int64_t t = 0; t < steps; ++t) {
      Real of_step = 0;
      for (int64_t k = 0; k < tiles.tiles; ++k)
        of_step += tiles.rows[(((n * tiles.tiles + k) * steps + t) * rows + place) * rank + r];
      sum = multiply_add(scale * small.temporal[(n * steps + t) * rank + r], of_step, sum);
    }
    put(n, r, place, shape.maps.channels_last, sum);
  }

 private:
  ATTSNN_DEVICE void put(int64_t n, int64_t r, int64_t place, bool spatial, Real grad) const {
    const int64_t at = spatial ? (n * shape.rank + r) * shape.maps.pixels() + place
                               : (n * shape.maps.channels + place) * shape.rank + r;
    (spatial ? to.spatial : to.channel)[at] =
        before_sigmoid(grad, (spatial ? small.spatial : small.channel)[at]);
  }
};

// Those of steps. A task: a sample at a step.
template <class Real>
struct PfaTemporalBack {
  PfaShape shape;
  Real scale;
  FactorTiles<Real> tiles;
  PfaSmall<const Real> small;
  PfaBefore<Real> to;

  template <class Team>
  ATTSNN_DEVICE void operator()(const Team& team, int64_t nt) const {
    const int64_t rows = shape.rows(), steps = shape.maps.steps, rank = shape.rank;
    const int64_t n = nt / steps, t = nt % steps;
    team.columns(
        rows, rank,
        [&](int64_t i, int64_t r) {
          Real sum = 0;
          for (int64_t k = 0; k < tiles.tiles; ++k)
            sum += tiles.rows[(((n * tiles.tiles + k) * steps + t) * rows + i) * rank + r];
          return sum * row_factor<Real>(shape, small.spatial, small.channel, n, i, r);
        },
        [&](int64_t r, Real sum) {
          to.temporal[nt * rank + r] = before_sigmoid(scale * sum, small.temporal[nt * rank + r]);
        });
  }
};

// What the means hand back to x: by pixel [N, T, pixels], by channel [N, T, C]. A task is a value of one.
template <class Real>
struct PfaMeansBack {
  PfaShape shape;
  PfaWeights<const Real> weights;
  PfaBefore<const Real> before;
  Real *by_pixel, *by_channel;

  int64_t tasks() const { return shape.by_pixel() + shape.by_channel(); }
  ATTSNN_DEVICE void operator()(int64_t task) const {
    const int64_t steps = shape.maps.steps, pixels = shape.maps.pixels(), channels = shape.maps.channels;
    const int64_t rank = shape.rank, taps = shape.taps();
    int64_t place, t;
    Real sum = 0;
    if (task < shape.by_pixel()) {
      const int64_t n = divide(divide(task, pixels, place), steps, t);
      for (int64_t r = 0; r < rank; ++r)
        for (int64_t k = 0; k < taps; ++k)
          sum =
              multiply_add(weights.spatial[(r * steps + t) * taps + k],
                           tapped<Real>(shape, before.spatial + (n * rank + r) * pixels, place, k, -1), sum);
      by_pixel[task] = sum / Real(channels);
      return;
    }
    task -= shape.by_pixel();
    const int64_t n = divide(divide(task, channels, place), steps, t);
    for (int64_t r = 0; r < rank; ++r) {
      sum = multiply_add(before.temporal[(n * steps + t) * rank + r], weights.temporal[r * channels + place],
                         sum);
      sum = multiply_add(before.channel[(n * channels + place) * rank + r], weights.channel[r * steps + t],
                         sum);
    }
    by_channel[task] = sum / Real(pixels);
  }
};

// The gradients of the weights. Tasks: the taps of a rank and a step; then of a rank the temporal weight, the
// channel weight, the biases.
template <class Real>
struct PfaWeightsBack {
  PfaShape shape;
  PfaSmall<const Real> small;
  PfaBefore<const Real> before;
  PfaWeights<Real> to;

  int64_t tasks() const { return shape.rank * (shape.maps.steps + 3); }
  template <class Team>
  ATTSNN_DEVICE void operator()(const Team& team, int64_t task) const {
    const int64_t steps = shape.maps.steps, samples = shape.maps.samples, rank = shape.rank;
    const int64_t pixels = shape.maps.pixels(), channels = shape.maps.channels, taps = shape.taps();
    const auto by_space = [&](int64_t r, int64_t i) {
      return before.spatial[(i / pixels * rank + r) * pixels + i % pixels];
    };
    if (task < rank * steps) {
      const int64_t r = task / steps, t = task % steps;
      return team.rows(
          taps, samples * pixels,
          [&](int64_t k, int64_t i) {
            const Real* map = small.by_pixel + (i / pixels * steps + t) * pixels;
            return by_space(r, i) * tapped<Real>(shape, map, i % pixels, k, 1);
          },
          [&](int64_t k, Real sum) { to.spatial[task * taps + k] = sum; });
    }
    const int64_t r = task % rank, kind = (task - rank * steps) / rank;
    if (kind == 0)
      return team.columns(
          samples * steps, channels,
          [&](int64_t i, int64_t c) {
            return before.temporal[i * rank + r] * small.by_channel[i * channels + c];
          },
          [&](int64_t c, Real sum) { to.temporal[r * channels + c] = sum; });
    if (kind == 1)
      return team.rows(
          steps, samples * channels,
          [&](int64_t t, int64_t i) {
            return before.channel[i * rank + r] *
                   small.by_channel[(i / channels * steps + t) * channels + i % channels];
          },
          [&](int64_t t, Real sum) { to.channel[r * steps + t] = sum; });
    const auto bias = [&](int64_t length, const auto& term, Real* bias_to) {
      team.rows(1, length, term, [&](int64_t, Real sum) { bias_to[r] = sum; });
    };
    bias(samples * pixels, [&](int64_t, int64_t i) { return by_space(r, i); }, to.spatial_bias);
    bias(
        samples * steps, [&](int64_t, int64_t i) { return before.temporal[i * rank + r]; }, to.temporal_bias);
    bias(
        samples * channels, [&](int64_t, int64_t i) { return before.channel[i * rank + r]; },
        to.channel_bias);
  }
};

}  // namespace attsnn
