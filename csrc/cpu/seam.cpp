// The seams on the CPU. Work is cut by shape, never by threads: whole planes, pixels, or ranges of one
// sample's neurons, each summed in a fixed order.
#include <torch/csrc/stable/library.h>

#include <limits>
#include <memory>
#include <vector>

#include "core/neurons.h"
#include "cpu/over_tasks.h"
#include "cpu/reduce.h"
#include "cpu/seam_maps.h"
#include "cpu/seam_tiles.h"
#include "cpu/team.h"
#include "tensor/seam_op.h"

namespace attsnn {
namespace {

constexpr int64_t kPixels = 256;   // that SA's descriptors are taken of together
constexpr int64_t kBundle = 2048;  // values of small planes that are walked together

// A thread's buffer number kIndex, at least that long.
template <class T, int kIndex>
T* scratch(int64_t size) {
  thread_local std::vector<T> memory;
  if (int64_t(memory.size()) < size) memory.resize(size);
  return memory.data();
}

// f(t, n, c, count) for bundles of neighbouring planes of one sample, c being the first: a call for each
// plane would take longer than a small plane does.
template <class F>
void over_bundles(const Maps& maps, const F& f) {
  const int64_t size = std::clamp<int64_t>(kBundle / std::max<int64_t>(1, maps.pixels()), 1,
                                           std::max<int64_t>(1, maps.channels));
  const int64_t bundles = (maps.channels + size - 1) / size;
  over_tasks(maps.steps * maps.samples * bundles, size * maps.pixels(), [&](int64_t i) {
    const int64_t c = i % bundles * size, sample = i / bundles;
    f(sample / maps.samples, sample % maps.samples, c, std::min(size, maps.channels - c));
  });
}

template <class Io, class Real>
void statistics_of_planes(const StatisticsCall<Io, Real>& call, int64_t t, int64_t n, int64_t c,
                          int64_t count) {
  const Maps& maps = call.maps;
  const int64_t plane = (t * maps.samples + n) * maps.channels + c, values = count * maps.pixels();
  const Real* z = as_real(call.z[t] + maps.at(n, c, 0), values, scratch<Real, 0>(values));
  with_isa<planes_statistics<Real>>(
      count, maps.pixels(), z, call.gamma == nullptr ? nullptr : call.gamma + c, call.mean + plane,
      call.moment + plane, call.extremum == nullptr ? nullptr : call.extremum + plane, call.place + plane);
  std::copy_n(call.mean + plane, count, call.pooled_mean + plane);
}

template <class Io, class Real>
void statistics_of_pooled(const StatisticsCall<Io, Real>& call, int64_t t, int64_t n, int64_t c) {
  const Maps &maps = call.maps, p_maps = maps.pooled(call.pool);
  const int64_t plane = (t * maps.samples + n) * maps.channels + c, pixels = maps.pixels();
  const Real* z = as_real(call.z[t] + maps.at(n, c, 0), pixels, scratch<Real, 0>(pixels));
  with_isa<plane_moments<Real>>(pixels, z, call.mean + plane, call.moment + plane);
  Io* to = call.pooled[t] + p_maps.at(n, c, 0);
  with_isa<pool_plane<Real, Io>>(maps, call.pool, call.z[t] + maps.at(n, c, 0), to);
  const Real* p = as_real(static_cast<const Io*>(to), p_maps.pixels(), scratch<Real, 1>(p_maps.pixels()));
  with_isa<plane_moments<Real>>(p_maps.pixels(), p, call.pooled_mean + plane, static_cast<double*>(nullptr));
  if (call.extremum == nullptr) return;
  const Real sign = call.gamma == nullptr ? Real(1) : sign_of(call.gamma[c]);
  with_isa<plane_extremum<Real>>(p_maps.pixels(), p, sign, call.extremum + plane, call.place + plane);
}

// Channels innermost: all planes of one step of one sample.
template <class Io, class Real>
void statistics_of_sample(const StatisticsCall<Io, Real>& call, int64_t at) {
  const Maps &maps = call.maps, p_maps = maps.pooled(call.pool);
  const int64_t channels = maps.channels, n = at % maps.samples, t = at / maps.samples;
  double* doubles = scratch<double, 0>(3 * channels);
  Real* reals = scratch<Real, 2>(3 * channels);
  double *shift = doubles, *sum = doubles + channels, *square = doubles + 2 * channels;
  Real *sign = reals, *best = reals + channels, *buffer = reals + 2 * channels;
  const bool wanted = call.extremum != nullptr;
  int32_t* place = wanted ? call.place + at * channels : nullptr;
  const auto moments = [&](const Steps<const Io>& from, const Maps& of, double* mean, double* moment,
                           const auto& also) {
    const Io* sample = from[t] + of.at(n, 0, 0);
    std::copy_n(sample, channels, shift);
    std::fill_n(sum, 2 * channels, 0.0);
    for (int64_t pixel = 0; pixel < of.pixels(); ++pixel) {
      const Real* values = as_real(sample + pixel * channels, channels, buffer);
      with_isa<pixel_moments<Real>>(channels, values, static_cast<const double*>(shift), sum, square);
      also(int32_t(pixel), values);
    }
    for (int64_t c = 0; c < channels; ++c) {
      mean[at * channels + c] = shift[c] + sum[c] / double(of.pixels());
      if (moment != nullptr) moment[at * channels + c] = square[c] - sum[c] * (sum[c] / double(of.pixels()));
    }
  };
  for (int64_t c = 0; wanted && c < channels; ++c) {
    const Real gamma = call.gamma == nullptr ? Real(1) : call.gamma[c];
    sign[c] = sign_of(gamma);
    place[c] = 0;
  }
  const auto meet = [&](int32_t pixel, const Real* values) {
    if (!wanted) return;
    if (pixel == 0)
      for (int64_t c = 0; c < channels; ++c) best[c] = sign[c] * values[c];
    with_isa<pixel_extrema<Real>>(channels, pixel, values, static_cast<const Real*>(sign), best, place);
  };
  if (call.pool == 1) {
    moments(call.z, maps, call.mean, call.moment, meet);
    std::copy_n(call.mean + at * channels, channels, call.pooled_mean + at * channels);
  } else {
    moments(call.z, maps, call.mean, call.moment, [](int32_t, const Real*) {});
    with_isa<pool_sample<Real, Io>>(maps, call.pool, call.z[t] + maps.at(n, 0, 0),
                                    call.pooled[t] + p_maps.at(n, 0, 0));
    moments({call.pooled.data, call.pooled.stride}, p_maps, call.pooled_mean, nullptr, meet);
  }
  const Steps<const Io> p = call.pool == 1 ? call.z : Steps<const Io>{call.pooled.data, call.pooled.stride};
  for (int64_t c = 0; wanted && c < channels; ++c)
    call.extremum[at * channels + c] = Real(p[t][p_maps.at(n, c, place[c])]);
}

// SA's descriptors of neighbouring pixels of one sample.
template <class Io, class Real>
void squeeze_pixels(const SqueezeCall<Io, Real>& call, int64_t n, int64_t first, int64_t count) {
  const Maps& maps = call.maps;
  const int64_t channels = maps.channels, at = n * maps.pixels() + first;
  constexpr Real kLowest = -std::numeric_limits<Real>::infinity();
  if (!maps.channels_last) {
    Real *total = call.mean + at, *best = call.extremum + at;
    int32_t* place = call.place + at;
    alignas(64) Real sum[kPixels], buffer[kPixels];
    std::fill_n(total, count, Real(0));
    std::fill_n(best, count, kLowest);
    std::fill_n(place, count, 0);
    for (int64_t t = 0; t < maps.steps; ++t) {
      std::fill_n(sum, count, Real(0));
      const Real *a = call.affine.a + call.affine.at(t, n), *b = call.affine.b + call.affine.at(t, n);
      const int32_t there = int32_t(t * channels);
      with_planes(maps, [&]<bool, int kSize>() {
        if constexpr (kSize > 0) {
          const int64_t values = channels * kSize;
          const Real* p = as_real(call.p[t] + maps.at(n, 0, 0), values, scratch<Real, 0>(values));
          with_isa<squeeze_small_planes<Real, kSize>>(channels, p, a, b, there, &sum[0], best, place);
        } else {
          for (int64_t c = 0; c < channels; ++c) {
            const Real* p = as_real(call.p[t] + maps.at(n, c, first), count, buffer);
            with_isa<squeeze_row<Real, false>>(count, p, a + c, b + c, there + int32_t(c), &sum[0], best,
                                               place);
          }
        }
      });
      for (int64_t i = 0; i < count; ++i) total[i] += sum[i];
    }
    for (int64_t i = 0; i < count; ++i) total[i] /= Real(maps.steps * channels);
    return;
  }
  Real* reals = scratch<Real, 3>(3 * channels);
  Real *sum = reals, *best = reals + channels, *buffer = reals + 2 * channels;
  int32_t* when = scratch<int32_t, 0>(channels);
  for (int64_t i = 0; i < count; ++i) {
    std::fill_n(sum, channels, Real(0));
    std::fill_n(best, channels, kLowest);
    std::fill_n(when, channels, 0);
    for (int64_t t = 0; t < maps.steps; ++t) {
      const Real* p = as_real(call.p[t] + maps.at(n, 0, first + i), channels, buffer);
      const int64_t of = call.affine.at(t, n);
      with_isa<squeeze_row<Real, true>>(channels, p, call.affine.a + of, call.affine.b + of, int32_t(t), sum,
                                        best, when);
    }
    double total = 0;
    Extremum<Real> most{best[0], int32_t(when[0] * channels)};
    for (int64_t c = 0; c < channels; ++c) {
      total += sum[c];
      most.meet(best[c], int32_t(when[c] * channels + c));
    }
    call.mean[at + i] = Real(total / double(maps.steps * channels));
    call.extremum[at + i] = most.value;
    call.place[at + i] = most.place;
  }
}

template <class Io, class Real>
void project_sample(const ProjectCall<Io, Real>& call, int64_t t, int64_t n) {
  const Maps& maps = call.maps;
  const int64_t channels = maps.channels, pixels = maps.pixels();
  double* sum = call.sum + (t * maps.samples + n) * channels;
  const Real* weight = call.weight + n * pixels;
  if (maps.channels_last) {
    std::fill_n(sum, channels, 0.0);
    Real* buffer = scratch<Real, 0>(channels);
    for (int64_t pixel = 0; pixel < pixels; ++pixel)
      with_isa<project_pixel<Real>>(channels, as_real(call.p[t] + maps.at(n, 0, pixel), channels, buffer),
                                    weight[pixel], call.centre, sum);
    return;
  }
  const Real* p =
      as_real(call.p[t] + maps.at(n, 0, 0), channels * pixels, scratch<Real, 0>(channels * pixels));
  with_planes(maps, [&]<bool, int kSize>() {
    if constexpr (kSize > 0)
      with_isa<project_small_planes<Real, kSize>>(channels, p, weight, call.centre, sum);
    else
      with_isa<project_planes<Real>>(channels, pixels, p, weight, call.centre, sum);
  });
}

template <class Real>
inline constexpr Real kNone[1] = {0};

// The numbers of pass C at a piece: of the plane c, or, channels innermost, of all channels of one pixel.
template <class Io, class Real>
PieceGradient<Real> piece_of(const GradCall<Io, Real>& call, int64_t t, int64_t n, int64_t c, int64_t pixel,
                             const Real* zeros, const int32_t* nowhere) {
  const Maps maps = call.maps.pooled(call.pool);
  const int64_t at = call.affine.at(t, n) + c, plane = (t * maps.samples + n) * maps.channels + c;
  const int64_t of = n * maps.pixels() + pixel;
  const bool gated = call.spatial != nullptr, described = call.uniform != nullptr;
  return {call.affine.a + at,
          call.affine.b + at,
          gated ? call.spatial + of : nullptr,
          gated ? call.level + of : nullptr,
          gated ? call.point + of : nullptr,
          described ? call.uniform + plane : zeros,
          described ? call.spike + plane : zeros,
          gated ? call.spatial_place + of : nullptr,
          described ? call.place + plane : nowhere,
          int32_t(t * maps.channels + c),
          int32_t(pixel),
          call.floor,
          Real(1) / Real(call.pool * call.pool)};
}

// Writes a row of shares, through the norm where it has batch statistics.
template <bool kLast, class Io, class Real>
void write_gradient(const GradCall<Io, Real>& call, int64_t count, const Real* share, int64_t c,
                    const Io* z_at, Real* z_buffer, Real* buffer, Io* to) {
  const Real* result = share;
  if (call.offset != nullptr) {
    Real* direct = buffer;
    if constexpr (std::is_same_v<Io, Real>) direct = to;
    with_isa<norm_row<Real, kLast>>(count, share, as_real(z_at, count, z_buffer), call.offset + c,
                                    call.slope + c, call.centre + c, direct);
    if constexpr (std::is_same_v<Io, Real>) return;
    result = direct;
  }
  with_isa<convert_row<Real, Io>>(count, result, to);
}

template <class Io, class Real>
void gradient_of_planes(const GradCall<Io, Real>& call, int64_t t, int64_t n, int64_t c, int64_t count) {
  const Maps& maps = call.maps;
  const int64_t pixels = maps.pixels(), values = count * pixels, from = maps.at(n, c, 0);
  static const int32_t nowhere = -1;
  const auto piece = piece_of(call, t, n, c, 0, kNone<Real>, &nowhere);
  NormGradient<Real> norm{};
  if (call.offset != nullptr) norm = {call.offset + c, call.slope + c, call.centre + c};
  const Real* p = as_real(call.p[t] + from, values, scratch<Real, 0>(values));
  const Real* up = as_real(call.up[t] + from, values, scratch<Real, 1>(values));
  Real* grad = scratch<Real, 4>(values);
  if constexpr (std::is_same_v<Io, Real>) grad = call.grad_z[t] + from;
  with_flags(call.spatial != nullptr, call.uniform != nullptr, [&]<bool kSpatial, bool kDescribed>() {
    with_planes(maps, [&]<bool, int kPixels>() {
      if constexpr (kPixels > 0)
        if (call.offset != nullptr)
          return with_isa<gradient_small_planes<Real, kSpatial, kDescribed, kPixels>>(count, piece, norm, p,
                                                                                      up, grad);
      with_isa<gradient_planes<Real, kSpatial>>(count, pixels, piece, kDescribed, norm, p, up,
                                                scratch<Real, 2>(pixels), grad);
    });
  });
  if constexpr (!std::is_same_v<Io, Real>)
    with_isa<convert_row<Real, Io>>(values, static_cast<const Real*>(grad), call.grad_z[t] + from);
}

template <class Io, class Real>
void gradient_of_pooled(const GradCall<Io, Real>& call, int64_t t, int64_t n, int64_t c) {
  const Maps &maps = call.maps, p_maps = maps.pooled(call.pool);
  const int64_t pixels = p_maps.pixels(), from = p_maps.at(n, c, 0), width = maps.width;
  static const int32_t nowhere = -1;
  const auto piece = piece_of(call, t, n, c, 0, kNone<Real>, &nowhere);
  const Real* p = as_real(call.p[t] + from, pixels, scratch<Real, 0>(pixels));
  const Real* up = as_real(call.up[t] + from, pixels, scratch<Real, 1>(pixels));
  Real* share = scratch<Real, 2>(pixels);
  with_flags(call.spatial != nullptr, [&]<bool kSpatial>() {
    with_isa<gradient_row<Real, false, kSpatial>>(pixels, piece, p, up, share);
  });
  if (*piece.place >= 0) share[*piece.place] += *piece.spike;
  const Io* z = call.z[t] + maps.at(n, c, 0);
  Io* to = call.grad_z[t] + maps.at(n, c, 0);
  const int64_t longest = std::max(maps.pixels(), width);
  Real *z_buffer = scratch<Real, 3>(longest), *buffer = scratch<Real, 4>(longest);
  Real* wide = scratch<Real, 5>(width);
  for (int64_t y = 0; y < maps.height; ++y) {
    if (y >= p_maps.height * call.pool)
      std::fill_n(wide, width, Real(0));
    else if (y % call.pool == 0)
      with_isa<spread_row<Real, Real>>(p_maps.width, width, call.pool, piece.factor,
                                       static_cast<const Real*>(share + y / call.pool * p_maps.width), wide);
    write_gradient<false>(call, width, static_cast<const Real*>(wide), c, z + y * width, z_buffer, buffer,
                          to + y * width);
  }
}

// Channels innermost: the rows of windows at height y of one step of one sample.
template <class Io, class Real>
void gradient_of_rows(const GradCall<Io, Real>& call, int64_t t, int64_t n, int64_t y) {
  const Maps &maps = call.maps, p_maps = maps.pooled(call.pool);
  const int64_t channels = maps.channels, pool = call.pool;
  Real* reals = scratch<Real, 0>(5 * channels);
  Real *share = reals, *p_buffer = reals + channels, *up_buffer = reals + 2 * channels;
  Real *z_buffer = reals + 3 * channels, *buffer = reals + 4 * channels;
  static thread_local std::vector<Real> zeros;
  static thread_local std::vector<int32_t> nowhere;
  zeros.assign(channels, 0);
  nowhere.assign(channels, -1);
  const auto write = [&](int64_t row, int64_t column) {
    const int64_t at = maps.at(n, 0, row * maps.width + column);
    write_gradient<true>(call, channels, static_cast<const Real*>(share), 0, call.z[t] + at, z_buffer, buffer,
                         call.grad_z[t] + at);
  };
  const bool whole = y < p_maps.height;
  for (int64_t x = 0; whole && x < p_maps.width; ++x) {
    const int64_t pixel = y * p_maps.width + x, from = p_maps.at(n, 0, pixel);
    const auto piece = piece_of(call, t, n, 0, pixel, zeros.data(), nowhere.data());
    const Real* p = as_real(call.p[t] + from, channels, p_buffer);
    const Real* up = as_real(call.up[t] + from, channels, up_buffer);
    with_flags(call.spatial != nullptr, [&]<bool kSpatial>() {
      with_isa<gradient_row<Real, true, kSpatial>>(channels, piece, p, up, share);
    });
    if (pool > 1) with_isa<scale_row<Real>>(channels, piece.factor, share);
    for (int64_t i = 0; i < pool * pool; ++i) write(y * pool + i / pool, x * pool + i % pool);
  }
  std::fill_n(share, channels, Real(0));  // beyond the last window
  for (int64_t row = y * pool; row < std::min((y + 1) * pool, maps.height); ++row)
    for (int64_t column = whole ? p_maps.width * pool : 0; column < maps.width; ++column) write(row, column);
}

template <class Work>
void work_alone(const Work& work, int64_t task) {
  work(Alone{}, task);
}

struct CpuSeamDriver {
  // The works on small tensors: a thread is a team.
  template <class Work>
  static void each(const Tensor&, int64_t tasks, const Work& work) {
    for (int64_t i = 0; i < tasks; ++i) work(i);
  }

  template <class Work>
  static void teams(const Tensor&, int64_t tasks, int64_t values, const Work& work) {
    over_tasks(tasks, values, [&](int64_t i) { with_isa<work_alone<Work>>(work, i); });
  }

  template <class Io, class Real>
  static void statistics(const Tensor&, const StatisticsCall<Io, Real>& call) {
    const Maps& maps = call.maps;
    if (maps.channels_last)
      return over_tasks(maps.steps * maps.samples, maps.sample_size(),
                        [&](int64_t i) { statistics_of_sample(call, i); });
    over_bundles(maps, [&](int64_t t, int64_t n, int64_t c, int64_t count) {
      if (call.pool == 1) return statistics_of_planes(call, t, n, c, count);
      for (int64_t k = 0; k < count; ++k) statistics_of_pooled(call, t, n, c + k);
    });
  }

  template <class Io, class Real>
  static void squeeze(const Tensor&, const SqueezeCall<Io, Real>& call) {
    const Maps& maps = call.maps;
    const int64_t blocks = (maps.pixels() + kPixels - 1) / kPixels;
    over_tasks(maps.samples * blocks, maps.steps * maps.channels * kPixels, [&](int64_t i) {
      const int64_t first = i % blocks * kPixels;
      squeeze_pixels(call, i / blocks, first, std::min(kPixels, maps.pixels() - first));
    });
  }

  template <class Io, class Real>
  static void project(const Tensor&, const ProjectCall<Io, Real>& call) {
    const Maps& maps = call.maps;
    over_tasks(maps.steps * maps.samples, maps.sample_size(),
               [&](int64_t i) { project_sample(call, i / maps.samples, i % maps.samples); });
  }

  template <class Io, class Real>
  static void gradient(const Tensor&, const GradCall<Io, Real>& call) {
    const Maps& maps = call.maps;
    if (!maps.channels_last)
      return over_bundles(maps, [&](int64_t t, int64_t n, int64_t c, int64_t count) {
        if (call.pool == 1) return gradient_of_planes(call, t, n, c, count);
        for (int64_t k = 0; k < count; ++k) gradient_of_pooled(call, t, n, c + k);
      });
    const int64_t rows = (maps.height + call.pool - 1) / call.pool;
    over_tasks(maps.steps * maps.samples * rows, maps.width * call.pool * maps.channels, [&](int64_t i) {
      gradient_of_rows(call, i / rows / maps.samples, i / rows % maps.samples, i % rows);
    });
  }

  // Ranges that a sample's neurons are cut into: enough for threads where samples are few.
  static int64_t ranges_of(const Maps& maps) {
    const int64_t tiles = (maps.sample_size() + kTile - 1) / kTile;
    return std::clamp<int64_t>(16 / std::max<int64_t>(1, maps.samples), 1, tiles);
  }

  // f(task, begin, end) for every range of neurons of every sample.
  template <class F>
  static void over_ranges(const Maps& maps, const F& f) {
    const int64_t size = maps.sample_size(), tiles = (size + kTile - 1) / kTile, ranges = ranges_of(maps);
    over_tasks(maps.samples * ranges, maps.steps * size / ranges, [&](int64_t task) {
      const int64_t range = task % ranges, start = task / ranges * size;
      f(task, start + tiles * range / ranges * kTile,
        start + std::min(tiles * (range + 1) / ranges * kTile, size));
    });
  }

  template <class Cell, class Io, class Real>
  static void forward(const Tensor&, const SeamForward<Cell, Io, Real>& call, const Firing& firing) {
    const SeamRows<Io, Real> x(call.x);
    const MemorySink<Io, Real> out(call.out);
    const ForwardTiles<Cell, Real> rows{call.shape, call.neuron,      &x,       &out, call.v0,
                                        call.v,     call.checkpoints, call.bits};
    over_ranges(call.x.maps,
                [&](int64_t, int64_t begin, int64_t end) { forward_tiles(rows, firing, begin, end); });
  }

  template <class Cell, class Io, class Real>
  static void backward(const Tensor&, const SeamBackward<Cell, Io, Real>& call, const Firing& firing) {
    const SeamSink<Io, Real>& sink = call.grad_x;
    const Maps& maps = sink.maps;
    const SeamRows<Io, Real> computed(call.x);
    const MemorySource<Io, Real> kept({call.x.membrane.data, call.x.membrane.stride}),
        grad_out(call.grad_out);
    const Source<Real>* x = &computed;
    if (call.x.membrane.data != nullptr) x = &kept;
    const bool spatial = sink.spatial != nullptr;
    const int64_t ranges = ranges_of(maps), planes = maps.planes(), stride = maps.samples * maps.channels;
    // [2, T, N, C]: of a sample with one range in their place, else of each range on its own.
    std::unique_ptr<double[]> by_range;
    if (ranges > 1) by_range = std::make_unique_for_overwrite<double[]>(ranges * 2 * planes);
    double* sums = ranges > 1 ? by_range.get() : sink.sums;
    std::vector<std::vector<double>> by_pixel(maps.samples * ranges);
    over_ranges(maps, [&](int64_t task, int64_t begin, int64_t end) {
      double* sum = sums + task % ranges * 2 * planes + task / ranges * maps.channels;
      for (int64_t t = 0; t < 2 * maps.steps; ++t) std::fill_n(sum + t * stride, maps.channels, 0.0);
      by_pixel[task].assign(spatial ? maps.pixels() : 0, 0.0);
      const SeamGradientRows<Io, Real> grad_x(sink, {sum, sum + planes, stride, by_pixel[task].data()});
      if (sink.up.data == nullptr) return grad_x.sum(call.grad_out, begin, end);
      backward_tiles(BackwardTiles<Cell, Real>{call.shape, call.neuron, &grad_out, call.grad_v, x, call.v0,
                                               call.checkpoints, call.bits, &grad_x, call.grad_v0, call.sums},
                     firing, begin, end);
    });
    if (ranges == 1 && !spatial) return;
    over_tasks(maps.samples, ranges * maps.steps * maps.channels, [&](int64_t n) {
      for (int64_t t = 0; ranges > 1 && t < 2 * maps.steps; ++t)
        for (int64_t at = t * stride + n * maps.channels, c = 0; c < maps.channels; ++c) {
          double sum = 0;
          for (int64_t r = 0; r < ranges; ++r) sum += sums[r * 2 * planes + at + c];
          sink.sums[at + c] = sum;
        }
      for (int64_t pixel = 0; spatial && pixel < maps.pixels(); ++pixel) {
        double sum = 0;
        for (int64_t r = 0; r < ranges; ++r) sum += by_pixel[n * ranges + r][pixel];
        sink.grad_spatial[n * maps.pixels() + pixel] = Real(sum);
      }
    });
  }

  template <class Real>
  static void reduce(const Tensor&, const Shape& shape, int constants, const Real* sums, Real* result) {
    reduce_by_channel(shape, constants, sums, result);
  }
};

}  // namespace
}  // namespace attsnn

STABLE_TORCH_LIBRARY_IMPL(attsnn, CPU, m) { attsnn::implement_seams<attsnn::CpuSeamDriver>(m); }
