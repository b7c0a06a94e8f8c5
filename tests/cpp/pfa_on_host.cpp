// The CUDA kernels of projected full attention, run on the host, against plain loops in double. `pfa_on_host
// CASE` runs one named case, without a name it lists them.
#include "cuda_on_host.h"  // first: the kernels need its words

#include <memory>

#include "cuda/pfa_driver.cuh"
#include "seam_inputs.h"

namespace {

using namespace attsnn;

struct PfaCase {
  int64_t steps, samples, channels, height, width, rank;
  Fusion fusion = Fusion::kMultiply;
  int64_t side = 3;
  bool last = false, misaligned = false, still = false, batch_first = false, wants_x = true;
  int64_t enough = kPfaBlocks;

  PfaShape shape() const { return {Maps{steps, samples, channels, height, width, last}.laid(), rank, side}; }
};

// Plain loops over [N, T, C, pixels] in double, and what they were given.
struct Plain {
  PfaCase c;
  int64_t pixels, taps;
  std::vector<double> x, grad, spatial, temporal, channel, bias[3];         // weights
  std::vector<double> by_pixel, by_channel, s, tm, cm, map, y;              // forward
  std::vector<double> grad_x, d_spatial, d_temporal, d_channel, d_bias[3];  // backward

  int64_t at(int64_t n, int64_t t, int64_t channel_, int64_t p) const {
    return ((n * c.steps + t) * c.channels + channel_) * pixels + p;
  }
  // f(n, t, c, p).
  template <class F>
  void each(const F& f) const {
    for (int64_t n = 0; n < c.samples; ++n)
      for (int64_t t = 0; t < c.steps; ++t)
        for (int64_t k = 0; k < c.channels; ++k)
          for (int64_t p = 0; p < pixels; ++p) f(n, t, k, p);
  }
  // f(the pixel that a tap reads) where there is one.
  template <class F>
  void tap(int64_t p, int64_t k, const F& f) const {
    const int64_t y = p / c.width + k / c.side - c.side / 2, x_ = p % c.width + k % c.side - c.side / 2;
    if (y >= 0 && y < c.height && x_ >= 0 && x_ < c.width) f(y * c.width + x_);
  }

  double scale() const { return 0.5; }

  void forward() {
    const int64_t nt = c.samples * c.steps;
    by_pixel.assign(nt * pixels, 0), by_channel.assign(nt * c.channels, 0);
    each([&](int64_t n, int64_t t, int64_t k, int64_t p) {
      by_pixel[(n * c.steps + t) * pixels + p] += x[at(n, t, k, p)] / double(c.channels);
      by_channel[(n * c.steps + t) * c.channels + k] += x[at(n, t, k, p)] / double(pixels);
    });
    const auto sigmoid_ = [](double v) { return 1 / (1 + std::exp(-v)); };
    s.clear(), tm.clear(), cm.clear();
    for (int64_t n = 0; n < c.samples; ++n) {
      for (int64_t r = 0; r < c.rank; ++r)
        for (int64_t p = 0; p < pixels; ++p) {
          double sum = bias[0][r];
          for (int64_t t = 0; t < c.steps; ++t)
            for (int64_t k = 0; k < taps; ++k)
              tap(p, k, [&](int64_t q) {
                sum += spatial[(r * c.steps + t) * taps + k] * by_pixel[(n * c.steps + t) * pixels + q];
              });
          s.push_back(sigmoid_(sum));
        }
      for (int64_t t = 0; t < c.steps; ++t)
        for (int64_t r = 0; r < c.rank; ++r) {
          double sum = bias[1][r];
          for (int64_t k = 0; k < c.channels; ++k)
            sum += temporal[r * c.channels + k] * by_channel[(n * c.steps + t) * c.channels + k];
          tm.push_back(sigmoid_(sum));
        }
      for (int64_t k = 0; k < c.channels; ++k)
        for (int64_t r = 0; r < c.rank; ++r) {
          double sum = bias[2][r];
          for (int64_t t = 0; t < c.steps; ++t)
            sum += channel[r * c.steps + t] * by_channel[(n * c.steps + t) * c.channels + k];
          cm.push_back(sigmoid_(sum));
        }
    }
    map.assign(x.size(), 0), y.assign(x.size(), 0);
    each([&](int64_t n, int64_t t, int64_t k, int64_t p) {
      double& a = map[at(n, t, k, p)];
      for (int64_t r = 0; r < c.rank; ++r) a += scale() * factor(n, r, t, k, p);
      y[at(n, t, k, p)] = weigh(c.fusion, a, x[at(n, t, k, p)]);
    });
  }
  double of_space(int64_t n, int64_t r, int64_t p) const { return s[(n * c.rank + r) * pixels + p]; }
  double of_step(int64_t n, int64_t t, int64_t r) const { return tm[(n * c.steps + t) * c.rank + r]; }
  double of_channel(int64_t n, int64_t k, int64_t r) const { return cm[(n * c.channels + k) * c.rank + r]; }
  double factor(int64_t n, int64_t r, int64_t t, int64_t k, int64_t p) const {
    return of_space(n, r, p) * of_step(n, t, r) * of_channel(n, k, r);
  }

  void backward() {
    std::vector<double> ds(s.size()), dt(tm.size()), dc(cm.size());
    grad_x.assign(x.size(), 0);
    each([&](int64_t n, int64_t t, int64_t k, int64_t p) {
      const int64_t i = at(n, t, k, p);
      const bool passed = c.fusion == Fusion::kResidual || y[i] != 0;
      const double g = passed ? grad[i] : 0, da = c.fusion == Fusion::kAdd ? g : g * x[i];
      grad_x[i] = c.fusion == Fusion::kAdd        ? g
                  : c.fusion == Fusion::kMultiply ? g * map[i]
                                                  : g * (1 + map[i]);
      for (int64_t r = 0; r < c.rank; ++r) {
        const double a = of_space(n, r, p), b = of_step(n, t, r), e = of_channel(n, k, r);
        ds[(n * c.rank + r) * pixels + p] += scale() * da * b * e;
        dt[(n * c.steps + t) * c.rank + r] += scale() * da * a * e;
        dc[(n * c.channels + k) * c.rank + r] += scale() * da * a * b;
      }
    });
    const auto before = [](std::vector<double>& d, const std::vector<double>& v) {
      for (size_t i = 0; i < d.size(); ++i) d[i] *= v[i] * (1 - v[i]);
    };
    before(ds, s), before(dt, tm), before(dc, cm);
    d_spatial.assign(spatial.size(), 0), d_temporal.assign(temporal.size(), 0);
    d_channel.assign(channel.size(), 0);
    for (auto& d : d_bias) d.assign(c.rank, 0);
    std::vector<double> to_pixel(by_pixel.size()), to_channel(by_channel.size());
    for (int64_t n = 0; n < c.samples; ++n)
      for (int64_t r = 0; r < c.rank; ++r) {
        for (int64_t p = 0; p < pixels; ++p) {
          const double d = ds[(n * c.rank + r) * pixels + p];
          d_bias[0][r] += d;
          for (int64_t t = 0; t < c.steps; ++t)
            for (int64_t k = 0; k < taps; ++k)
              tap(p, k, [&](int64_t q) {
                d_spatial[(r * c.steps + t) * taps + k] += d * by_pixel[(n * c.steps + t) * pixels + q];
                to_pixel[(n * c.steps + t) * pixels + q] += d * spatial[(r * c.steps + t) * taps + k];
              });
        }
        for (int64_t t = 0; t < c.steps; ++t) {
          const double d = dt[(n * c.steps + t) * c.rank + r];
          d_bias[1][r] += d;
          for (int64_t k = 0; k < c.channels; ++k) {
            d_temporal[r * c.channels + k] += d * by_channel[(n * c.steps + t) * c.channels + k];
            to_channel[(n * c.steps + t) * c.channels + k] += d * temporal[r * c.channels + k];
          }
        }
        for (int64_t k = 0; k < c.channels; ++k) {
          const double d = dc[(n * c.channels + k) * c.rank + r];
          d_bias[2][r] += d;
          for (int64_t t = 0; t < c.steps; ++t) {
            d_channel[r * c.steps + t] += d * by_channel[(n * c.steps + t) * c.channels + k];
            to_channel[(n * c.steps + t) * c.channels + k] += d * channel[r * c.steps + t];
          }
        }
      }
    each([&](int64_t n, int64_t t, int64_t k, int64_t p) {
      grad_x[at(n, t, k, p)] += to_pixel[(n * c.steps + t) * pixels + p] / double(c.channels) +
                                to_channel[(n * c.steps + t) * c.channels + k] / double(pixels);
    });
  }
};

template <class Real>
std::vector<double> widened(const Buffer<Real>& from) {
  std::vector<double> to;
  for (int64_t i = 0; i < from.size(); ++i) to.push_back(double(Real(from[i])));
  return to;
}

template <class T>
void near(const char* what, const Buffer<T>& ours, const std::vector<double>& wanted, double error) {
  double most = 0;
  for (const double value : wanted) most = std::max(most, std::fabs(value));
  for (int64_t i = 0; i < ours.size(); ++i)
    close(what, i, double(ours[i]), wanted[i], error * (most + 1e-30));
}

// Maps as the case lays them out, from and to [N, T, C, pixels].
template <class Io>
struct Laid {
  PfaCase c;
  PfaShape shape;
  Buffer<Io> values;
  Places<Io> places;

  Laid(const PfaCase& given, bool still, bool batch_first)
      : c(given),
        shape(given.shape()),
        values((still ? 1 : c.steps) * c.samples * shape.maps.sample_size(), c.misaligned, Io(NAN)) {
    const int64_t size = shape.maps.sample_size(), steps = still ? 1 : c.steps;
    places = {values.data(),
              still         ? 0
              : batch_first ? size
                            : c.samples * size,
              batch_first ? steps * size : size};
  }
  Io& operator()(int64_t n, int64_t t, int64_t k, int64_t p) const {
    return places.at(t, n)[shape.maps.at(0, k, p)];
  }
};

template <class Io, class Real>
void run(const PfaCase& c) {
  const PfaShape shape = c.shape();
  Plain plain;
  plain.c = c, plain.pixels = c.height * c.width, plain.taps = c.side * c.side;
  const double error = sizeof(Io) == 8 ? 1e-12 : sizeof(Io) == 4 ? 2e-5 : 2e-2;
  const double exact = sizeof(Real) == 8 ? 1e-12 : 2e-5;
  const auto weight = [&](int64_t size, unsigned seed) { return normal<Real>(size, seed, false, 0.4); };
  const int64_t rank = c.rank;
  Buffer<Real> spatial = weight(rank * c.steps * plain.taps, 3), temporal = weight(rank * c.channels, 4),
               channel = weight(rank * c.steps, 5);
  Buffer<Real> biases[] = {weight(rank, 6), weight(rank, 7), weight(rank, 8)};
  Laid<Io> x(c, c.still, c.batch_first), y(c, false, false), grad(c, false, false), grad_x(c, false, false);
  const auto numbers = normal<Io>(c.steps * c.samples * shape.maps.sample_size(), 1, false, 1);
  const auto more = normal<Io>(numbers.size(), 2, false, 1);
  plain.x.resize(numbers.size()), plain.grad.resize(numbers.size());
  plain.each([&](int64_t n, int64_t t, int64_t k, int64_t p) {
    const int64_t at = plain.at(n, t, k, p);
    const Real value = Real(numbers[plain.at(n, c.still ? 0 : t, k, p)]);
    x(n, t, k, p) = Io(c.fusion == Fusion::kMultiply && value < 0 ? Real(0) : value);
    grad(n, t, k, p) = more[at];
    plain.x[at] = double(Real(x(n, t, k, p))), plain.grad[at] = double(Real(more[at]));
  });
  plain.spatial = widened(spatial), plain.temporal = widened(temporal), plain.channel = widened(channel);
  for (int i = 0; i < 3; ++i) plain.bias[i] = widened(biases[i]);
  plain.forward();
  plain.backward();

  std::vector<std::unique_ptr<Real[]>> rooms;
  const Scratch<Real> scratch = [&](int64_t size) {
    rooms.push_back(std::make_unique<Real[]>(size));
    std::fill_n(rooms.back().get(), size, Real(NAN));
    return rooms.back().get();
  };
  const auto empty = [](int64_t size) { return Buffer<Real>(size, false, Real(NAN)); };
  Buffer<Real> by_pixel = empty(shape.by_pixel()), by_channel = empty(shape.by_channel());
  Buffer<Real> s = empty(c.samples * rank * plain.pixels), tm = empty(c.samples * c.steps * rank),
               cm = empty(c.samples * c.channels * rank);
  Buffer<uint8_t> bits(shape.bytes_of_bits(), false, 0xa5);
  PfaForward<Io, Real> forward{};
  forward.shape = shape, forward.fusion = c.fusion, forward.scale = Real(plain.scale());
  forward.x = {x.places.data, x.places.step, x.places.sample};
  forward.y = y.places;
  forward.weights = {spatial.data(),   biases[0].data(), temporal.data(),
                     biases[1].data(), channel.data(),   biases[2].data()};
  forward.small = {by_pixel.data(), by_channel.data(), s.data(), tm.data(), cm.data()};
  forward.bits = c.fusion == Fusion::kAdd ? bits.data() : nullptr;
  launch_pfa_forward_in(c.enough, forward, scratch, Stream{});
  near("by_pixel", by_pixel, plain.by_pixel, exact);
  near("by_channel", by_channel, plain.by_channel, exact);
  near("S", s, plain.s, exact);
  near("Tm", tm, plain.tm, exact);
  near("Cm", cm, plain.cm, exact);
  const auto compare = [&](const char* what, const Laid<Io>& ours, const std::vector<double>& wanted) {
    double most = 0;
    for (const double value : wanted) most = std::max(most, std::fabs(value));
    plain.each([&](int64_t n, int64_t t, int64_t k, int64_t p) {
      const int64_t at = plain.at(n, t, k, p);
      close(what, at, double(Real(ours(n, t, k, p))), wanted[at], error * most);
    });
  };
  compare("y", y, plain.y);

  Buffer<Real> d_spatial = empty(spatial.size()), d_temporal = empty(temporal.size()),
               d_channel = empty(channel.size());
  Buffer<Real> d_biases[] = {empty(rank), empty(rank), empty(rank)};
  PfaBackward<Io, Real> backward{};
  backward.shape = shape, backward.fusion = c.fusion, backward.scale = forward.scale;
  backward.grad_y = {grad.places.data, grad.places.step, grad.places.sample};
  if (c.fusion != Fusion::kAdd) backward.x = forward.x;
  backward.weights = {spatial.data(), nullptr, temporal.data(), nullptr, channel.data(), nullptr};
  backward.small = {by_pixel.data(), by_channel.data(), s.data(), tm.data(), cm.data()};
  backward.bits = bits.data();
  if (c.wants_x) backward.grad_x = grad_x.places;
  backward.grads = {d_spatial.data(),   d_biases[0].data(), d_temporal.data(),
                    d_biases[1].data(), d_channel.data(),   d_biases[2].data()};
  launch_pfa_backward_in(c.enough, backward, scratch, Stream{});
  near("spatial weight", d_spatial, plain.d_spatial, 5 * exact);
  near("temporal weight", d_temporal, plain.d_temporal, 5 * exact);
  near("channel weight", d_channel, plain.d_channel, 5 * exact);
  for (int i = 0; i < 3; ++i) near("bias", d_biases[i], plain.d_bias[i], 5 * exact);
  if (c.wants_x) compare("grad_x", grad_x, plain.grad_x);
}

template <class Io, class Real>
void add_type(Cases& cases, const char* name) {
  cases[name] = [] {
    // More than two tiles of columns, several chunks of rows, whole vectors and lone values, both layouts.
    run<Io, Real>({2, 1, 3, 4, 72, 5});
    run<Io, Real>({2, 1, 33, 5, 3, 9, Fusion::kAdd, 3, true});
    run<Io, Real>({1, 2, 1, 31, 1, 1, Fusion::kResidual, 1});
  };
}

template <class Io, class Real>
void launch_every_kernel() {
  for (const int64_t width : {3, 200})
    for (const int64_t rank : {1, 64})
      for (const Fusion fusion : {Fusion::kMultiply, Fusion::kAdd}) {
        const PfaShape shape{Maps{1, 1, 1, 1, width, false}, rank, 3};
        const Scratch<Real> scratch = [](int64_t) { return nullptr; };
        PfaForward<Io, Real> forward{};
        forward.shape = shape, forward.fusion = fusion;
        launch_pfa_forward(forward, scratch, Stream{});
        PfaBackward<Io, Real> backward{};
        Io* const any = reinterpret_cast<Io*>(64);
        backward.shape = shape, backward.fusion = fusion, backward.grad_x.data = any;
        launch_pfa_backward(backward, scratch, Stream{});
      }
}

void launch_all() {
#ifndef ATTSNN_FLOAT_ONLY
  launch_every_kernel<double, double>();
  launch_every_kernel<float, float>();
  launch_every_kernel<BFloat16, float>();
  launch_every_kernel<Half, float>();
#endif
}

}  // namespace

int main(int count, char** arguments) {
  if (on_host::lists_launches(count, arguments, launch_all)) return 0;
  Cases cases;
  add_type<float, float>(cases, "float");
  add_type<Double, Double>(cases, "double");
  add_type<BFloat16, float>(cases, "bfloat16");
  add_type<Half, float>(cases, "half");
  cases["chunks"] = [] {  // of rows: wide tiles and narrow ones, whose blocks walk twice, and once
    run<float, float>(
        {.steps = 5, .samples = 1, .channels = 37, .height = 2, .width = 40, .rank = 6, .enough = 2});
    run<float, float>({.steps = 9,
                       .samples = 1,
                       .channels = 66,
                       .height = 3,
                       .width = 3,
                       .rank = 4,
                       .fusion = Fusion::kAdd,
                       .enough = 2});
    run<float, float>({3, 1, 66, 12, 4, 3, Fusion::kResidual, 3, true});
  };
  cases["one block walks"] = [] {  // the least that has every barrier, and each twice
    run<float, float>(
        {.steps = 1, .samples = 1, .channels = 80, .height = 1, .width = 65, .rank = 2, .enough = 1});
  };
  cases["memory"] = [] {
    run<float, float>(
        {.steps = 3, .samples = 2, .channels = 8, .height = 4, .width = 4, .rank = 3, .misaligned = true});
    run<float, float>({.steps = 3,
                       .samples = 3,
                       .channels = 8,
                       .height = 4,
                       .width = 4,
                       .rank = 3,
                       .last = true,
                       .batch_first = true});
    run<float, float>(
        {.steps = 4, .samples = 2, .channels = 3, .height = 5, .width = 4, .rank = 2, .still = true});
    run<float, float>(
        {.steps = 2, .samples = 2, .channels = 2, .height = 6, .width = 6, .rank = 4, .wants_x = false});
  };
  cases["one of all"] = [] {
    for (const Fusion fusion : {Fusion::kMultiply, Fusion::kAdd, Fusion::kResidual})
      run<Double, Double>({1, 1, 1, 1, 1, 1, fusion});
  };
  cases["more blocks than a launch takes"] = [] {
    on_host::limits.x = 2;
    run<float, float>({3, 2, 19, 2, 40, 6});
  };
  return run_case(cases, count, arguments);
}
