// Rows in memory, in the state's type or converted.
#pragma once
#include <algorithm>
#include <type_traits>

#include "cpu/isa.h"
#include "cpu/tiles.h"

namespace attsnn {

template <class From, class To>
ATTSNN_INLINE void convert_row(int64_t count, const From* __restrict from, To* __restrict to) {
#pragma GCC ivdep
  for (int64_t j = 0; j < count; ++j) to[j] = To(from[j]);
}

template <class Real>
ATTSNN_INLINE void add_row(int64_t count, const Real* __restrict from, Real* __restrict to) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) to[i] += from[i];
}

// `count` values as Real: themselves, or converted into the buffer.
template <class Io, class Real>
const Real* as_real(const Io* from, int64_t count, Real* buffer) {
  if constexpr (std::is_same_v<Io, Real>)
    return from;
  else {
    with_isa<convert_row<Io, Real>>(count, from, buffer);
    return buffer;
  }
}

template <class Io, class Real>
class MemorySource final : public Source<Real> {
 public:
  explicit MemorySource(Steps<const Io> memory) : memory_(memory) {}
  const Real* row(int64_t t, int64_t first, int64_t count, Real* buffer) const override {
    return as_real(memory_[t] + first, count, buffer);
  }

 private:
  Steps<const Io> memory_;
};

template <class Io, class Real>
class MemorySink final : public Sink<Real> {
 public:
  explicit MemorySink(Steps<Io> memory) : memory_(memory) {}
  Real* place(int64_t t, int64_t first, Real* buffer) const override {
    if constexpr (std::is_same_v<Io, Real>) return memory_[t] + first;
    return buffer;
  }
  void take(int64_t t, int64_t first, int64_t count, Real* row) const override {
    if constexpr (!std::is_same_v<Io, Real>)
      with_isa<convert_row<Real, Io>>(count, static_cast<const Real*>(row), memory_[t] + first);
  }

 private:
  Steps<Io> memory_;
};

// The sum over all steps, in the state's type, into one row. A thread brings all steps of a tile in turn.
template <class Io, class Real>
class SumOverSteps final : public Sink<Real> {
 public:
  SumOverSteps(Io* memory, int64_t steps) : memory_(memory), steps_(steps) {}
  Real* place(int64_t, int64_t, Real* buffer) const override { return buffer; }
  void take(int64_t, int64_t first, int64_t count, Real* row) const override {
    alignas(64) thread_local Real sum[kTile];
    thread_local int64_t taken = 0;
    if (taken == 0)
      std::copy_n(row, count, sum);
    else
      with_isa<add_row<Real>>(count, static_cast<const Real*>(row), &sum[0]);
    if (++taken < steps_) return;
    with_isa<convert_row<Real, Io>>(count, static_cast<const Real*>(sum), memory_ + first);
    taken = 0;
  }

 private:
  Io* memory_;
  int64_t steps_;
};

// The same call with its memory behind rows: f(call).
template <class Cell, class Io, class Real, class F>
void with_rows(const ForwardCall<Cell, Io, Real>& call, const F& f) {
  const MemorySource<Io, Real> x(call.x);
  const MemorySink<Io, Real> out(call.out);
  f(ForwardTiles<Cell, Real>{call.shape, call.neuron, &x, &out, call.v0, call.v, call.checkpoints, call.bits,
                             call.counts});
}
template <class Cell, class Io, class Real, class F>
void with_rows(const BackwardCall<Cell, Io, Real>& call, const F& f) {
  const MemorySource<Io, Real> x(call.x), grad_out(call.grad_out);
  const MemorySink<Io, Real> by_step(call.grad_x);
  const SumOverSteps<Io, Real> summed(call.grad_x.data, call.shape.steps);
  const Sink<Real>* grad_x = &by_step;
  if (call.grad_x.stride == 0 && call.shape.steps > 1) grad_x = &summed;
  f(BackwardTiles<Cell, Real>{call.shape, call.neuron, &grad_out, call.grad_v, &x, call.v0, call.checkpoints,
                              call.bits, grad_x, call.grad_v0, call.sums});
}

}  // namespace attsnn
