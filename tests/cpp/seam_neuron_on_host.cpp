// The CUDA kernels of the neurons, run on the host where a seam computes what they read and sums over what
// they write, against a plain loop: equal bits, sums to rounding. `seam_neuron_on_host CASE` runs one named
// case, without a name it lists them.
#include "cuda_on_host.h"  // first: the kernels need its words

#include "cuda/seam_driver.cuh"
#include "seam_inputs.h"

namespace {

using namespace attsnn;

// What a neuron's passes write.
template <class Io, class Real>
struct Results {
  Buffer<Io> out, membrane, up;
  Buffer<Real> v, checkpoints, grad_v0, sums;
  Buffer<uint8_t> bits;
  Results(const Case& c, int64_t n)
      : out(c.steps * n, c.misaligned, Io(NAN)),
        membrane(c.steps * n, c.misaligned, Io(NAN)),
        up(c.steps * n, c.misaligned, Io(NAN)),
        v(n, false, Real(NAN)),
        checkpoints(std::max<int64_t>(1, (c.steps - 1) / kCheckpointEvery) * n, false, Real(NAN)),
        grad_v0(n, false, Real(NAN)),
        sums(Lif::kConstants * n, false, Real(NAN)),
        bits(c.steps * bytes_of_bits(n), false, 0) {}
};

// What is added: passed on by the relu, a number of Real each, in whatever order.
template <class Io, class Real>
void check_sums(const Inputs<Io, Real>& in, const Buffer<Io>& up, const Buffer<double>& by_plane,
                const Buffer<Real>& by_pixel) {
  const Case& c = in.c;
  const Maps& maps = in.maps;
  const double rounding = 4 * double(std::numeric_limits<Real>::epsilon());
  const auto passed = [&](int64_t t, int64_t n, int64_t channel, int64_t i) {
    return through(in.gated(t, n, channel, i), in.floor,
                   Real(up[t * step_size(maps) + maps.at(n, channel, i)]));
  };
  over_planes(maps, [&](int64_t t, int64_t n, int64_t channel, int64_t plane) {
    double all[2] = {}, size[2] = {};
    for (int64_t i = 0; i < maps.pixels(); ++i) {
      const double p = double(Real(in.p[t * step_size(maps) + maps.at(n, channel, i)]));
      const double weight = c.spatial ? in.spatial[n * maps.pixels() + i] : 1;
      const double terms[] = {weight * passed(t, n, channel, i),
                              weight * passed(t, n, channel, i) * (p - (c.norm ? in.centre[channel] : 0))};
      for (int k = 0; k < 2; ++k) all[k] += terms[k], size[k] += std::fabs(terms[k]);
    }
    close("sum by plane", plane, by_plane[plane], all[0], rounding * size[0]);
    close("centred sum", plane, by_plane[maps.planes() + plane], all[1], rounding * size[1]);
  });
  for (int64_t at = 0; c.spatial && at < c.samples * maps.pixels(); ++at) {
    const int64_t n = at / maps.pixels(), pixel = at % maps.pixels();
    double all = 0, size = 0;
    for (int64_t t = 0; t < c.steps; ++t)
      for (int64_t channel = 0; channel < c.channels; ++channel) {
        const double term = double(passed(t, n, channel, pixel)) * in.gated(t, n, channel, pixel);
        all += term, size += std::fabs(term);
      }
    close("sum by pixel", at, by_pixel[at], all, rounding * size);
  }
}

template <class Io, class Real>
void neurons(const Case& c) {
  const Inputs<Io, Real> in(c);
  const Maps& maps = in.maps;
  const int64_t size = step_size(maps);
  const auto shortcut = normal<Io>(c.steps * size, 21, c.misaligned);
  const auto grad_out = normal<Io>(c.steps * size, 22, c.misaligned);
  const auto grad_membrane = normal<Io>(c.steps * size, 23, c.misaligned);
  const auto v0 = normal<Real>(size, 24), grad_v = normal<Real>(size, 25);
  auto learned = normal<Real>(Lif::kConstants * c.channels, 26, false, 0.05);
  const Real base[] = {Real(0.7), Real(0.9), Real(0.05), Real(0.4), Real(-0.1)};
  for (int64_t i = 0; i < learned.size(); ++i) learned[i] += base[i / c.channels];
  const Shape shape{c.steps, size, c.channels, c.last ? 1 : maps.pixels()};
  const Neuron<Lif, Real> neuron{
      {base[0], base[1], base[2], base[3], base[4]},
      c.learned ? learned.data() : nullptr,
      {Real(c.levels == 0), Real(c.levels > 0), Real(!c.bits), Real(c.levels == 0), false, Emit::kSpike},
      Real(0.1)};
  const Firing firing{c.surrogate, 0.8, 1, false, c.soft, c.levels, c.levels > 0};
  const bool kept = c.shortcut || c.membrane, checkpoints = !c.bits && c.steps > kCheckpointAbove;
  Results<Io, Real> ours(c, size), wanted(c, size);

  SeamSource<Io, Real> source{maps, in.rows(in.p), in.affine(), in.sa(), in.floor, kept, {}, {}};
  if (c.shortcut) source.shortcut = in.rows(shortcut);
  if (kept) source.membrane = {ours.membrane.data(), size};
  SeamForward<Lif, Io, Real> forward{shape, neuron, source, {ours.out.data(), size}};
  forward.v0 = c.given_state ? v0.data() : nullptr;
  forward.v = ours.v.data();
  forward.checkpoints = checkpoints ? ours.checkpoints.data() : nullptr;
  forward.bits = c.bits ? ours.bits.data() : nullptr;
  Buffer<int64_t> counts(2 * (c.steps + c.channels));
  if (c.counted)
    forward.counts = {counts.data(),       counts.data() + c.steps, c.channels, shape.channel_stride, 2,
                      c.steps + c.channels};
  launch_seam_forward(forward, firing, Stream{});

  source.shortcut = {};
  SeamBackward<Lif, Io, Real> backward;
  backward.shape = shape;
  backward.neuron = neuron;
  backward.grad_out = in.rows(grad_out);
  backward.grad_v = grad_v.data();
  if (!c.bits) backward.x = source;
  backward.v0 = forward.v0;
  backward.checkpoints = forward.checkpoints;
  backward.bits = forward.bits;
  Buffer<double> by_plane(2 * maps.planes(), false, NAN);
  Buffer<Real> by_pixel(c.samples * maps.pixels(), false, Real(NAN));
  const Real* centre = c.norm ? in.centre.data() : nullptr;
  backward.grad_x = {maps,     {ours.up.data(), size}, {}, in.rows(in.p), in.affine(), in.sa(), centre,
                     in.floor, by_plane.data()};
  if (c.spatial) backward.grad_x.grad_spatial = by_pixel.data();
  if (c.membrane) backward.grad_x.grad_membrane = in.rows(grad_membrane);
  backward.grad_v0 = ours.grad_v0.data();
  backward.sums = c.learned ? ours.sums.data() : nullptr;
  std::vector<Buffer<Real>> rooms;
  const Scratch<Real> scratch = [&](int64_t numbers) {
    return rooms.emplace_back(numbers, false, Real(NAN)).data();
  };
  launch_seam_backward(backward, firing, scratch, Stream{});
  if (c.steps == 1) {  // as behind a norm alone, where nobody wants `up`
    Buffer<double> sums(2 * maps.planes(), false, NAN);
    backward.grad_x.up = {};
    backward.grad_x.sums = sums.data();
    launch_seam_backward(backward, firing, scratch, Stream{});
    same("sums without up", sums, by_plane);
  }

  const Rules<Real>& rules = neuron.rules;
  const Rectangular<Real> window(firing.scale, firing.height);
  dispatch_firing<Real>(firing, [&](const auto& fire, const auto& surrogate) {
    const auto walk = [&](int64_t n, int64_t channel, int64_t pixel) {
      const int64_t i = maps.at(n, channel, pixel);
      const auto terms = neuron.terms(c.learned ? channel : 0, c.channels);
      std::vector<Real> x(c.steps), h(c.steps), before(c.steps + 1);
      before[0] = c.given_state ? v0[i] : Lif::rest(terms, rules);
      const Real carried = c.given_state ? Real(1) : Real(0);
      for (int64_t t = 0; t < c.steps; ++t) {
        x[t] = rectified(in.gated(t, n, channel, pixel), in.floor);
        if (c.spatial) x[t] = in.spatial[n * maps.pixels() + pixel] * x[t];
        if (c.shortcut) x[t] = x[t] + Real(shortcut[t * size + i]);
        if (kept) x[t] = Real(wanted.membrane[t * size + i] = Io(x[t]));
        h[t] = Lif::charge(terms, t > 0 ? Real(1) : carried, before[t], x[t]);
        const Real s = fire(h[t], terms);
        before[t + 1] = Lif::reset(terms, rules, h[t], s);
        wanted.out[t * size + i] = Io(emitted(fire, s));
        const int code = (s > 0 ? 1 : 0) + (window.inside(h[t] - terms.centre) ? 2 : 0);
        wanted.bits[t * bytes_of_bits(size) + i / kNeuronsPerByte] |= code << i % kNeuronsPerByte * 2;
        if (checkpoints && (t + 1) % kCheckpointEvery == 0 && t + 1 < c.steps)
          wanted.checkpoints[t / kCheckpointEvery * size + i] = before[t + 1];
      }
      wanted.v[i] = before[c.steps];
      Real grad_state = grad_v[i];
      Lif::Sums<Real> sums{};
      for (int64_t t = c.steps - 1; t >= 0; --t) {
        const Real gate = t > 0 ? Real(1) : carried;
        Lif::Sums<Real> own{};
        const Real grad_h =
            Lif::back(terms, rules, rules.emit, h[t], fire(h[t], terms), slope_at(surrogate, h[t], terms),
                      emitted(fire, Real(grad_out[t * size + i])), grad_state, own);
        if (!c.bits) Lif::back_charge(gate, grad_h, before[t], x[t], own);
        for (int k = 0; k < Lif::kConstants; ++k)
          reinterpret_cast<Real*>(&sums)[k] += reinterpret_cast<Real*>(&own)[k];
        grad_state = gate * (terms.leak * grad_h);
        const Real grad_x = terms.gain * grad_h;
        wanted.up[t * size + i] = Io(c.membrane ? grad_x + Real(grad_membrane[t * size + i]) : grad_x);
      }
      wanted.grad_v0[i] = grad_state;
      if (!c.given_state) Lif::back_rest(rules, grad_state, sums);
      for (int k = 0; k < Lif::kConstants; ++k)
        wanted.sums[k * size + i] = reinterpret_cast<const Real*>(&sums)[k];
    };
    for (int64_t n = 0; n < c.samples; ++n)
      for (int64_t channel = 0; channel < c.channels; ++channel)
        for (int64_t pixel = 0; pixel < maps.pixels(); ++pixel) walk(n, channel, pixel);
  });
  same("out", ours.out, wanted.out);
  for (int64_t t = 0; c.counted && t < c.steps; ++t) {
    int64_t all = 0;
    for (int64_t i = 0; i < size; ++i) all += ours.out[t * size + i] != Io(0) ? 1 : 0;
    same("counts by step", t, counts[t] + counts[c.steps + c.channels + t], all);
  }
  for (int64_t channel = 0; c.counted && channel < c.channels; ++channel) {
    int64_t all = 0;
    for (int64_t t = 0; t < c.steps; ++t)
      for (int64_t n = 0; n < c.samples; ++n)
        for (int64_t i = 0; i < maps.pixels(); ++i)
          all += ours.out[t * size + maps.at(n, channel, i)] != Io(0) ? 1 : 0;
    same("counts by channel", channel, counts[c.steps + channel] + counts[2 * c.steps + c.channels + channel],
         all);
  }
  same("v", ours.v, wanted.v);
  if (kept) same("membrane", ours.membrane, wanted.membrane);
  if (checkpoints) same("checkpoints", ours.checkpoints, wanted.checkpoints);
  if (c.bits) same("bits", ours.bits, wanted.bits);
  same("up", ours.up, wanted.up);
  check_sums<Io, Real>(in, ours.up, by_plane, by_pixel);
  same("grad_v0", ours.grad_v0, wanted.grad_v0);
  if (c.learned) same("sums", ours.sums, wanted.sums);
}

// Steps [from, to) of a call, from the given state to `v`, and back from the gradient of `v` to that of the
// state.
template <class Io, class Real>
void part(const Inputs<Io, Real>& in, int64_t from, int64_t to, const Real* v0, Real* v, const Real* grad_v,
          Real* grad_v0, Io* out, Io* up) {
  const int64_t size = step_size(in.maps);
  Maps maps = in.maps;
  maps.steps = to - from;
  Affine<Real> affine = in.affine();
  affine.a += from * affine.step, affine.b += from * affine.step;
  const Steps<const Io> p{in.p.data() + from * size, size}, grad_out{in.up.data() + from * size, size};
  const Shape shape{maps.steps, size, 1, 1};
  const Neuron<Lif, Real> neuron{{Real(0.7), Real(0.9), Real(0.05), Real(0.4), Real(-0.1)},
                                 nullptr,
                                 {Real(1), Real(0), Real(1), Real(1), false, Emit::kSpike},
                                 Real(0)};
  const Firing firing{0, 0.8, 1, false, false, 0, false};
  const SeamSource<Io, Real> source{maps, p, affine, in.sa(), in.floor, false, {}, {}};
  Buffer<Real> checkpoints(maps.steps / kCheckpointEvery * size + 1);
  SeamForward<Lif, Io, Real> forward{shape, neuron, source, {out + from * size, size}};
  forward.v0 = v0, forward.v = v;
  forward.checkpoints = maps.steps > kCheckpointAbove ? checkpoints.data() : nullptr;
  launch_seam_forward(forward, firing, Stream{});
  if (up == nullptr) return;
  Buffer<double> sums(2 * maps.planes());
  Buffer<Real> by_pixel(maps.samples * maps.pixels());
  SeamBackward<Lif, Io, Real> backward{shape, neuron, grad_out, grad_v, source, v0, forward.checkpoints};
  backward.grad_x = {maps,    {up + from * size, size}, {},       p,          affine,
                     in.sa(), in.centre.data(),         in.floor, sums.data()};
  if (in.c.spatial) backward.grad_x.grad_spatial = by_pixel.data();
  backward.grad_v0 = grad_v0;
  std::vector<Buffer<Real>> rooms;
  launch_seam_backward(backward, firing,
                       Scratch<Real>([&](int64_t numbers) { return rooms.emplace_back(numbers).data(); }),
                       Stream{});
}

// Cut in two, the state handed on and its gradient handed back: the bits of the whole.
template <class Io, class Real>
void chunks(const Case& c, int64_t cut) {
  const Inputs<Io, Real> in(c);
  const int64_t size = step_size(in.maps), all = c.steps * size;
  const auto v0 = normal<Real>(size, 24), grad_v = normal<Real>(size, 25);
  const Real* given = c.given_state ? v0.data() : nullptr;
  Buffer<Io> out(all), up(all), out_cut(all), up_cut(all);
  Buffer<Real> v(size), v_cut(size), between(size), grad_v0(size), grad_v0_cut(size), grad_between(size);
  part<Io, Real>(in, 0, c.steps, given, v.data(), grad_v.data(), grad_v0.data(), out.data(), up.data());
  part<Io, Real>(in, 0, cut, given, between.data(), nullptr, nullptr, out_cut.data(), nullptr);
  part<Io, Real>(in, cut, c.steps, between.data(), v_cut.data(), grad_v.data(), grad_between.data(),
                 out_cut.data(), up_cut.data());
  part<Io, Real>(in, 0, cut, given, between.data(), grad_between.data(), grad_v0_cut.data(), out_cut.data(),
                 up_cut.data());
  same("out", out_cut, out);
  same("v", v_cut, v);
  same("up", up_cut, up);
  same("grad_v0", grad_v0_cut, grad_v0);
}

// Over three blocks of each grid, in both layouts.
template <class Io, class Real>
void of_type() {
  for (const bool last : {false, true})
    neurons<Io, Real>({.steps = 3,
                       .samples = sizeof(Io) == 8 && last ? 1 : 2,
                       .channels = sizeof(Io) == 2 ? 24 : 12,
                       .height = 8,
                       .width = 11,
                       .last = last,
                       .spatial = true});
}

Cases all_cases() {
  Cases cases{{"float", of_type<float, float>},
              {"double", of_type<Double, Double>},
              {"bfloat16", of_type<BFloat16, float>},
              {"half", of_type<Half, float>}};
  cases["shortcut"] = [] {
    for (const bool last : {false, true}) {
      Case c{.steps = 5,
             .samples = 2,
             .channels = 6,
             .height = 6,
             .width = 7,
             .last = last,
             .spatial = true,
             .shortcut = true};
      neurons<float, float>(c);
      c.steps = 1;
      c.channels = 16;
      c.membrane = true;
      neurons<BFloat16, float>(c);
      c.shortcut = false;
      neurons<Half, float>(c);
    }
  };
  cases["bits"] = [] {
    for (const bool last : {false, true}) {
      neurons<float, float>({.steps = 3,
                             .samples = 2,
                             .channels = 3,
                             .height = 5,
                             .width = 7,
                             .last = last,
                             .misaligned = true,
                             .shortcut = true,
                             .membrane = true,
                             .bits = true});
      neurons<BFloat16, float>({.steps = 1,
                                .samples = 1,
                                .channels = 8,
                                .height = 3,
                                .width = 8,
                                .last = last,
                                .spatial = true,
                                .learned = true,
                                .bits = true});
    }
  };
  cases["steps"] = [] {
    for (const int64_t steps : {1, 4, 7, 16, 21, 70})
      for (const bool last : {false, true})
        neurons<float, float>({.steps = steps,
                               .samples = 1,
                               .channels = 5,
                               .height = 3,
                               .width = 7,
                               .last = last,
                               .given_state = true});
  };
  cases["tiles"] = [] {  // some in every direction, the last ones not whole
    for (const bool last : {false, true})
      for (const bool bits : {false, true}) {
        Case c{.steps = 2, .samples = 2, .channels = 9, .height = 16, .width = 18, .spatial = true};
        if (last) c.channels = 36, c.height = 9;
        c.last = last;
        c.bits = bits;
        neurons<float, float>(c);
        if (bits) c.samples = 1, neurons<BFloat16, float>(c);
      }
    neurons<float, float>(
        {.steps = 66, .samples = 1, .channels = 3, .height = 9, .width = 16, .spatial = true});
  };
  cases["more blocks than a launch takes"] = [] {  // those of pass A: of a sample each
    on_host::limits.x = 2;
    for (const bool last : {false, true})
      for (const bool bits : {false, true})
        neurons<float, float>({.steps = 2,
                               .samples = 3,
                               .channels = 12,
                               .height = 3,
                               .width = 5,
                               .last = last,
                               .spatial = true,
                               .bits = bits});
  };
  cases["learned"] = [] {
    neurons<float, float>(
        {.steps = 6, .samples = 2, .channels = 5, .height = 3, .width = 7, .spatial = true, .learned = true});
    neurons<Double, Double>({.steps = 3,
                             .samples = 2,
                             .channels = 4,
                             .height = 3,
                             .width = 4,
                             .last = true,
                             .shortcut = true,
                             .membrane = true,
                             .learned = true});
  };
  cases["surrogates"] = [] {
    for (int s = 0; s < Surrogates<float>::kSize; ++s) {
      Case c{.steps = 3, .samples = 2, .channels = 3, .height = 3, .width = 3, .surrogate = s};
      neurons<float, float>(c);
      c.soft = c.one_affine = true;
      neurons<Double, Double>(c);
    }
  };
  cases["counts"] = [] {
    for (const bool last : {false, true}) {
      Case c{.steps = 5, .samples = 2, .channels = 12, .height = 5, .width = 7, .last = last};
      c.counted = true;
      neurons<float, float>(c);
      c.shortcut = c.learned = true;
      neurons<BFloat16, float>(c);
    }
  };
  cases["chunks"] = [] {
    for (const bool last : {false, true})
      for (const auto& [steps, cut] : std::vector<std::pair<int64_t, int64_t>>{{3, 1}, {7, 5}, {70, 33}}) {
        Case c{.steps = steps, .samples = 2, .channels = 6, .height = 3, .width = 7, .last = last};
        c.spatial = c.given_state = steps == 7;
        chunks<float, float>(c, cut);
        chunks<Half, float>(c, cut);
      }
  };
  cases["levels"] = [] {
    for (const bool last : {false, true}) {
      Case c{
          .steps = 5, .samples = 2, .channels = 6, .height = 3, .width = 7, .last = last, .shortcut = true};
      c.levels = 3;
      neurons<float, float>(c);
      c.given_state = c.learned = true;
      neurons<BFloat16, float>(c);
      c.soft = true;
      neurons<Double, Double>(c);
    }
  };
  return cases;
}

template <class Io, class Real>
void launch_every_kernel(const Firing& firing, int64_t steps, const Real* learned) {
  const Shape shape{steps, 1, 1, 1};
  const Maps maps{steps, 1, 1, 1, 1, false};
  Real room = 0;
  const Scratch<Real> scratch = [&](int64_t) { return &room; };
  SeamForward<Lif, Io, Real> forward{};
  forward.shape = shape;
  forward.neuron.learned = learned;
  launch_seam_forward(forward, firing, Stream{});
  int64_t count = 0;
  forward.counts.by_step = &count;
  launch_seam_forward(forward, firing, Stream{});
  SeamBackward<Lif, Io, Real> backward{};
  backward.shape = shape;
  backward.neuron.learned = learned;
  backward.grad_x.maps = maps;
  backward.grad_x.grad_spatial = &room;
  launch_seam_backward(backward, firing, scratch, Stream{});
  const uint8_t bits = 0;
  backward.bits = &bits;
  launch_seam_backward(backward, firing, scratch, Stream{});
}

void launch_all() {
#ifndef ATTSNN_FLOAT_ONLY
  for (const bool soft : {false, true})
    for (int64_t steps = 1; steps <= kCheckpointAbove + 1; ++steps)
      for (const ScalarType type :
           {ScalarType::Double, ScalarType::Float, ScalarType::BFloat16, ScalarType::Half})
        dispatch_type(type, [&]<class Io, class Real>() {
          const Real learned = 0;
          for (const Real* constants : {&learned, static_cast<const Real*>(nullptr)})
            for (const int64_t levels : {0, 4})
              launch_every_kernel<Io, Real>({0, 1, 1, false, soft, levels, false}, steps, constants);
        });
#endif
}

}  // namespace

int main(int count, char** arguments) {
  if (on_host::lists_launches(count, arguments, launch_all)) return 0;
  return run_case(all_cases(), count, arguments);
}
