// The neurons on the device: one thread walks a vector of neighbouring neurons through all steps, state in
// registers. Torch-free, and run on the host by tests/cpp. Bytes: forward x + s, backward from input grad + x
// + grad_x.
#pragma once
#include "core/call.h"
#include "core/surrogate.h"
#include "cuda/pack.cuh"

#ifndef ATTSNN_DYNAMIC_SHARED  // the host-run tests bring their own
#define ATTSNN_DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
#endif

namespace attsnn {

inline constexpr int kForwardThreads = 256, kRegisterThreads = 128, kSharedThreads = 64;
inline constexpr int kAhead = 4;  // steps whose loads are in flight together

// Neurons a thread: 16-byte accesses. The backward pass holds the membranes of all steps of a chunk on chip:
// up to 16 steps in registers, 64 values, which compile without spills; more steps, and learned constants, in
// shared memory, with 8-byte accesses.
inline constexpr int kStepsInRegisters = 16, kValuesInRegisters = 64;
template <class Io>
inline constexpr int kWideVector = sizeof(Io) >= 4 ? 4 : 8;
template <class Io, int kSteps>
inline constexpr int kBackwardVector =
    kSteps == 0                                      ? (sizeof(Io) >= 8 ? 1 : 8 / sizeof(Io))
    : kWideVector<Io> * kSteps <= kValuesInRegisters ? kWideVector<Io>
                                                     : kValuesInRegisters / kSteps;

// A thread's neurons: where they lie, their terms and their state.
template <class Cell, class Real, int kVector, bool kLearned>
struct Lanes {
  using Terms = typename Cell::template Terms<Real>;
  int64_t first;
  int count;
  bool whole;
  Terms own[kLearned ? kVector : 1];

  ATTSNN_INLINE Lanes(const Neuron<Cell, Real>& neuron, const Shape& shape, int64_t thread, bool aligned)
      : first(thread * kVector) {
    const int64_t left = shape.neurons - first;
    count = left < kVector ? int(left < 0 ? 0 : left) : kVector;
    whole = aligned && count == kVector;
#pragma unroll
    for (int j = 0; j < (kLearned ? kVector : 1); ++j)
      own[j] = neuron.terms(shape.channel(j < count ? first + j : 0), shape.channels);
  }
  ATTSNN_INLINE const Terms& terms(int j) const { return own[kLearned ? j : 0]; }

  // The state before a step; 0 where the sequence starts there from nothing, else 1.
  ATTSNN_INLINE Real start(const Neuron<Cell, Real>& neuron, const Real* given, Real* v) const {
#pragma unroll
    for (int j = 0; j < kVector; ++j)
      v[j] = given == nullptr ? Cell::rest(terms(j), neuron.rules) : j < count ? given[first + j] : Real(0);
    return given != nullptr || neuron.rules.start_at_reset ? Real(1) : Real(0);
  }

  ATTSNN_INLINE void put(const Real* values, Real* to) const {
#pragma unroll
    for (int j = 0; j < kVector; ++j)
      if (j < count) to[first + j] = values[j];
  }
};

template <class Cell, class Io, class Real, class Fire, int kVector, bool kLearned>
__global__ void __launch_bounds__(kForwardThreads)
    neuron_forward_kernel(ForwardCall<Cell, Io, Real> call, Fire fire, Rectangular<Real> window,
                          bool aligned) {
  const Lanes<Cell, Real, kVector, kLearned> lanes(call.neuron, call.shape,
                                                   int64_t(blockIdx.x) * blockDim.x + threadIdx.x, aligned);
  if (lanes.count == 0) return;
  const Rules<Real> rules = call.neuron.rules;
  const int64_t bytes_a_step = bytes_of_bits(call.shape.neurons);
  const bool repeated = call.x.stride == 0;
  Pack<Io, kVector> x[kAhead];
  Real v[kVector];
  Real carried = lanes.start(call.neuron, call.v0, v);
  for (int64_t t0 = 0; t0 < call.shape.steps; t0 += kAhead) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (t0 + i < call.shape.steps)
        x[i] = repeated && t0 + i > 0 ? x[0]
                                      : load<kVector>(call.x[t0 + i] + lanes.first, lanes.count, lanes.whole);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t t = t0 + i;
      if (t >= call.shape.steps) break;
      if (call.checkpoints != nullptr && t > 0 && t % kCheckpointEvery == 0)
        lanes.put(v, call.checkpoints + (t / kCheckpointEvery - 1) * call.shape.neurons);
      Pack<Io, kVector> out;
      uint32_t codes = 0;
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        const auto& c = lanes.terms(j);
        const Real h = Cell::charge(c, carried, v[j], Real(x[i][j]));
        const Real s = fire(h, c);
        v[j] = Cell::reset(c, rules, h, s);
        out[j] = Io(Cell::emit(c, rules.emit, h, s));
        codes |= uint32_t((s > 0 ? 1 : 0) | (window.inside(h - c.centre) ? 2 : 0)) << 2 * j;
      }
      carried = 1;
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
template <class Cell, class Io, class Real, class Fire, class Surrogate, int kSteps, int kVector,
          bool kLearned>
__global__ void __launch_bounds__(kSteps > 0 ? kRegisterThreads : kSharedThreads)
    neuron_backward_kernel(BackwardCall<Cell, Io, Real> call, Fire fire, Surrogate surrogate, bool aligned) {
  constexpr int kShared = sizeof(Real) == sizeof(float) ? 2 * kAhead : kAhead / 2;  // registers
  constexpr int kGroup = kSteps == 0 ? kShared : kSteps < kAhead ? kSteps : kAhead;
  constexpr int kUnroll = kSteps > 0 ? kSteps / kGroup : 1;
  const Lanes<Cell, Real, kVector, kLearned> lanes(call.neuron, call.shape,
                                                   int64_t(blockIdx.x) * blockDim.x + threadIdx.x, aligned);
  if (lanes.count == 0) return;
  const Rules<Real> rules = call.neuron.rules;
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
      Pack<Io, kVector> x[kGroup];
#pragma unroll
      for (int i = 0; i < kGroup; ++i)
        if (i0 + i < steps) x[i] = load<kVector>(call.x[t0 + i0 + i] + lanes.first, lanes.count, lanes.whole);
#pragma unroll
      for (int i = 0; i < kGroup; ++i)
        if (i0 + i < steps)
#pragma unroll
          for (int j = 0; j < kVector; ++j) {
            const auto& c = lanes.terms(j);
            const Real membrane = Cell::charge(c, i0 + i > 0 ? Real(1) : carried, v[j], Real(x[i][j]));
            v[j] = Cell::reset(c, rules, membrane, fire(membrane, c));
            h.at(i0 + i, j) = membrane;
          }
    }
#pragma unroll kUnroll
    for (int group = (kSteps > 0 ? kUnroll : groups) - 1; group >= 0; --group) {
      const int i0 = group * kGroup;
      Pack<Io, kVector> grad_out[kGroup], x[kLearned ? kGroup : 1];
#pragma unroll
      for (int i = 0; i < kGroup; ++i)
        if (i0 + i < steps) {
          grad_out[i] = load<kVector>(call.grad_out[t0 + i0 + i] + lanes.first, lanes.count, lanes.whole);
          if constexpr (kLearned)
            x[i] = load<kVector>(call.x[t0 + i0 + i] + lanes.first, lanes.count, lanes.whole);
        }
#pragma unroll
      for (int i = kGroup - 1; i >= 0; --i) {
        if (i0 + i >= steps) continue;
        Pack<Io, kVector> grad_x;
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
          const auto& c = lanes.terms(j);
          const Real membrane = h.at(i0 + i, j);
          Real before = 0, current = 0;
          if constexpr (kLearned) {
            const Real h_before = h.at(i0 + i > 0 ? i0 + i - 1 : 0, j);
            before = i0 + i > 0 ? Cell::reset(c, rules, h_before, fire(h_before, c)) : first_v[j];
            current = Real(x[i][j]);
          }
          grad_x[j] =
              Io(adjoint.step(j, c, rules, i0 + i > 0 ? Real(1) : carried, membrane, fire(membrane, c),
                              surrogate.slope(membrane - c.centre), Real(grad_out[i][j]), before, current));
        }
        store<kVector>(call.grad_x[t0 + i0 + i] + lanes.first, grad_x, lanes.count, lanes.whole);
      }
    }
  }
  adjoint.finish(lanes, call);
}

// From two bits a neuron and step: a stream, whatever T.
template <class Cell, class Io, class Real, int kVector, bool kLearned>
__global__ void __launch_bounds__(kForwardThreads)
    neuron_backward_from_bits_kernel(BackwardCall<Cell, Io, Real> call, Rectangular<Real> window,
                                     bool aligned) {
  constexpr int kBytes = kVector / kNeuronsPerByte;
  const Lanes<Cell, Real, kVector, kLearned> lanes(call.neuron, call.shape,
                                                   int64_t(blockIdx.x) * blockDim.x + threadIdx.x, aligned);
  if (lanes.count == 0) return;
  const int64_t bytes_a_step = bytes_of_bits(call.shape.neurons);
  Adjoint<Cell, Real, kVector, kLearned> adjoint(lanes, call.grad_v);
  const Real carried = call.v0 != nullptr || call.neuron.rules.start_at_reset ? Real(1) : Real(0);
  for (int64_t t0 = call.shape.steps - 1; t0 >= 0; t0 -= kAhead) {
    Pack<Io, kVector> grad_out[kAhead];
    uint32_t codes[kAhead] = {};
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t t = t0 - i;
      if (t < 0) break;
      grad_out[i] = load<kVector>(call.grad_out[t] + lanes.first, lanes.count, lanes.whole);
#pragma unroll
      for (int b = 0; b < kBytes; ++b)
        if (kNeuronsPerByte * b < lanes.count)
          codes[i] |= uint32_t(call.bits[t * bytes_a_step + lanes.first / kNeuronsPerByte + b]) << 8 * b;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t t = t0 - i;
      if (t < 0) break;
      Pack<Io, kVector> grad_x;
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        const uint32_t code = codes[i] >> 2 * j;
        grad_x[j] = Io(adjoint.step(j, lanes.terms(j), call.neuron.rules, t > 0 ? Real(1) : carried, Real(0),
                                    Real(code & 1), code & 2 ? window.height : Real(0), Real(grad_out[i][j]),
                                    Real(0), Real(0)));
      }
      store<kVector>(call.grad_x[t] + lanes.first, grad_x, lanes.count, lanes.whole);
    }
  }
  adjoint.finish(lanes, call);
}

}  // namespace attsnn
