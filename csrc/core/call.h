// What a driver gets: raw pointers and numbers. Inner index i of a neuron is its place in the memory of one
// step.
#pragma once
#include <cstdint>

#include "counts.h"
#include "fire.h"
#include "lif.h"

namespace attsnn {

// Above kCheckpointAbove steps the forward pass writes the state every kCheckpointEvery steps, and the
// backward pass recomputes one such chunk at a time.
inline constexpr int kCheckpointAbove = 64, kCheckpointEvery = 32;

// Two bits a neuron and step, spike and window, four neurons a byte: kept for backward where they suffice.
// Laid out [T, bytes]: a quarter byte a neuron and step for every T, and the backward pass streams, whatever
// T.
inline constexpr int kNeuronsPerByte = 4;

ATTSNN_INLINE constexpr int64_t bytes_of_bits(int64_t n) {
  return (n + kNeuronsPerByte - 1) / kNeuronsPerByte;
}
ATTSNN_INLINE constexpr int64_t chunk_of(int64_t steps) {
  return steps > kCheckpointAbove ? kCheckpointEvery : steps;
}

struct Shape {
  int64_t steps, neurons;            // T, and the neurons of one step
  int64_t channels, channel_stride;  // of a neuron's channel: (i / channel_stride) % channels

  ATTSNN_INLINE int64_t channel(int64_t i) const { return channels == 1 ? 0 : i / channel_stride % channels; }
  // The k-th neuron of a channel.
  ATTSNN_INLINE int64_t member(int64_t channel, int64_t k) const {
    return channels == 1 ? k
                         : (k / channel_stride * channels + channel) * channel_stride + k % channel_stride;
  }
};

template <class Cell, class Real>
struct Neuron {
  typename Cell::template Constants<Real> constants;
  const Real* learned = nullptr;  // [kConstants, channels] in place of `constants`, or null
  Rules<Real> rules;
  Real centre;  // of the surrogate, where it is not centred on the threshold

  // The terms of the neurons of one channel.
  ATTSNN_INLINE typename Cell::template Terms<Real> terms(int64_t channel, int64_t channels) const {
    typename Cell::template Constants<Real> own = constants;
    Real* values = reinterpret_cast<Real*>(&own);
    if (learned)
#pragma unroll
      for (int k = 0; k < Cell::kConstants; ++k) values[k] = learned[k * channels + channel];
    return Cell::terms(own, rules, centre);
  }
};

// A sequence of one step after the other, `stride` elements apart: 0 where every step is the same.
template <class T>
struct Steps {
  T* data = nullptr;
  int64_t stride = 0;
  ATTSNN_INLINE T* operator[](int64_t t) const { return data + t * stride; }
};

// Where a call reads and writes its rows is a type of its own: memory, or something that computes them.
template <class Cell, class Real, class Source, class Sink>
struct Forward {
  Shape shape;
  Neuron<Cell, Real> neuron;
  Source x;
  Sink out;
  const Real* v0 = nullptr;     // null: none given
  Real* v = nullptr;            // null: not wanted
  Real* checkpoints = nullptr;  // [(T - 1) / kCheckpointEvery, neurons], or null
  uint8_t* bits = nullptr;      // [T, bytes_of_bits(neurons)], or null
  Counts counts;                // of what is emitted
};

template <class Cell, class Real, class Source, class Gradient, class Sink>
struct Backward {
  Shape shape;
  Neuron<Cell, Real> neuron;
  Gradient grad_out;
  const Real* grad_v = nullptr;  // null: zero
  Source x;                      // not read where bits are kept
  const Real* v0 = nullptr;
  const Real* checkpoints = nullptr;
  const uint8_t* bits = nullptr;
  Sink grad_x;
  Real* grad_v0 = nullptr;  // null: not wanted
  Real* sums = nullptr;  // [kConstants, neurons], the gradients of the constants by neuron; null: not wanted
};

template <class Cell, class Io, class Real>
using ForwardCall = Forward<Cell, Real, Steps<const Io>, Steps<Io>>;
template <class Cell, class Io, class Real>
using BackwardCall = Backward<Cell, Real, Steps<const Io>, Steps<const Io>, Steps<Io>>;

}  // namespace attsnn
