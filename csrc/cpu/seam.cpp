// The seams on the CPU. Work is cut by shape, never by threads: whole planes, pixels, or ranges of one
// sample's neurons, each summed in a fixed order.
#include <torch/csrc/stable/library.h>

#include <memory>
#include <vector>

#include "core/neurons.h"
#include "cpu/over_tasks.h"
#include "cpu/reduce.h"
#include "cpu/seam_gradient.h"
#include "cpu/seam_squeeze.h"
#include "cpu/seam_statistics.h"
#include "cpu/seam_tiles.h"
#include "cpu/team.h"
#include "tensor/seam_op.h"

namespace attsnn {
namespace {

constexpr int64_t kBundle = 2048;  // values of small planes that are walked together

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

template <class Work>
void on_one_thread(const Work& work, int64_t task) {
  work(OneThread{}, task);
}

struct CpuSeamDriver {
  static constexpr int64_t kCountCopies = 1;

  // The works on small tensors: a thread is a team.
  template <class Work>
  static void each(const Tensor&, int64_t tasks, const Work& work) {
    for (int64_t i = 0; i < tasks; ++i) work(i);
  }

  template <class Work>
  static void teams(const Tensor&, int64_t tasks, int64_t values, const Work& work) {
    over_tasks(tasks, values, [&](int64_t i) { with_isa<on_one_thread<Work>>(work, i); });
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
    const int64_t blocks = (maps.pixels() + kDescribed - 1) / kDescribed;
    over_tasks(maps.samples * blocks, maps.steps * maps.channels * kDescribed, [&](int64_t i) {
      const int64_t first = i % blocks * kDescribed;
      squeeze_pixels(call, i / blocks, first, std::min(kDescribed, maps.pixels() - first));
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
    const ForwardTiles<Cell, Real> rows{call.shape, call.neuron,      &x,        &out,       call.v0,
                                        call.v,     call.checkpoints, call.bits, call.counts};
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
