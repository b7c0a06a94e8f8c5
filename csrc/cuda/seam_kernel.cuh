// The folds of a seam but its statistics: each reads p.
#pragma once
#include "cuda/fold_kernel.cuh"

namespace attsnn {

struct Sum {
  double value;
};

// Pass B.
template <class Io, class Real, int kV, bool kLast>
struct ProjectFold {
  static constexpr int kStates = kLast ? kV : 1, kAhead = 4;
  using State = Sum;
  using Raw = Pack<Io, kV>;
  ProjectCall<Io, Real> call;

  struct Own {
    const Io* p;
    const Real* weight;
    Real centre[kStates];
    ATTSNN_INLINE Own(const ProjectFold& fold, int64_t t, int64_t n, int64_t c)
        : p(fold.call.p[t] + fold.call.maps.at(n, c, 0)),
          weight(fold.call.weight + n * fold.call.maps.pixels()) {
#pragma unroll
      for (int j = 0; j < kStates; ++j)
        centre[j] = fold.call.centre == nullptr ? Real(0) : fold.call.centre[c + j];
    }
  };

  ATTSNN_INLINE int items() const { return int(call.maps.pixels() / (kLast ? 1 : kV)); }
  ATTSNN_INLINE void start(State& state) const { state = {0}; }
  ATTSNN_INLINE void merge(State& state, const State& other) const { state.value += other.value; }
  ATTSNN_INLINE Raw load(const Own& own, int item) const {
    return load_whole<kV>(own.p + item * (kLast ? call.maps.channels : kV));
  }
  ATTSNN_INLINE void visit(const Own& own, const Raw& raw, int item, State* states) const {
    Real weight[kLast ? 1 : kV];
    load_cached<kLast ? 1 : kV>(own.weight + int64_t(item) * (kLast ? 1 : kV), weight);
#pragma unroll
    for (int j = 0; j < kV; ++j) {
      const int k = kLast ? j : 0;
      states[k].value += double(weight[kLast ? 0 : j] * (Real(raw[j]) - own.centre[k]));
    }
  }
  ATTSNN_INLINE void finish(const State& state, int64_t t, int64_t n, int64_t c) const {
    call.sum[call.maps.plane(t, n, c)] = state.value;
  }
};

// Where a fold over the (t, c) of a pixel reads: tc = t * C + c.
template <class Io, class Real, int kV, bool kLast>
struct StepsOfPixel {
  int64_t n, pixel;
  template <class Fold>
  ATTSNN_INLINE StepsOfPixel(const Fold&, int64_t sample, int64_t first) : n(sample), pixel(first) {}

  template <class Call>
  ATTSNN_INLINE Pack<Io, kV> load(const Call& call, const Steps<const Io>& from, int tc) const {
    const int channels = int(call.maps.channels);
    return load_whole<kV>(from[tc / channels] + call.maps.at(n, tc % channels, pixel));
  }
  // A p + B.
  template <class Call>
  ATTSNN_INLINE void gated(const Call& call, const Pack<Io, kV>& p, int tc, Real* to) const {
    constexpr int kCount = kLast ? kV : 1;
    const int channels = int(call.maps.channels);
    const int64_t at = call.affine.at(tc / channels, n) + tc % channels;
    Real a[kCount], b[kCount];
    load_cached<kCount>(call.affine.a + at, a);
    load_cached<kCount>(call.affine.b + at, b);
#pragma unroll
    for (int j = 0; j < kV; ++j) to[j] = a[kLast ? j : 0] * Real(p[j]) + b[kLast ? j : 0];
  }
};

// SA's descriptors.
template <class Io, class Real, int kV, bool kLast>
struct SqueezeFold {
  static constexpr int kStates = kLast ? 1 : kV, kWide = kV, kAhead = 4;
  using Raw = Pack<Io, kV>;
  using Own = StepsOfPixel<Io, Real, kV, kLast>;
  SqueezeCall<Io, Real> call;

  struct State {
    double sum;
    Extremum<Real> extremum;
  };
  ATTSNN_INLINE void start(State& state) const { state = {0, no_extremum<Real>()}; }
  ATTSNN_INLINE void merge(State& state, const State& other) const {
    state.sum += other.sum;
    state.extremum.meet(other.extremum.value, other.extremum.place);
  }
  ATTSNN_INLINE Raw load(const Own& own, int tc) const { return own.load(call, call.p, tc); }
  ATTSNN_INLINE void visit(const Own& own, const Raw& raw, int tc, State* states) const {
    Real gated[kV];
    own.gated(call, raw, tc, gated);
#pragma unroll
    for (int j = 0; j < kV; ++j) {
      State& state = states[kLast ? 0 : j];
      state.sum += double(gated[j]);
      meet_later(state.extremum, gated[j], tc + (kLast ? j : 0));
    }
  }
  ATTSNN_INLINE void finish(const State& state, int64_t to) const {
    call.mean[to] = Real(state.sum / double(call.maps.steps * call.maps.channels));
    call.extremum[to] = state.extremum.value;
    call.place[to] = state.extremum.place;
  }
};

}  // namespace attsnn
