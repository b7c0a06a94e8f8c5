// A thread's neurons, and its rows of them in memory. Where x comes from and where its gradient goes are
// types: memory, here; what computes them brings specialisations of SourceRows and SinkRows
// (cuda/seam_rows.cuh).
#pragma once
#include "core/call.h"
#include "cuda/pack.cuh"

namespace attsnn {

inline constexpr int kForwardThreads = 256, kRegisterThreads = 128, kSharedThreads = 64;
inline constexpr int kAhead = 4;  // steps whose loads are in flight together

// Neurons a thread: 16-byte accesses. The backward pass holds the membranes of all steps of a chunk on chip:
// up to so many steps in registers, so many values, which compile without spills; more steps, and learned
// constants, in shared memory, with 8-byte accesses.
template <class Source>
inline constexpr int kStepsInRegisters = 16;
template <class Source>
inline constexpr int kValuesInRegisters = 64;
template <class Io>
inline constexpr int kWideVector = sizeof(Io) >= 4 ? 4 : 8;
template <class Io, class Source>
inline constexpr int kBackwardWide = kWideVector<Io>;
template <class Io, int kSteps, class Source = Steps<const Io>>
inline constexpr int kBackwardVector =
    kSteps == 0 ? (sizeof(Io) >= 8 ? 1 : 8 / sizeof(Io))
    : kBackwardWide<Io, Source> * kSteps <= kValuesInRegisters<Source> ? kBackwardWide<Io, Source>
                                                                       : kValuesInRegisters<Source> / kSteps;

// Where the neurons of one thread lie in a step.
struct Slot {
  int64_t first;
  int count;
};
// Of all threads in a row.
template <int kVector>
ATTSNN_DEVICE Slot slot_in_row(const Shape& shape) {
  const int64_t first = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * kVector;
  const int64_t left = shape.neurons - first;
  return {first, left < kVector ? int(left < 0 ? 0 : left) : kVector};
}

// A thread's neurons: where they lie, their terms and their state.
template <class Cell, class Real, int kVector, bool kLearned>
struct Lanes {
  using Terms = typename Cell::template Terms<Real>;
  int64_t first;
  int count;
  bool whole;
  Terms own[kLearned ? kVector : 1];

  ATTSNN_INLINE Lanes(const Neuron<Cell, Real>& neuron, const Shape& shape, const Slot& slot, bool aligned)
      : first(slot.first), count(slot.count), whole(aligned && slot.count == kVector) {
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

// A source as the neurons of one thread see it: `load` starts the accesses of a step, `values` makes its x of
// what came, `keep` writes what the forward pass hands on. kBack: for the backward pass; kInFlight: the steps
// that it loads together where its membranes are in shared memory, as many as compile without spills.
template <class Source, int kVector, bool kBack>
struct SourceRows;

template <class Io, int kVector, bool kBack>
struct SourceRows<Steps<const Io>, kVector, kBack> {
  static constexpr int kInFlight = 2 * kAhead;
  using Raw = Pack<Io, kVector>;
  Steps<const Io> from;

  template <class L>
  ATTSNN_INLINE SourceRows(const Steps<const Io>& source, const L&) : from(source) {}
  ATTSNN_INLINE bool repeated() const { return from.stride == 0; }
  template <class L>
  ATTSNN_INLINE Raw load(int64_t t, const L& lanes) const {
    return attsnn::load<kVector>(from[t] + lanes.first, lanes.count, lanes.whole);
  }
  template <class L, class Real>
  ATTSNN_INLINE void values(const Raw& raw, int64_t, const L&, Real* x) const {
#pragma unroll
    for (int j = 0; j < kVector; ++j) x[j] = Real(raw[j]);
  }
  template <class L, class Real>
  ATTSNN_INLINE void keep(int64_t, const L&, const Real*) const {}
};

// A sink, in the same way: `load` starts the accesses that the gradient of a step needs before it is stored;
// `value` is what of a neuron's gradient is stored, one by one: a vector of them would be live at once. It
// says where a thread's neurons lie, too. kTogether: the threads of a block wait for each other, so that none
// may leave. kBlocks: those of a multiprocessor that __launch_bounds__ asks for, 0 where the compiler may
// choose.
template <class Sink, int kVector>
struct SinkRows;

template <class Io, int kVector>
struct SinkRows<Steps<Io>, kVector> {
  static constexpr int kBlocks = 0;
  static constexpr bool kTogether = false;
  struct Raw {};
  Steps<Io> to;

  ATTSNN_DEVICE static Slot slot(const Steps<Io>&, const Shape& shape) { return slot_in_row<kVector>(shape); }
  template <class L>
  ATTSNN_INLINE SinkRows(const Steps<Io>& sink, const L&) : to(sink) {}
  template <class L>
  ATTSNN_INLINE Raw load(int64_t, const L&) const {
    return {};
  }
  template <class Real>
  ATTSNN_INLINE Io value(const Raw&, int, Real grad_x) const {
    return Io(grad_x);
  }
  template <class L>
  ATTSNN_INLINE void store(int64_t t, const L& lanes, const Raw&, const Pack<Io, kVector>& pack) const {
    attsnn::store<kVector>(to[t] + lanes.first, pack, lanes.count, lanes.whole);
  }
  template <class L>
  ATTSNN_INLINE void finish(const L&) const {}
};

}  // namespace attsnn
