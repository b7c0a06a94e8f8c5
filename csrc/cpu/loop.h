// The CPU driver: tiles of neurons inside, time outside, so that a row vectorises and a tile's state stays in
// the nearest cache. No torch here; neuron.cpp gives it memory and threads.
#pragma once
#include <algorithm>

#include "cpu/isa.h"
#include "cpu/rows.h"

namespace attsnn {

// A row of x or of a gradient in the state's type: itself, or converted into the buffer.
template <class Io, class Real>
const Real* read_row(const Io* from, int64_t count, Real* buffer) {
  if constexpr (std::is_same_v<Io, Real>)
    return from;
  else
    return with_isa<convert_row<Io, Real>>(count, from, buffer), buffer;
}

// Where a row of results is computed, and what brings it to its place.
template <class Io, class Real>
Real* row_for(Io* to, Real* buffer) {
  if constexpr (std::is_same_v<Io, Real>)
    return to;
  else
    return buffer;
}
template <class Io, class Real>
void write_row(const Real* row, int64_t count, Io* to) {
  if constexpr (!std::is_same_v<Io, Real>) with_isa<convert_row<Real, Io>>(count, row, to);
}

// What a tile works in: one a thread.
template <class Cell, class Real, bool kArrays>
struct Workspace {
  RowTerms<Cell, Real, kArrays> terms;
  alignas(64) Real arrays[kArrays ? Cell::kTerms * kTile : 1];
  alignas(64) Real v[kTile], s[kTile], slope[kTile], before[kTile], grad_v[kTile], in[kTile], out[kTile],
      x[kTile];
  alignas(64) Real sums[Cell::kConstants * kTile];
  alignas(64) Real h[kCheckpointAbove][kTile];  // of one chunk of steps

  void load(const Neuron<Cell, Real>& neuron, const Shape& shape, int64_t first, int64_t count) {
    terms = {neuron.terms(0, shape.channels), arrays};
    if constexpr (kArrays)
      for (int64_t j = 0; j < count; ++j) {
        const auto own = neuron.terms(shape.channel(first + j), shape.channels);
        for (int k = 0; k < Cell::kTerms; ++k) arrays[k * kTile + j] = reinterpret_cast<const Real*>(&own)[k];
      }
  }
};

// The only place where emit becomes a type: rows without a branch.
template <class F>
void dispatch_emit(Emit emit, const F& f) {
  switch (emit) {
    case Emit::kSpike:
      return f.template operator()<Emit::kSpike>();
    case Emit::kMembrane:
      return f.template operator()<Emit::kMembrane>();
    case Emit::kReluMembrane:
      return f.template operator()<Emit::kReluMembrane>();
    case Emit::kReluOvershoot:
      return f.template operator()<Emit::kReluOvershoot>();
  }
}

// The state before a tile's first step, into w.v; 0 where the sequence starts there from nothing, else 1
// (`carried`).
template <class Cell, class Real, bool kArrays>
Real start_state(const Neuron<Cell, Real>& neuron, const Real* given, int64_t count,
                 Workspace<Cell, Real, kArrays>& w) {
  if (given != nullptr) {
    std::copy_n(given, count, w.v);
    return 1;
  }
  for (int64_t j = 0; j < count; ++j) w.v[j] = Cell::rest(w.terms[j], neuron.rules);
  return neuron.rules.start_at_reset ? 1 : 0;
}

template <class Cell, class Io, class Real, bool kArrays, class Fire>
void forward_tile(const ForwardCall<Cell, Io, Real>& call, const Fire& fire, const Rectangular<Real>& window,
                  int64_t first, int64_t count, Workspace<Cell, Real, kArrays>& w) {
  const Rules<Real> rules = call.neuron.rules;
  const int64_t bytes_a_step = bytes_of_bits(call.shape.neurons);
  w.load(call.neuron, call.shape, first, count);
  const auto terms = w.terms;
  const Real *h = w.h[0], *s_of_step = w.s;
  Real carried = start_state(call.neuron, call.v0 ? call.v0 + first : nullptr, count, w);
  for (int64_t t = 0; t < call.shape.steps; ++t) {
    if (call.checkpoints != nullptr && t > 0 && t % kCheckpointEvery == 0)
      std::copy_n(w.v, count, call.checkpoints + (t / kCheckpointEvery - 1) * call.shape.neurons + first);
    Io* to = call.out[t] + first;
    Real* out = row_for<Io, Real>(to, w.out);
    Real* s = rules.emit == Emit::kSpike ? out : w.s;
    const Real* x = read_row(call.x[t] + first, count, w.in);
    with_isa<charge_row<Cell, Real, kArrays, Fire>>(count, terms, rules, fire, carried, x, &w.v[0],
                                                    &w.h[0][0], s);
    if (rules.emit != Emit::kSpike)
      dispatch_emit(rules.emit, [&]<Emit kEmit>() {
        with_isa<emit_row<Cell, Real, kArrays, kEmit>>(count, terms, h, s_of_step, out);
      });
    if (call.bits != nullptr)
      with_isa<pack_row<Cell, Real, kArrays>>(count, terms, window, h, static_cast<const Real*>(s),
                                              call.bits + t * bytes_a_step + first / kNeuronsPerByte);
    write_row(out, count, to);
    carried = 1;
  }
  if (call.v != nullptr) std::copy_n(w.v, count, call.v + first);
}

// One step back from h, and s and slope in the workspace; h may be any row where the reset needs no membrane.
template <class Cell, class Io, class Real, bool kLearned>
void back_step(const BackwardCall<Cell, Io, Real>& call, int64_t t, Real carried, const Real* h,
               int64_t first, int64_t count, Workspace<Cell, Real, kLearned>& w) {
  Io* to = call.grad_x[t] + first;
  Real* grad_x = row_for<Io, Real>(to, w.out);
  const Real* grad_out = read_row(call.grad_out[t] + first, count, w.in);
  const Real* x = kLearned && call.x.data != nullptr ? read_row(call.x[t] + first, count, w.x) : w.x;
  const Real *s = w.s, *slope = w.slope, *before = w.before;
  dispatch_emit(call.neuron.rules.emit, [&]<Emit kEmit>() {
    with_isa<back_row<Cell, Real, kLearned, kEmit>>(count, w.terms, call.neuron.rules, carried, h, s, slope,
                                                    grad_out, x, before, &w.grad_v[0], grad_x, &w.sums[0]);
  });
  write_row<Io, Real>(grad_x, count, to);
}

// From two bits a neuron and step; the rows that only the gradients of leak and gain would read are zero.
template <class Cell, class Io, class Real, bool kLearned>
void backward_from_bits(const BackwardCall<Cell, Io, Real>& call, const Rectangular<Real>& window,
                        int64_t first, int64_t count, Workspace<Cell, Real, kLearned>& w) {
  const int64_t bytes_a_step = bytes_of_bits(call.shape.neurons);
  const Real carried =
      start_state<Cell, Real, kLearned>(call.neuron, call.v0 ? call.v0 + first : nullptr, count, w);
  for (Real* row : {w.h[0], w.x, w.before}) std::fill_n(row, kTile, Real(0));
  for (int64_t t = call.shape.steps; t-- > 0;) {
    with_isa<unpack_row<Real>>(count, window, call.bits + t * bytes_a_step + first / kNeuronsPerByte, &w.s[0],
                               &w.slope[0]);
    back_step(call, t, t > 0 ? Real(1) : carried, w.h[0], first, count, w);
  }
}

// From x: a chunk of steps at a time, forward to get h, then back.
template <class Cell, class Io, class Real, bool kLearned, class Fire, class Surrogate>
void backward_from_input(const BackwardCall<Cell, Io, Real>& call, const Fire& fire,
                         const Surrogate& surrogate, int64_t first, int64_t count,
                         Workspace<Cell, Real, kLearned>& w) {
  const Rules<Real> rules = call.neuron.rules;
  const int64_t steps = call.shape.steps, chunk = chunk_of(steps);
  const auto terms = w.terms;
  for (int64_t t0 = (steps - 1) / chunk * chunk; t0 >= 0; t0 -= chunk) {
    const int64_t t1 = std::min(t0 + chunk, steps);
    const Real* given = t0 > 0 ? call.checkpoints + (t0 / chunk - 1) * call.shape.neurons : call.v0;
    if (given != nullptr) given += first;
    const Real carried = start_state(call.neuron, given, count, w);
    for (int64_t t = t0; t < t1; ++t)
      with_isa<charge_row<Cell, Real, kLearned, Fire>>(count, terms, rules, fire, t > t0 ? Real(1) : carried,
                                                       read_row(call.x[t] + first, count, w.in), &w.v[0],
                                                       &w.h[t - t0][0], &w.s[0]);
    for (int64_t t = t1; t-- > t0;) {
      const Real* h = w.h[t - t0];
      if (kLearned && t > t0) {
        const Real* h_before = w.h[t - t0 - 1];
        with_isa<reset_row<Cell, Real, kLearned, Fire>>(count, terms, rules, fire, h_before, &w.s[0],
                                                        &w.before[0]);
      } else if (kLearned) {
        start_state(call.neuron, given, count, w);
        std::copy_n(w.v, count, w.before);
      }
      with_isa<reset_row<Cell, Real, kLearned, Fire>>(count, terms, rules, fire, h, &w.s[0], &w.v[0]);
      with_isa<slope_row<Cell, Real, kLearned, Surrogate>>(count, terms, surrogate, h, &w.slope[0]);
      back_step(call, t, t > t0 ? Real(1) : carried, h, first, count, w);
    }
  }
}

template <class Cell, class Io, class Real, bool kLearned, class Fire, class Surrogate>
void backward_tile(const BackwardCall<Cell, Io, Real>& call, const Fire& fire, const Surrogate& surrogate,
                   int64_t first, int64_t count, Workspace<Cell, Real, kLearned>& w) {
  w.load(call.neuron, call.shape, first, count);
  if (call.grad_v != nullptr)
    std::copy_n(call.grad_v + first, count, w.grad_v);
  else
    std::fill_n(w.grad_v, count, Real(0));
  std::fill_n(w.sums, Cell::kConstants * kTile, Real(0));
  if (call.bits == nullptr)
    backward_from_input(call, fire, surrogate, first, count, w);
  else if constexpr (std::is_same_v<Surrogate, Rectangular<Real>>)
    backward_from_bits(call, surrogate, first, count, w);
  if (call.grad_v0 != nullptr) std::copy_n(w.grad_v, count, call.grad_v0 + first);
  if (call.sums == nullptr) return;
  for (int64_t j = 0; j < count; ++j) {
    typename Cell::template Sums<Real> own{};
    Real* values = reinterpret_cast<Real*>(&own);
    for (int k = 0; k < Cell::kConstants; ++k) values[k] = w.sums[k * kTile + j];
    if (call.v0 == nullptr) Cell::back_rest(call.neuron.rules, w.grad_v[j], own);
    for (int k = 0; k < Cell::kConstants; ++k) call.sums[k * call.shape.neurons + first + j] = values[k];
  }
}

}  // namespace attsnn
