// The neurons on the device: one thread walks a vector of neighbouring neurons through all steps, state in
// registers. Torch-free, and run on the host by tests/cpp. Bytes: forward x + s, backward from input grad + x
// + grad_x.
#pragma once
#include "core/call.h"
#include "core/surrogate.h"
#include "cuda/counted.cuh"
#include "cuda/lanes.cuh"

#ifndef ATTSNN_DYNAMIC_SHARED  // the host-run tests bring their own
#define ATTSNN_DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
#endif

namespace attsnn {

template <class Cell, class Io, class Real, class Source, class Fire, int kVector, bool kLearned, bool kCount>
__global__ void __launch_bounds__(kLearned&& kCount ? kRegisterThreads : kForwardThreads)
    neuron_forward_kernel(Forward<Cell, Real, Source, Steps<Io>> call, Fire fire, Rectangular<Real> window,
                          bool aligned) {
  const Lanes<Cell, Real, kVector, kLearned> lanes(call.neuron, call.shape, slot_in_row<kVector>(call.shape),
                                                   aligned);
  if (lanes.count == 0) return;
  const Rules<Real> rules = call.neuron.rules;
  const int64_t bytes_a_step = bytes_of_bits(call.shape.neurons);
  const SourceRows<Source, kVector, false> rows(call.x, lanes);
  const bool repeated = rows.repeated();
  typename SourceRows<Source, kVector, false>::Raw raw[kAhead];
  Real v[kVector];
  Real carried = lanes.start(call.neuron, call.v0, v);
  Counter<Real, kVector> counter(call.counts);
  for (int64_t t0 = 0; t0 < call.shape.steps; t0 += kAhead) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (t0 + i < call.shape.steps) raw[i] = repeated && t0 + i > 0 ? raw[0] : rows.load(t0 + i, lanes);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t t = t0 + i;
      if (t >= call.shape.steps) break;
      if (call.checkpoints != nullptr && t > 0 && t % kCheckpointEvery == 0)
        lanes.put(v, call.checkpoints + (t / kCheckpointEvery - 1) * call.shape.neurons);
      Real x[kVector];
      rows.values(raw[i], t, lanes, x);
      rows.keep(t, lanes, x);
      Pack<Io, kVector> out;
      uint32_t codes = 0;
      int sum = 0;
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        const auto& c = lanes.terms(j);
        const Real h = Cell::charge(c, carried, v[j], x[j]);
        const Real s = fire(h, c);
        v[j] = Cell::reset(c, rules, h, s);
        const Real value = Cell::emit(c, rules.emit, h, emitted(fire, s));
        out[j] = Io(value);
        if constexpr (kCount)
          if (j < lanes.count) sum += counter.take(j, counted<false>(fire, s, value));
        codes |= uint32_t((s > 0 ? 1 : 0) | (window.inside(h - c.centre) ? 2 : 0)) << 2 * j;
      }
      carried = 1;
      if constexpr (kCount) counter.step(t, sum);
      store<kVector>(call.out[t] + lanes.first, out, lanes.count, lanes.whole);
      if (call.bits != nullptr)
#pragma unroll
        for (int b = 0; b < kVector / kNeuronsPerByte; ++b)
          if (kNeuronsPerByte * b < lanes.count) {
            const int left = lanes.count - kNeuronsPerByte * b;  // of a last byte, the neurons that are there
            const uint32_t there = left < kNeuronsPerByte ? (1u << 2 * left) - 1 : 0xffu;
            call.bits[t * bytes_a_step + lanes.first / kNeuronsPerByte + b] = uint8_t(codes >> 8 * b & there);
          }
    }
  }
  if (call.v != nullptr) lanes.put(v, call.v);
  if constexpr (kCount) counter.finish(lanes);
}

// What a thread carries back through time: the gradient of the state, and, where constants learn, their sums.
template <class Cell, class Real, int kVector, bool kLearned>
struct Adjoint {
  using Sums = typename Cell::template Sums<Real>;
  Real grad_v[kVector];
  Sums sums[kLearned ? kVector : 1];

  template <class L>
  ATTSNN_INLINE Adjoint(const L& lanes, const Real* given) : sums{} {
#pragma unroll
    for (int j = 0; j < kVector; ++j)
      grad_v[j] = given != nullptr && j < lanes.count ? given[lanes.first + j] : Real(0);
  }

  // One neuron, one step back; returns the gradient of x.
  ATTSNN_INLINE Real step(int j, const typename Cell::template Terms<Real>& c, const Rules<Real>& rules,
                          Real carried, Real h, Real s, Real slope, Real grad_out, Real before, Real x) {
    Sums own{};
    const Real grad_h = Cell::back(c, rules, rules.emit, h, s, slope, grad_out, grad_v[j], own);
    grad_v[j] = carried * (c.leak * grad_h);
    if constexpr (kLearned) {
      Cell::back_charge(carried, grad_h, before, x, own);
      Real* to = reinterpret_cast<Real*>(&sums[j]);
      for (int k = 0; k < Cell::kConstants; ++k) to[k] += reinterpret_cast<const Real*>(&own)[k];
    }
    return c.gain * grad_h;
  }

  template <class L, class Call>
  ATTSNN_INLINE void finish(const L& lanes, const Call& call) {
    if (call.grad_v0 != nullptr) lanes.put(grad_v, call.grad_v0);
    if constexpr (kLearned) {
      if (call.sums == nullptr) return;
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        if (j >= lanes.count) break;
        if (call.v0 == nullptr) Cell::back_rest(call.neuron.rules, grad_v[j], sums[j]);
        for (int k = 0; k < Cell::kConstants; ++k)
          call.sums[k * call.shape.neurons + lanes.first + j] = reinterpret_cast<const Real*>(&sums[j])[k];
      }
    }
  }
};

// The membranes of a thread's neurons at the steps of a chunk: in registers, where kSteps says how many at
// most (every index is then known to the compiler), or, with kSteps = 0, in the block's shared memory, each
// thread in places of its own.
template <class Real, int kSteps, int kVector>
struct Membranes {
  Real own[kSteps > 0 ? kSteps : 1][kVector];
  Pack<Real, kVector>* shared;
  ATTSNN_INLINE Real& at(int step, int lane) {
    if constexpr (kSteps > 0) return own[step][lane];
    return shared[step * kSharedThreads + threadIdx.x][lane];
  }
};

// From x: forward through a chunk between two checkpoints to get its membranes, then back; the last chunk
// first.
template <class Cell, class Io, class Real, class Source, class Sink, class Fire, class Surrogate, int kSteps,
          int kVector, bool kLearned>
__global__ void __launch_bounds__(kSteps > 0 ? kRegisterThreads : kSharedThreads,
                                  SinkRows<Sink, kVector>::kBlocks)
    neuron_backward_kernel(Backward<Cell, Real, Source, Steps<const Io>, Sink> call, Fire fire,
                           Surrogate surrogate, bool aligned) {
  constexpr int kShared =
      sizeof(Real) == sizeof(float) ? SourceRows<Source, kVector, true>::kInFlight : kAhead / 2;
  constexpr int kGroup = kSteps == 0 ? kShared : kSteps < kAhead ? kSteps : kAhead;
  constexpr int kUnroll = kSteps > 0 ? kSteps / kGroup : 1;
  using Rows = SinkRows<Sink, kVector>;
  const Lanes<Cell, Real, kVector, kLearned> lanes(call.neuron, call.shape,
                                                   Rows::slot(call.grad_x, call.shape), aligned);
  if (!Rows::kTogether && lanes.count == 0) return;
  const Rules<Real> rules = call.neuron.rules;
  const SourceRows<Source, kVector, true> rows(call.x, lanes);
  Rows grad_rows(call.grad_x, lanes);
  using Raw = typename SourceRows<Source, kVector, true>::Raw;
  Membranes<Real, kSteps, kVector> h;
  if constexpr (kSteps == 0) {
    ATTSNN_DYNAMIC_SHARED(unsigned char, shared);
    h.shared = reinterpret_cast<Pack<Real, kVector>*>(shared);
  }
  Adjoint<Cell, Real, kVector, kLearned> adjoint(lanes, call.grad_v);
  const int64_t chunk = chunk_of(call.shape.steps);
  for (int64_t t0 = (call.shape.steps - 1) / chunk * chunk; t0 >= 0; t0 -= chunk) {
    const int64_t left = call.shape.steps - t0;
    const int steps = int(left < chunk ? left : chunk), groups = (steps + kGroup - 1) / kGroup;
    const Real* given = t0 > 0 ? call.checkpoints + (t0 / chunk - 1) * call.shape.neurons : call.v0;
    Real first_v[kVector], v[kVector];
    const Real carried = lanes.start(call.neuron, given, first_v);
#pragma unroll
    for (int j = 0; j < kVector; ++j) v[j] = first_v[j];
#pragma unroll kUnroll
    for (int group = 0; group < (kSteps > 0 ? kUnroll : groups); ++group) {
      const int i0 = group * kGroup;
      Raw raw[kGroup];
#pragma unroll
      for (int i = 0; i < kGroup; ++i)
        if (i0 + i < steps) raw[i] = rows.load(t0 + i0 + i, lanes);
#pragma unroll
      for (int i = 0; i < kGroup; ++i)
        if (i0 + i < steps) {
          Real x[kVector];
          rows.values(raw[i], t0 + i0 + i, lanes, x);
#pragma unroll
          for (int j = 0; j < kVector; ++j) {
            const auto& c = lanes.terms(j);
            const Real membrane = Cell::charge(c, i0 + i > 0 ? Real(1) : carried, v[j], x[j]);
            v[j] = Cell::reset(c, rules, membrane, fire(membrane, c));
            h.at(i0 + i, j) = membrane;
          }
        }
    }
#pragma unroll kUnroll
    for (int group = (kSteps > 0 ? kUnroll : groups) - 1; group >= 0; --group) {
      const int i0 = group * kGroup;
      Pack<Io, kVector> grad_out[kGroup];
      typename Rows::Raw beside[kGroup];
      Raw raw[kLearned ? kGroup : 1];
#pragma unroll
      for (int i = 0; i < kGroup; ++i)
        if (i0 + i < steps) {
          grad_out[i] = load<kVector>(call.grad_out[t0 + i0 + i] + lanes.first, lanes.count, lanes.whole);
          beside[i] = grad_rows.load(t0 + i0 + i, lanes);
          if constexpr (kLearned) raw[i] = rows.load(t0 + i0 + i, lanes);
        }
#pragma unroll
      for (int i = kGroup - 1; i >= 0; --i) {
        if (i0 + i >= steps) continue;
        Real x[kVector];
        Pack<Io, kVector> grad_x;
        if constexpr (kLearned) rows.values(raw[i], t0 + i0 + i, lanes, x);
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
          const auto& c = lanes.terms(j);
          const Real membrane = h.at(i0 + i, j);
          Real before = 0, current = 0;
          if constexpr (kLearned) {
            const Real h_before = h.at(i0 + i > 0 ? i0 + i - 1 : 0, j);
            before = i0 + i > 0 ? Cell::reset(c, rules, h_before, fire(h_before, c)) : first_v[j];
            current = x[j];
          }
          const Real grad = adjoint.step(j, c, rules, i0 + i > 0 ? Real(1) : carried, membrane,
                                         fire(membrane, c), slope_at(surrogate, membrane, c),
                                         emitted(fire, Real(grad_out[i][j])), before, current);
          grad_x[j] = grad_rows.value(beside[i], j, grad);
        }
        grad_rows.store(t0 + i0 + i, lanes, beside[i], grad_x);
      }
    }
  }
  adjoint.finish(lanes, call);
  grad_rows.finish(lanes);
}

// From two bits a neuron and step: a stream, whatever T.
template <class Cell, class Io, class Real, class Source, class Sink, int kVector, bool kLearned>
__global__ void __launch_bounds__(kForwardThreads, SinkRows<Sink, kVector>::kBlocks)
    neuron_backward_from_bits_kernel(Backward<Cell, Real, Source, Steps<const Io>, Sink> call,
                                     Rectangular<Real> window, bool aligned) {
  using Rows = SinkRows<Sink, kVector>;
  constexpr int kSteps = Rows::kTogether && sizeof(Real) > sizeof(float) ? kAhead / 2 : kAhead;  // no spills
  constexpr int kBytes = kVector / kNeuronsPerByte + (Rows::kTogether ? 1 : 0);  // they may start within one
  const Lanes<Cell, Real, kVector, kLearned> lanes(call.neuron, call.shape,
                                                   Rows::slot(call.grad_x, call.shape), aligned);
  if (!Rows::kTogether && lanes.count == 0) return;
  const int64_t bytes_a_step = bytes_of_bits(call.shape.neurons);
  const int within = Rows::kTogether ? int(lanes.first % kNeuronsPerByte) : 0;
  Rows grad_rows(call.grad_x, lanes);
  Adjoint<Cell, Real, kVector, kLearned> adjoint(lanes, call.grad_v);
  const Real carried = call.v0 != nullptr || call.neuron.rules.start_at_reset ? Real(1) : Real(0);
  for (int64_t t0 = call.shape.steps - 1; t0 >= 0; t0 -= kSteps) {
    Pack<Io, kVector> grad_out[kSteps];
    typename Rows::Raw beside[kSteps];
    uint32_t codes[kSteps] = {};
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int64_t t = t0 - i;
      if (t < 0) break;
      grad_out[i] = load<kVector>(call.grad_out[t] + lanes.first, lanes.count, lanes.whole);
      beside[i] = grad_rows.load(t, lanes);
#pragma unroll
      for (int b = 0; b < kBytes; ++b)
        if (kNeuronsPerByte * b < within + lanes.count)
          codes[i] |= uint32_t(call.bits[t * bytes_a_step + lanes.first / kNeuronsPerByte + b]) << 8 * b;
    }
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int64_t t = t0 - i;
      if (t < 0) break;
      Pack<Io, kVector> grad_x;
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        const uint32_t code = codes[i] >> 2 * (within + j);
        const Real grad = adjoint.step(j, lanes.terms(j), call.neuron.rules, t > 0 ? Real(1) : carried,
                                       Real(0), Real(code & 1), code & 2 ? window.height : Real(0),
                                       Real(grad_out[i][j]), Real(0), Real(0));
        grad_x[j] = grad_rows.value(beside[i], j, grad);
      }
      grad_rows.store(t, lanes, beside[i], grad_x);
    }
  }
  adjoint.finish(lanes, call);
  grad_rows.finish(lanes);
}

}  // namespace attsnn
