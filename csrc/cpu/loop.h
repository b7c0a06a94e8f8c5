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

// What a tile works in.
template <class Cell, class Real, bool kArrays>
struct Workspace {
  RowTerms<Cell, Real, kArrays> terms;
  alignas(64) Real arrays[kArrays ? Cell::kTerms * kTile : 1];
  alignas(64) Real v[kTile], slope[kTile], before[kTile], grad_v[kTile], in[kTile], out[kTile], x[kTile];
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
  Real carried = start_state(call.neuron, call.v0 ? call.v0 + first : nullptr, count, w);
  const auto run = [&]<bool kSpike, bool kBits>() {
    for (int64_t t = 0; t < call.shape.steps; ++t) {
      if (call.checkpoints != nullptr && t > 0 && t % kCheckpointEvery == 0)
        std::copy_n(w.v, count, call.checkpoints + (t / kCheckpointEvery - 1) * call.shape.neurons + first);
      Io* to = call.out[t] + first;
      Real* out = row_for<Io, Real>(to, w.out);
      uint8_t* packed = kBits ? call.bits + t * bytes_a_step + first / kNeuronsPerByte : nullptr;
      with_isa<forward_row<Cell, Real, kArrays, kSpike, kBits, Fire>>(
          count, terms, rules, fire, window, carried, read_row(call.x[t] + first, count, w.in), &w.v[0], out,
          packed);
      write_row(out, count, to);
      carried = 1;
    }
  };
  if (call.bits != nullptr)
    run.template operator()<true, true>();
  else if (rules.emit == Emit::kSpike)
    run.template operator()<true, false>();
  else
    run.template operator()<false, false>();
  if (call.v != nullptr) std::copy_n(w.v, count, call.v + first);
}

// A step back: f(row) computes a row, from the gradient of what was emitted to that of x.
template <class Cell, class Io, class Real, bool kLearned, class F>
void back_step(const BackwardCall<Cell, Io, Real>& call, int64_t t, int64_t first, int64_t count,
               Workspace<Cell, Real, kLearned>& w, const F& f) {
  Io* to = call.grad_x[t] + first;
  Real* grad_x = row_for<Io, Real>(to, w.out);
  const Real* x = kLearned && call.x.data != nullptr ? read_row(call.x[t] + first, count, w.x) : nullptr;
  f(BackRow<Real>{read_row(call.grad_out[t] + first, count, w.in), x, w.before, w.grad_v, grad_x, w.sums});
  write_row<Io, Real>(grad_x, count, to);
}

// From two bits a neuron and step.
template <class Cell, class Io, class Real, bool kLearned>
void backward_from_bits(const BackwardCall<Cell, Io, Real>& call, const Rectangular<Real>& window,
                        int64_t first, int64_t count, Workspace<Cell, Real, kLearned>& w) {
  const int64_t bytes_a_step = bytes_of_bits(call.shape.neurons);
  const Real carried_first = call.v0 != nullptr || call.neuron.rules.start_at_reset ? 1 : 0;
  for (int64_t t = call.shape.steps; t-- > 0;)
    back_step(call, t, first, count, w, [&](const BackRow<Real>& row) {
      with_isa<back_row_from_bits<Cell, Real, kLearned>>(
          count, w.terms, call.neuron.rules, window, t > 0 ? Real(1) : carried_first,
          call.bits + t * bytes_a_step + first / kNeuronsPerByte, row);
    });
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
                                                       &w.h[t - t0][0]);
    for (int64_t t = t1; t-- > t0;) {
      const Real* h = w.h[t - t0];
      if (kLearned && t > t0) {
        const Real* h_before = w.h[t - t0 - 1];
        with_isa<reset_row<Cell, Real, kLearned, Fire>>(count, terms, rules, fire, h_before, &w.before[0]);
      } else if (kLearned) {
        start_state(call.neuron, given, count, w);
        std::copy_n(w.v, count, w.before);
      }
      with_isa<slope_row<Cell, Real, kLearned, Surrogate>>(count, terms, surrogate, h, &w.slope[0]);
      back_step(call, t, first, count, w, [&](const BackRow<Real>& row) {
        const Real* slope = w.slope;
        const Real by = t > t0 ? Real(1) : carried;
        if (rules.emit == Emit::kSpike)
          with_isa<back_row<Cell, Real, kLearned, true, Fire>>(count, terms, rules, fire, by, h, slope, row);
        else
          with_isa<back_row<Cell, Real, kLearned, false, Fire>>(count, terms, rules, fire, by, h, slope, row);
      });
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
