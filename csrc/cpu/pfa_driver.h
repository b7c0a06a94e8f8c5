// Projected full attention on the CPU: which loops follow one another, over the threads. What a sample needs
// for itself is a task, or where samples are fewer than threads, a range of its rows: ranges follow from the
// shape alone, and so do the bits. Compiled by type, in cpu/pfa_<type>.cpp.
#pragma once
#include <memory>

#include "cpu/pfa_maps.h"
#include "cpu/pfa_reduce.h"
#include "cpu/pfa_tasks.h"

namespace attsnn {

// Of groups of rows, enough for threads where samples are few.
struct Ranges {
  int64_t groups, count;
  explicit Ranges(const PfaShape& shape)
      : groups(shape.groups()),
        count(std::clamp<int64_t>(16 / std::max<int64_t>(1, shape.maps.samples), 1, shape.groups())) {}
  int64_t begin(int64_t k) const { return groups * k / count; }
};

// of_ranges(n, first, last) for all ranges of all samples; behind those of a sample of_sample(n), and then
// again(n, first, last). Sample by sample, whose data then stay in the cache, where there are enough of them
// for the threads.
template <class Range, class Sample, class Again>
void over_samples(const PfaShape& shape, int64_t ranges, const Range& of_ranges, const Sample& of_sample,
                  int64_t again_ranges, const Again& again) {
  const int64_t samples = shape.maps.samples, values = shape.maps.steps * shape.maps.sample_size();
  if (samples >= int64_t(torch::stable::get_num_threads()))
    return over_tasks(samples, values, [&](int64_t n) {
      of_ranges(n, 0, ranges);
      of_sample(n);
      if (again_ranges > 0) again(n, 0, again_ranges);
    });
  const auto split = [&](int64_t count, const auto& f) {
    over_tasks(samples * count, values / std::max<int64_t>(1, count),
               [&](int64_t i) { f(i / count, i % count, i % count + 1); });
  };
  split(ranges, of_ranges);
  over_tasks(samples, values, of_sample);
  split(again_ranges, again);
}

// The temporal map's weight [R, C], its rows padded.
template <class Real>
std::vector<Real> padded_temporal(const PfaShape& shape, const Real* weight) {
  const int64_t width = padded<Real>(shape.maps.channels);
  std::vector<Real> result(shape.rank * width);
  pad_rows(shape.rank, shape.maps.channels, weight, width, result.data());
  return result;
}

template <class Real>
PfaSmall<const Real> constant(const PfaSmall<Real>& small) {
  return {small.by_pixel, small.by_channel, small.spatial, small.temporal, small.channel};
}

template <class Io, class Real>
void pfa_forward_on_cpu(const PfaForward<Io, Real>& call) {
  const PfaShape& shape = call.shape;
  const Maps& maps = shape.maps;
  const int64_t steps = maps.steps, pixels = maps.pixels(), channels = maps.channels, rank = shape.rank;
  const PfaSmall<const Real> small = constant(call.small);
  const std::vector<Real> temporal = padded_temporal(shape, call.weights.temporal);
  const Ranges ranges(shape);

  const auto means = [&](int64_t n, int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      Real* by_pixel = call.small.by_pixel + (n * steps + t) * pixels;
      Real* by_channel = call.small.by_channel + (n * steps + t) * channels;
      if (maps.channels_last) std::swap(by_pixel, by_channel);
      Real* staged = scratch<Real, 5>((kRowsPerByte + 1) * kStaged);
      with_vectors<MeansLoops<Io, Real>>(call.x.at(t, n), shape.rows(), shape.columns(), by_pixel, by_channel,
                                         staged);
    }
  };
  const bool still = call.x.step == 0 && steps > 1;  // the same at every step: read once
  const auto factors = [&](int64_t n) {
    for (int64_t t = 1; still && t < steps; ++t) {
      std::copy_n(small.by_pixel + n * steps * pixels, pixels,
                  call.small.by_pixel + (n * steps + t) * pixels);
      std::copy_n(small.by_channel + n * steps * channels, channels,
                  call.small.by_channel + (n * steps + t) * channels);
    }
    const Means<Real> of_sample = means_of(shape, small, n);
    with_vectors<MapsLoops<Real>>(
        &shape, &call.weights, temporal.data(), &of_sample, call.small.spatial + n * rank * pixels,
        call.small.temporal + n * steps * rank, call.small.channel + n * channels * rank,
        scratch<Real, 6>(room_for_maps<Real>(shape)));
  };
  Past past = past_the_cache(shape, call.y);
  if (call.bits != nullptr && past == Past::kRows) past = Past::kNever;  // for bits y is read again
  const auto apply = [&](int64_t n, int64_t first, int64_t last) {
    const Factors<Real> of_sample = factors_of(shape, call.scale, small, n);
    with_vectors<ApplyLoops<Io, Real>>(&call, &of_sample, n, ranges.begin(first), ranges.begin(last), past,
                                       scratch<Real, 5>(kRowsPerByte * kStaged));
  };
  over_samples(shape, still ? 1 : steps, means, factors, ranges.count, apply);
}

template <class Io, class Real>
void pfa_backward_on_cpu(const PfaBackward<Io, Real>& call) {
  const PfaShape& shape = call.shape;
  const Maps& maps = shape.maps;
  const int64_t steps = maps.steps, samples = maps.samples, pixels = maps.pixels();
  const int64_t channels = maps.channels, rank = shape.rank, rows = shape.rows(), columns = shape.columns();
  const int64_t ranks = padded<Real>(rank), width = padded<Real>(columns);
  const std::vector<Real> temporal = padded_temporal(shape, call.weights.temporal);
  const Ranges ranges(shape);
  // Of every range: the sums by column, by row and by step.
  const int64_t by_row = rank * width, by_step = by_row + rows * ranks, size = by_step + steps * ranks;
  const auto of_ranges = std::make_unique_for_overwrite<Real[]>(samples * ranges.count * size);
  // Of every sample: the gradients of the means and of the weights.
  const int64_t of_means = steps * (pixels + channels);
  const auto means_back = std::make_unique_for_overwrite<Real[]>(samples * of_means);
  const int64_t sizes[] = {rank * steps * shape.taps(), rank, rank * channels, rank, rank * steps, rank};
  int64_t of_weights = 0;
  for (const int64_t each : sizes) of_weights += each;
  const auto by_sample = std::make_unique_for_overwrite<Real[]>(samples * of_weights);

  const auto reduce = [&](int64_t n, int64_t first, int64_t last) {
    const Factors<Real> factors = factors_of(shape, call.scale, call.small, n);
    Real* across = scratch<Real, 3>(columns * ranks);
    pad_transposed(rank, columns, factors.column, width, ranks, across);
    for (int64_t k = first; k < last; ++k) {
      Real* to = of_ranges.get() + (n * ranges.count + k) * size;
      const FactorSums<Real> sums{to, to + by_row, to + by_step};
      with_vectors<ReduceLoops<Io, Real>>(&call, &factors, static_cast<const Real*>(across), &sums, n,
                                          ranges.begin(k), ranges.begin(k + 1),
                                          scratch<Real, 5>(size_of_tile(factors)));
    }
  };
  const auto maps_back = [&](int64_t n) {
    Real* sum = of_ranges.get() + n * ranges.count * size;
    for (int64_t k = 1; k < ranges.count; ++k)
      with_isa<add_row<Real>>(size, static_cast<const Real*>(sum + k * size), sum);
    Real* spatial = scratch<Real, 7>(rank * pixels);
    Real* of_channel = scratch<Real, 8>(channels * rank);
    Real* of_step = scratch<Real, 9>(steps * rank);
    if (maps.channels_last) {
      pad_transposed(pixels, rank, static_cast<const Real*>(sum + by_row), ranks, pixels, spatial);
      pad_transposed(rank, channels, static_cast<const Real*>(sum), width, rank, of_channel);
    } else {
      for (int64_t r = 0; r < rank; ++r) std::copy_n(sum + r * width, pixels, spatial + r * pixels);
      for (int64_t c = 0; c < channels; ++c)
        std::copy_n(sum + by_row + c * ranks, rank, of_channel + c * rank);
    }
    for (int64_t t = 0; t < steps; ++t)
      for (int64_t r = 0; r < rank; ++r) of_step[t * rank + r] = sum[by_step + t * ranks + r] * call.scale;
    const Means<Real> means = means_of(shape, call.small, n);
    const PfaSmall<const Real> factors{nullptr, nullptr, call.small.spatial + n * rank * pixels,
                                       call.small.temporal + n * steps * rank,
                                       call.small.channel + n * channels * rank};
    Real* next = by_sample.get() + n * of_weights;
    Real* parts[6];
    for (int i = 0; i < 6; ++i) parts[i] = next, next += sizes[i];
    const PfaWeights<Real> grads{parts[0], parts[1], parts[2], parts[3], parts[4], parts[5]};
    const typename MapsBackLoops<Real>::Gradients of_factors{spatial, of_step, of_channel};
    Real* to_means = means_back.get() + n * of_means;
    with_vectors<MapsBackLoops<Real>>(&shape, &call.weights, temporal.data(), &means, &factors, &of_factors,
                                      to_means, to_means + steps * pixels, &grads,
                                      scratch<Real, 6>(room_for_maps<Real>(shape)));
  };
  const bool wanted = call.grad_x.data != nullptr;
  const Past past = past_the_cache(shape, call.grad_x);
  const auto gradient = [&](int64_t n, int64_t first, int64_t last) {
    Factors<Real> factors{};
    if (call.fusion != Fusion::kAdd) factors = factors_of(shape, call.scale, call.small, n);
    const Real *by_pixel = means_back.get() + n * of_means, *by_channel = by_pixel + steps * pixels;
    if (maps.channels_last) std::swap(by_pixel, by_channel);
    const MeansBack<Real> means{by_pixel, by_channel};
    with_vectors<GradientLoops<Io, Real>>(&call, &factors, &means, n, ranges.begin(first), ranges.begin(last),
                                          past, scratch<Real, 5>(3 * kRowsPerByte * kStaged));
  };
  over_samples(shape, ranges.count, reduce, maps_back, wanted ? ranges.count : 0, gradient);

  Real* const totals[] = {call.grads.spatial,       call.grads.spatial_bias, call.grads.temporal,
                          call.grads.temporal_bias, call.grads.channel,      call.grads.channel_bias};
  for (int64_t i = 0, first = 0; i < 6; first += sizes[i++])
    for (int64_t at = 0; at < sizes[i]; ++at) {
      double sum = 0;
      for (int64_t n = 0; n < samples; ++n) sum += double(by_sample[n * of_weights + first + at]);
      totals[i][at] = Real(sum);
    }
}

}  // namespace attsnn
