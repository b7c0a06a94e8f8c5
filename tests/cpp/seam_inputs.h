// A seam's inputs for the host-run tests, and what compares its kernels with plain loops.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "buffer.h"
#include "core/seam_call.h"

namespace attsnn {

enum class Fill { kNormal, kFar, kTies, kOdd };

struct Case {
  int64_t steps, samples, channels, height, width, pool = 1;
  bool last = false, misaligned = false;
  Fill fill = Fill::kNormal;
  bool gamma = true, extrema = true, one_affine = false, relu = true, spatial = false, gates = false,
       norm = true;
  int64_t busy = int64_t(1) << 18;  // threads; fewer: longer walks
  // Of the neurons.
  bool shortcut = false, membrane = false, learned = false, bits = false, soft = false, given_state = false;
  int surrogate = 0, levels = 0;
  bool counted = false;

  Maps maps() const { return Maps{steps, samples, channels, height, width, last}.laid(); }
};

inline void expect(bool holds, const char* what, int64_t i, double ours, double wanted) {
  if (holds) return;
  std::printf("%s: element %ld is %.17g, wanted %.17g\n", what, long(i), ours, wanted);
  std::exit(1);
}
inline void same(const char* what, int64_t i, double ours, double wanted) {
  expect(ours == wanted || (std::isnan(ours) && std::isnan(wanted)), what, i, ours, wanted);
}
template <class T>
void same(const char* what, const Buffer<T>& ours, const Buffer<T>& wanted) {
  for (int64_t i = 0; i < ours.size(); ++i) same(what, i, double(ours[i]), double(wanted[i]));
}
inline void close(const char* what, int64_t i, double ours, double wanted, double error) {
  expect(std::fabs(ours - wanted) <= error, what, i, ours, wanted);
}

inline int64_t step_size(const Maps& maps) { return maps.samples * maps.sample_size(); }

template <class Io>
Buffer<Io> filled(const Case& c) {
  const Maps maps = c.maps();
  auto z = normal<Io>(c.steps * step_size(maps), 1, c.misaligned, 1);
  for (int64_t t = 0; t < c.steps; ++t)
    for (int64_t n = 0; n < c.samples; ++n)
      for (int64_t channel = 0; channel < c.channels; ++channel)
        for (int64_t pixel = 0; pixel < maps.pixels(); ++pixel) {
          Io& value = z[t * step_size(maps) + maps.at(n, channel, pixel)];
          const int64_t kind = (t + n + channel) % 4;
          if (c.fill == Fill::kFar) value = Io(float(value) + 1000);
          if (c.fill == Fill::kTies) value = Io(kind == 0 ? 1.f : std::round(float(value)));
          if (c.fill == Fill::kOdd && kind == 1 && pixel % 11 == 3) value = Io(NAN);
          if (c.fill == Fill::kOdd && kind == 2) value = Io(-INFINITY);
        }
  return z;
}

// What a seam has in common, whichever of its passes is run.
template <class Io, class Real>
struct Inputs {
  Case c;
  Maps maps;  // of p
  Buffer<Io> p, up;
  Buffer<Real> a, b, gamma, spatial, level, point, uniform, at_peak, offset, slope, centre;
  Buffer<int32_t> spatial_place, place;
  Real floor;

  explicit Inputs(const Case& given)
      : c(given),
        maps(given.maps().pooled(given.pool).laid()),
        p(normal<Io>(c.steps * step_size(maps), 2, c.misaligned)),
        up(normal<Io>(c.steps * step_size(maps), 3, c.misaligned)),
        a(normal<Real>(maps.planes(), 4)),
        b(normal<Real>(maps.planes(), 5)),
        gamma(normal<Real>(c.channels, 6)),
        spatial(normal<Real>(c.samples * maps.pixels(), 7)),
        level(normal<Real>(c.samples * maps.pixels(), 8)),
        point(normal<Real>(c.samples * maps.pixels(), 9)),
        uniform(normal<Real>(maps.planes(), 10)),
        at_peak(normal<Real>(maps.planes(), 11)),
        offset(normal<Real>(c.channels, 12)),
        slope(normal<Real>(c.channels, 13)),
        centre(normal<Real>(c.channels, 14)),
        spatial_place(spatial.size()),
        place(maps.planes()),
        floor(c.relu ? Real(0) : -Real(INFINITY)) {
    for (int64_t i = 0; i < c.channels; ++i)
      gamma[i] = i % 3 == 0 ? std::fabs(gamma[i]) : i % 3 == 1 ? -std::fabs(gamma[i]) : Real(0);
    for (int64_t i = 0; i < spatial_place.size(); ++i)
      spatial_place[i] = int32_t(i * 7 % (c.steps * c.channels));
    for (int64_t i = 0; i < place.size(); ++i) place[i] = int32_t(i * 5 % maps.pixels());
  }

  Affine<Real> affine() const {
    if (c.one_affine) return {a.data(), b.data(), 0, 0};
    return {a.data(), b.data(), c.samples * c.channels, c.channels};
  }
  Steps<const Io> rows(const Buffer<Io>& buffer) const { return {buffer.data(), step_size(maps)}; }
  const Real* sa() const { return c.spatial ? spatial.data() : nullptr; }

  // A p + B.
  Real gated(int64_t t, int64_t n, int64_t channel, int64_t pixel) const {
    const int64_t at = affine().at(t, n) + channel;
    return a[at] * Real(p[t * step_size(maps) + maps.at(n, channel, pixel)]) + b[at];
  }
  // Its gradient.
  Real passed(int64_t t, int64_t n, int64_t channel, int64_t pixel) const {
    return through(gated(t, n, channel, pixel), floor,
                   Real(up[t * step_size(maps) + maps.at(n, channel, pixel)]));
  }
};

// f(t, n, c, plane) in the order of the planes.
template <class F>
void over_planes(const Maps& maps, const F& f) {
  for (int64_t t = 0, plane = 0; t < maps.steps; ++t)
    for (int64_t n = 0; n < maps.samples; ++n)
      for (int64_t c = 0; c < maps.channels; ++c, ++plane) f(t, n, c, plane);
}

using Cases = std::map<std::string, std::function<void()>>;

// Runs the one that is named, or lists them.
inline int run_case(const Cases& cases, int count, char** arguments) {
  if (count < 2) {
    for (const auto& [name, body] : cases) std::printf("%s\n", name.c_str());
    return 0;
  }
  const auto found = cases.find(arguments[1]);
  if (found == cases.end()) return std::printf("no case %s\n", arguments[1]), 2;
  found->second();
  std::printf("equal\n");
  return 0;
}

}  // namespace attsnn
