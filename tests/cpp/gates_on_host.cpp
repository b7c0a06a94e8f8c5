// The works on a seam's small tensors, on a CUDA block run on the host against the same works in plain
// loops: sums agree to rounding, the places of maxima exactly. `gates_on_host CASE` runs one named case,
// without a name it lists them.
#include "cuda_on_host.h"  // first: the kernels need its words

#include "cuda/gates_kernel.cuh"
#include "cuda/reduce.cuh"
#include "seam_inputs.h"

namespace {

using namespace attsnn;

constexpr double kExact = 1e-12;

struct Plain {
  template <class F>
  void each(int64_t count, const F& f) const {
    for (int64_t i = 0; i < count; ++i) f(i);
  }
  template <class Term, class Finish>
  void rows(int64_t count, int64_t length, const Term& term, const Finish& finish) const {
    for (int64_t row = 0; row < count; ++row) {
      decltype(term(row, row)) sum = 0;
      for (int64_t i = 0; i < length; ++i) sum += term(row, i);
      finish(row, sum);
    }
  }
  template <class Term, class Finish>
  void columns(int64_t length, int64_t count, const Term& term, const Finish& finish) const {
    rows(count, length, [&](int64_t column, int64_t i) { return term(i, column); }, finish);
  }
  template <class Value, class Finish>
  void peaks(int64_t count, int64_t length, const Value& value, const Finish& finish) const {
    for (int64_t row = 0; row < count; ++row) {
      Extremum<decltype(value(row, row))> most{value(row, 0), 0};
      for (int64_t i = 1; i < length; ++i) most.meet(value(row, i), int32_t(i));
      finish(row, most);
    }
  }
  template <class Target, class F>
  void scatter(int64_t count, const Target&, const F& f) const {
    each(count, f);
  }
};

struct Sizes {
  int64_t steps, samples, channels, width;
  bool time, channel;
  int64_t planes() const { return steps * samples * channels; }
};

template <class T>
void near(const char* what, const Buffer<T>& ours, const Buffer<T>& wanted, double error) {
  for (int64_t i = 0; i < ours.size(); ++i)
    close(what, i, double(ours[i]), double(wanted[i]), error * (1 + std::fabs(double(wanted[i]))));
}

// What a work writes, on one team or the other.
template <class Real>
struct Written {
  Buffer<Real> gate, inputs, hidden, by_sum, by_hidden, by_inputs, by_reduce, by_expand;
  Buffer<int32_t> place;
  Written(const Sizes& s, int64_t size)
      : gate(s.samples * size, false, Real(NAN)),
        inputs(2 * s.samples * size, false, Real(NAN)),
        hidden(2 * s.samples * s.width, false, Real(NAN)),
        by_sum(gate),
        by_hidden(hidden),
        by_inputs(inputs),
        by_reduce(size * s.width, false, Real(NAN)),
        by_expand(by_reduce),
        place(s.samples * size, false, -1) {}

  Gate<Real> of(const Sizes& s, int64_t size, const Buffer<Real>& reduce, const Buffer<Real>& expand) {
    Gate<Real> gate_of_all;
    gate_of_all.samples = s.samples;
    gate_of_all.size = size;
    gate_of_all.width = s.width;
    gate_of_all.reduce = reduce.data();
    gate_of_all.expand = expand.data();
    gate_of_all.gate = gate.data();
    gate_of_all.inputs = inputs.data();
    gate_of_all.hidden = hidden.data();
    gate_of_all.place = place.data();
    gate_of_all.by_sum = by_sum.data();
    gate_of_all.by_hidden = by_hidden.data();
    gate_of_all.by_inputs = by_inputs.data();
    gate_of_all.by_reduce = by_reduce.data();
    gate_of_all.by_expand = by_expand.data();
    return gate_of_all;
  }
};

template <class Real>
void gates(const Sizes& s) {
  const double error = sizeof(Real) == sizeof(double) ? kExact : 2e-5;
  const auto mean = normal<double>(s.planes(), 1), sums = normal<double>(2 * s.planes(), 2);
  const auto peak = normal<Real>(s.planes(), 3);
  const auto a = normal<Real>(s.channels, 4), b = normal<Real>(s.channels, 5);
  const auto t0 = normal<Real>(s.width * s.steps, 6), t1 = normal<Real>(s.width * s.steps, 7);
  const auto c0 = normal<Real>(s.width * s.channels, 8), c1 = normal<Real>(s.width * s.channels, 9);
  auto norm = normal<double>(4 * s.channels, 10);
  struct Result {
    Written<Real> time, channel;
    Buffer<Real> gated, planes;
    Buffer<double> by_norm;
  };
  const auto run = [&](const auto& teams) {
    const int64_t alike = s.time ? s.steps : 1;
    Result r{{s, s.steps},
             {s, s.channels},
             Buffer<Real>(2 * alike * s.samples * s.channels, false, Real(NAN)),
             Buffer<Real>(2 * s.planes(), false, Real(NAN)),
             Buffer<double>(2 * s.planes(), false, NAN)};
    Gates<Real> of{s.steps, s.samples, s.channels, mean.data(), peak.data(), {}, {}};
    if (s.time) of.time = r.time.of(s, s.steps, t0, t1);
    if (s.channel) of.channel = r.channel.of(s, s.channels, c0, c1);
    teams(s.samples, GatesForward<Real>{of, a.data(), b.data(), r.gated.data()});
    const NormNumbers<const double> numbers(norm.data(), s.channels);
    teams(s.samples, GatesBackward<Real>{of, sums.data(), numbers, 49, r.planes.data(), r.by_norm.data()});
    const GateWeights<Real> weights{of.time, of.channel};
    teams(weights.tasks(), weights);
    return r;
  };
  const Result ours = run([](int64_t n, const auto& work) { launch_teams(n, work, Stream{}); });
  const Result wanted = run([](int64_t n, const auto& work) {
    for (int64_t i = 0; i < n; ++i) work(Plain{}, i);
  });
  const auto compare = [&](bool there, const Written<Real>& x, const Written<Real>& y) {
    if (!there) return;
    near("gate", x.gate, y.gate, error);
    near("inputs", x.inputs, y.inputs, error);
    near("hidden", x.hidden, y.hidden, error);
    same("place", x.place, y.place);
    near("by_sum", x.by_sum, y.by_sum, error);
    near("by_hidden", x.by_hidden, y.by_hidden, error);
    near("by_inputs", x.by_inputs, y.by_inputs, error);
    near("by_reduce", x.by_reduce, y.by_reduce, error);
    near("by_expand", x.by_expand, y.by_expand, error);
  };
  compare(s.time, ours.time, wanted.time);
  compare(s.channel, ours.channel, wanted.channel);
  near("gated", ours.gated, wanted.gated, error);
  near("planes", ours.planes, wanted.planes, error);
  near("by_norm", ours.by_norm, wanted.by_norm, error);
}

void norm(int64_t rows, int64_t channels) {
  auto moments = normal<double>(2 * rows * channels, 1);
  for (double& moment : moments.memory) moment = std::fabs(moment);
  const auto sums = normal<double>(2 * rows * channels, 2);
  const auto weight = normal<float>(channels, 3), bias = normal<float>(channels, 4);
  const ChannelTiles tiles{rows, channels};
  struct Result {
    Buffer<double> totals, numbers, by_channel;
    Buffer<float> affine, batch, norm_grad, running;
    Buffer<int64_t> batches;
  };
  const auto run = [&](const auto& teams, const auto& each) {
    Result r{Buffer<double>(1 + 2 * channels, false, NAN),
             Buffer<double>(4 * channels, false, NAN),
             Buffer<double>(2 * channels, false, NAN),
             Buffer<float>(4 * channels, false, NAN),
             Buffer<float>(3 * channels, false, NAN),
             Buffer<float>(2 * channels, false, NAN),
             normal<float>(2 * channels, 5),
             Buffer<int64_t>(1, false, 41)};
    teams(tiles.count(), Totals{tiles, 9, moments.data(), moments.data() + rows * channels, r.totals.data()});
    float* affine = r.affine.data();
    NormAffine<float> make{2,
                           1e-5,
                           r.totals.data(),
                           r.totals.data() + 1,
                           r.totals.data() + 1 + channels,
                           weight.data(),
                           bias.data(),
                           affine,
                           affine + channels,
                           affine + 2 * channels,
                           affine + 3 * channels,
                           {}};
    make.numbers = {r.numbers.data(), channels};
    each(channels, make);
    float* running = r.running.data();
    each(channels, RunningStatistics<float>{affine + 2 * channels, affine + 3 * channels, 0.1f, running,
                                            running + channels, r.batches.data()});
    const NormNumbers<const double> numbers(r.numbers.data(), channels);
    teams(2 * tiles.count(), NormSums<float>{tiles, sums.data(), numbers, r.by_channel.data(),
                                             r.norm_grad.data(), r.norm_grad.data() + channels});
    each(channels,
         BatchGradient<float>{channels, r.by_channel.data(), r.totals.data(), numbers, r.batch.data()});
    return r;
  };
  const Result ours = run([](int64_t n, const auto& work) { launch_teams(n, work, Stream{}); },
                          [](int64_t n, const auto& work) { launch_each(n, work, Stream{}); });
  const auto alone = [](int64_t n, const auto& work) {
    for (int64_t i = 0; i < n; ++i) work(Plain{}, i);
  };
  const Result wanted = run(alone, [](int64_t n, const auto& work) {
    for (int64_t i = 0; i < n; ++i) work(i);
  });
  near("totals", ours.totals, wanted.totals, kExact);
  near("numbers", ours.numbers, wanted.numbers, 1e-6);  // one of them is rounded to float
  near("by_channel", ours.by_channel, wanted.by_channel, 1e-11);
  near("affine", ours.affine, wanted.affine, 1e-6);
  near("batch", ours.batch, wanted.batch, 1e-6);
  near("running", ours.running, wanted.running, 1e-6);
  near("batches", ours.batches, wanted.batches, 0);
}

// SA's convolution both ways, its kernel's gradient, and its part of the planes' sums.
template <class Io, class Real>
void space(const Maps& maps, int side) {
  const double error = sizeof(Real) == sizeof(double) ? kExact : 2e-5;
  const Framed frame{maps.height, maps.width, side};
  const int64_t samples = maps.samples, values = samples * maps.pixels();
  const auto descriptors = normal<Real>(2 * values, 1), grad = normal<Real>(values, 2);
  const auto kernel = normal<Real>(2 * frame.taps(), 3);
  const auto p = normal<Io>(maps.steps * step_size(maps), 4);
  const auto sums = normal<double>(2 * maps.planes(), 5), by_level = normal<double>(maps.planes(), 6);
  auto norm = normal<double>(4 * maps.channels, 7);
  Buffer<int32_t> place(values);
  for (int64_t i = 0; i < values; ++i) place[i] = int32_t(i * i % (maps.steps * maps.channels));
  struct Result {
    Buffer<Real> space, padded, room, spatial, kernel;
    Buffer<double> total, by_sample, sums;
  };
  const auto run = [&](const auto& teams) {
    Result r{Buffer<Real>(values, false, Real(NAN)),
             Buffer<Real>(2 * samples * frame.size(), false, Real(NAN)),
             Buffer<Real>(samples * frame.size(), false, Real(NAN)),
             Buffer<Real>(3 * values, false, Real(NAN)),
             Buffer<Real>(2 * frame.taps(), false, Real(NAN)),
             Buffer<double>(samples, false, NAN),
             Buffer<double>(2 * samples * frame.taps(), false, NAN),
             sums};
    teams(samples, SpaceForward<Real>{samples, frame, descriptors.data(), kernel.data(), r.space.data(),
                                      r.padded.data()});
    teams(samples,
          SpaceBackward<Real>{samples, 7, frame, grad.data(), r.space.data(), r.padded.data(), kernel.data(),
                              r.room.data(), r.spatial.data(), r.total.data(), r.by_sample.data()});
    const KernelSums<Real> kernels{samples, 2 * frame.taps(), r.by_sample.data(), r.kernel.data()};
    teams(kernels.tiles().count(), kernels);
    const NormNumbers<const double> numbers(norm.data(), maps.channels);
    teams(samples, SpaceSums<Io, Real>{maps,
                                       {p.data(), step_size(maps)},
                                       r.spatial.data() + 2 * values,
                                       place.data(),
                                       r.total.data(),
                                       by_level.data(),
                                       numbers,
                                       r.sums.data()});
    return r;
  };
  const Result ours = run([](int64_t n, const auto& work) { launch_teams(n, work, Stream{}); });
  const Result wanted = run([](int64_t n, const auto& work) {
    for (int64_t i = 0; i < n; ++i) work(Plain{}, i);
  });
  near("space", ours.space, wanted.space, error);
  near("spatial", ours.spatial, wanted.spatial, error);
  near("total", ours.total, wanted.total, 10 * error);
  near("by_sample", ours.by_sample, wanted.by_sample, 10 * error);
  near("kernel", ours.kernel, wanted.kernel, 10 * error);
  near("sums", ours.sums, wanted.sums, 10 * error);
}

template <class Real>
void launch_every_work() {
  const auto teams = [](auto... works) { (launch_teams(1, works, Stream{}), ...); };
  const auto each = [](auto... works) { (launch_each(1, works, Stream{}), ...); };
  teams(NormSums<Real>{}, GatesForward<Real>{}, GatesBackward<Real>{}, GateWeights<Real>{});
  teams(SpaceForward<Real>{}, SpaceBackward<Real>{}, KernelSums<Real>{}, SpaceSums<Real, Real>{});
  each(NormAffine<Real>{}, RunningStatistics<Real>{}, BatchGradient<Real>{});
  launch_reduce<Real>(nullptr, Shape{1, 1, 1, 1}, 1, nullptr, nullptr, Stream{});
}

void launch_all() {
#ifndef ATTSNN_FLOAT_ONLY
  launch_every_work<float>();
  launch_every_work<double>();
  launch_teams(1, Totals{}, Stream{});
  launch_teams(1, SpaceSums<BFloat16, float>{}, Stream{});
  launch_teams(1, SpaceSums<Half, float>{}, Stream{});
#endif
}

}  // namespace

int main(int count, char** arguments) {
  if (on_host::lists_launches(count, arguments, launch_all)) return 0;
  Cases cases;
  cases["norm"] = [] {
    norm(17, 70);  // three tiles, the last one part
    norm(1, 1);
  };
  cases["float"] = [] { gates<float>({5, 3, 37, 4, true, true}); };
  cases["double"] = [] { gates<Double>({2, 3, 70, 9, true, true}); };
  cases["one gate"] = [] {
    gates<float>({4, 3, 33, 2, true, false});
    gates<float>({1, 3, 40, 5, false, true});
  };
  cases["space"] = [] {
    space<float, float>({2, 3, 5, 5, 6, false}, 3);
    space<Double, Double>({1, 1, 4, 3, 4, true}, 5);
    space<BFloat16, float>({3, 1, 2, 2, 1, false}, 3);
  };
  cases["more blocks than a launch takes"] = [] {
    on_host::limits.x = 2;
    norm(17, 70);
    gates<float>({2, 3, 5, 2, true, true});
    space<float, float>({2, 3, 5, 3, 4, false}, 3);
  };
  return run_case(cases, count, arguments);
}
