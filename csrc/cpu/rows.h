// What is done to rows, a row being the neurons of a tile at one step: loops that vectorise. `with_isa`
// compiles each for every instruction set; they know the state's type alone, so there are few. All rows are
// in the state's type.
#pragma once
#include <cstdint>
#include <cstring>

#include "core/call.h"
#include "core/surrogate.h"
#include "cpu/tiles.h"

namespace attsnn {

// Steps that one loop over a row takes together: the state is then read and written once for all of them.
inline constexpr int kRowSteps = 4;
static_assert(kCheckpointEvery % kRowSteps == 0, "a checkpoint lies between two groups of rows");

// The terms of a row's neurons: one set for all, or arrays [kTerms, kTile] where they differ by neuron.
// Passed by value: what is the same for all neurons then stays in registers.
template <class Cell, class Real, bool kArrays>
struct RowTerms {
  using Terms = typename Cell::template Terms<Real>;
  Terms uniform;
  const Real* arrays;

  ATTSNN_INLINE Terms operator[](int64_t j) const {
    if constexpr (!kArrays) return uniform;
    Terms own;
    Real* values = reinterpret_cast<Real*>(&own);
    for (int k = 0; k < Cell::kTerms; ++k) values[k] = arrays[k * kTile + j];
    return own;
  }
};

// From pairs of bytes to bytes, low half first: two codes of `kBits` bits become one of twice as many; and
// back.
template <int kBits>
ATTSNN_INLINE void join_pairs(int64_t pairs, const uint8_t* __restrict from, uint8_t* __restrict to) {
  for (int64_t i = 0; i < pairs; ++i) {
    uint16_t w;
    std::memcpy(&w, from + 2 * i, sizeof w);
    to[i] = uint8_t(w | w >> (8 - kBits));
  }
}
template <int kBits>
ATTSNN_INLINE void split_pairs(int64_t pairs, const uint8_t* __restrict from, uint8_t* __restrict to) {
  constexpr int kMask = (1 << kBits) - 1;
  for (int64_t i = 0; i < pairs; ++i) {
    const uint16_t w = uint16_t((from[i] | from[i] << (8 - kBits)) & (kMask | kMask << 8));
    std::memcpy(to + 2 * i, &w, sizeof w);
  }
}

// Codes of two bits, spike + 2 window, one a byte and four a byte, the first neuron lowest. `codes` has room
// for a multiple of four; those past the last count as 0.
ATTSNN_INLINE void pack_row(int64_t count, uint8_t* codes, uint8_t* packed) {
  alignas(64) uint8_t halves[kTile / 2];
  for (int64_t j = count; j % kNeuronsPerByte != 0; ++j) codes[j] = 0;
  join_pairs<2>(2 * bytes_of_bits(count), codes, halves);
  join_pairs<4>(bytes_of_bits(count), halves, packed);
}
ATTSNN_INLINE void unpack_row(int64_t count, const uint8_t* packed, uint8_t* codes) {
  alignas(64) uint8_t halves[kTile / 2];
  split_pairs<4>(bytes_of_bits(count), packed, halves);
  split_pairs<2>(2 * bytes_of_bits(count), halves, codes);
}

// The rows of kSteps neighbouring steps, which one loop walks together: a state crosses them in registers.
template <class T, int kSteps>
struct Rows {
  T* of[kSteps];
};

// A whole number from 0 to 2^22 as an integer. Around a conversion of a float that may be anything a loop
// does not vectorise.
ATTSNN_INLINE int32_t as_integer(float value) {
  constexpr float kShift = 12582912;
  return __builtin_bit_cast(int32_t, value + kShift) - __builtin_bit_cast(int32_t, kShift);
}
ATTSNN_INLINE int32_t as_integer(double value) { return int32_t(value); }

// Forward: from x and v to what is emitted and the new v; where kBits, also two bits a neuron; where kCount,
// what is emitted is counted by neuron and by step.
template <class Cell, class Real, bool kArrays, Emit kEmit, bool kBits, bool kCount, int kSteps, class Fire>
ATTSNN_INLINE void forward_rows(int64_t count, RowTerms<Cell, Real, kArrays> terms, Rules<Real> rules,
                                Fire fire, Rectangular<Real> window, Real carried, Rows<const Real, kSteps> x,
                                Real* __restrict v, Rows<Real, kSteps> out, Rows<uint8_t, kSteps> packed,
                                Real* __restrict by_neuron, int64_t* __restrict by_step) {
  alignas(64) uint8_t codes[kSteps][kBits ? kTile : 1];
  int32_t total[kSteps] = {};
#pragma GCC ivdep
  for (int64_t j = 0; j < count; ++j) {
    const auto c = terms[j];
    Real state = v[j], mine = 0;
#pragma GCC unroll 4
    for (int k = 0; k < kSteps; ++k) {
      const Real h = Cell::charge(c, k == 0 ? carried : Real(1), state, x.of[k][j]), s = fire(h, c);
      state = Cell::reset(c, rules, h, s);
      const Real value = Cell::emit(c, kEmit, h, emitted(fire, s));
      out.of[k][j] = value;
      if constexpr (kCount) {
        const Real one = attsnn::counted<kEmit == Emit::kSpike>(fire, s, value);
        mine += one;
        total[k] += as_integer(one);
      }
      if constexpr (kBits) codes[k][j] = uint8_t((s > 0 ? 1 : 0) | (window.inside(h - c.centre) ? 2 : 0));
    }
    v[j] = state;
    if constexpr (kCount) by_neuron[j] += mine;
  }
  if constexpr (kBits)
    for (int k = 0; k < kSteps; ++k) pack_row(count, codes[k], packed.of[k]);
  if constexpr (kCount)
    for (int k = 0; k < kSteps; ++k) by_step[k] += total[k];
}

// Counts integer spikes of rows that were emitted, `times` what was: in a loop of its own, as forward_rows
// would not vectorise around it.
template <class Real, int kSteps>
ATTSNN_INLINE void count_rows(int64_t count, Rows<Real, kSteps> out, Real times, Real* __restrict by_neuron,
                              int64_t* __restrict by_step) {
  int32_t total[kSteps] = {};
#pragma GCC ivdep
  for (int64_t j = 0; j < count; ++j) {
    Real mine = 0;
#pragma GCC unroll 4
    for (int k = 0; k < kSteps; ++k) {
      const Real n = nearest(out.of[k][j] * times);
      mine += n;
      total[k] += as_integer(n);
    }
    by_neuron[j] += mine;
  }
  for (int k = 0; k < kSteps; ++k) by_step[k] += total[k];
}

// Adds what neurons counted to their channel, in whole numbers, which vectorise: a row of kTile neurons, each
// of which counts at most 256 a step, stays within 32 bits for kCountedSteps.
template <class Real>
ATTSNN_INLINE void sum_counts(int64_t count, const Real* __restrict from, int64_t* __restrict to) {
  int32_t sum = 0;
  for (int64_t j = 0; j < count; ++j) sum += as_integer(from[j]);
  *to += sum;
}

// The same where each neuron has a channel of its own.
template <class Real>
ATTSNN_INLINE void add_counts(int64_t count, const Real* __restrict from, int64_t* __restrict to) {
#pragma GCC ivdep
  for (int64_t j = 0; j < count; ++j) to[j] += as_integer(from[j]);
}

// forward_rows for the membrane h alone, which the backward pass recomputes.
template <class Cell, class Real, bool kArrays, int kSteps, class Fire>
ATTSNN_INLINE void charge_rows(int64_t count, RowTerms<Cell, Real, kArrays> terms, Rules<Real> rules,
                               Fire fire, Real carried, Rows<const Real, kSteps> x, Real* __restrict v,
                               Rows<Real, kSteps> h) {
#pragma GCC ivdep
  for (int64_t j = 0; j < count; ++j) {
    const auto c = terms[j];
    Real state = v[j];
#pragma GCC unroll 4
    for (int k = 0; k < kSteps; ++k) {
      const Real membrane = Cell::charge(c, k == 0 ? carried : Real(1), state, x.of[k][j]);
      state = Cell::reset(c, rules, membrane, fire(membrane, c));
      h.of[k][j] = membrane;
    }
    v[j] = state;
  }
}

// The state after the reset, again from h.
template <class Cell, class Real, bool kArrays, class Fire>
ATTSNN_INLINE void reset_row(int64_t count, RowTerms<Cell, Real, kArrays> terms, Rules<Real> rules, Fire fire,
                             const Real* __restrict h, Real* __restrict v) {
#pragma GCC ivdep
  for (int64_t j = 0; j < count; ++j) v[j] = Cell::reset(terms[j], rules, h[j], fire(h[j], terms[j]));
}

// ds/dh of every neuron, for a slope that calls a function: in a loop of its own, as back_rows would not
// vectorise around the call.
template <class Cell, class Real, bool kArrays, class Surrogate>
ATTSNN_INLINE void slope_row(int64_t count, RowTerms<Cell, Real, kArrays> terms, Surrogate surrogate,
                             const Real* __restrict h, Real* __restrict slope) {
#pragma GCC ivdep
  for (int64_t j = 0; j < count; ++j) slope[j] = slope_at(surrogate, h[j], terms[j]);
}

template <class Surrogate>
concept CallsAFunction = requires { Surrogate::kCallsAFunction; };

// What back_rows knows of neuron j at step k of its rows: the membrane, the spike and the slope ...
template <class Real>
struct Fired {
  Real h, s, slope;
};

// ... from h, with a slope that is computed here or was by slope_row;
template <class Real, int kSteps, class Fire, class Surrogate>
struct FromMembrane {
  Fire fire;
  Surrogate surrogate;
  Rows<const Real, kSteps> h, slope;
  template <class Terms>
  ATTSNN_INLINE Fired<Real> operator()(int k, int64_t j, const Terms& c) const {
    const Real membrane = h.of[k][j];
    if constexpr (CallsAFunction<Surrogate>) return {membrane, fire(membrane, c), slope.of[k][j]};
    return {membrane, fire(membrane, c), slope_at(surrogate, membrane, c)};
  }
};

// ... or from two bits, where the reset needs no membrane.
template <class Real>
struct FromBits {
  Real height;  // of the window
  const uint8_t (*codes)[kTile];
  template <class Terms>
  ATTSNN_INLINE Fired<Real> operator()(int k, int64_t j, const Terms&) const {
    const uint8_t code = codes[k][j];
    return {Real(0), code & 1 ? Real(1) : Real(0), code & 2 ? height : Real(0)};
  }
};

// What steps back read and write. `x`, `before` (the states before the charges) and `sums` [kConstants,
// kTile] only where constants learn; x and before not from bits, which keep neither.
template <class Real, int kSteps>
struct BackRows {
  Rows<const Real, kSteps> grad_out, x, before;
  Rows<Real, kSteps> grad_x;
  Real *grad_v, *sums;
};

// Backward through the rows, the last one first.
template <class Cell, class Real, bool kLearned, bool kSpike, bool kFromInput, int kSteps, class Source>
ATTSNN_INLINE void back_rows(int64_t count, const RowTerms<Cell, Real, kLearned>& terms,
                             const Rules<Real>& rules, Real carried, const Source& fired,
                             const BackRows<Real, kSteps>& rows) {
  const Emit emit = kSpike ? Emit::kSpike : rules.emit;
#pragma GCC ivdep
  for (int64_t j = 0; j < count; ++j) {
    const auto c = terms[j];
    Real grad_v = rows.grad_v[j];
    Real sums[kLearned ? Cell::kConstants : 1];
    if constexpr (kLearned)
      for (int i = 0; i < Cell::kConstants; ++i) sums[i] = rows.sums[i * kTile + j];
#pragma GCC unroll 4
    for (int k = kSteps - 1; k >= 0; --k) {
      const Real by = k == 0 ? carried : Real(1);
      const Fired<Real> now = fired(k, j, c);
      typename Cell::template Sums<Real> own{};
      const Real grad_h = Cell::back(c, rules, emit, now.h, now.s, now.slope,
                                     emitted(fired, rows.grad_out.of[k][j]), grad_v, own);
      rows.grad_x.of[k][j] = c.gain * grad_h;
      grad_v = by * (c.leak * grad_h);
      if constexpr (kLearned) {
        Cell::back_charge(by, grad_h, kFromInput ? rows.before.of[k][j] : Real(0),
                          kFromInput ? rows.x.of[k][j] : Real(0), own);
        const Real* values = reinterpret_cast<const Real*>(&own);
        for (int i = 0; i < Cell::kConstants; ++i) sums[i] += values[i];
      }
    }
    rows.grad_v[j] = grad_v;
    if constexpr (kLearned)
      for (int i = 0; i < Cell::kConstants; ++i) rows.sums[i * kTile + j] = sums[i];
  }
}

template <class Cell, class Real, bool kLearned, bool kSpike, int kSteps, class Source>
ATTSNN_INLINE void back_rows_from_input(int64_t count, RowTerms<Cell, Real, kLearned> terms,
                                        Rules<Real> rules, Real carried, Source fired,
                                        BackRows<Real, kSteps> rows) {
  back_rows<Cell, Real, kLearned, kSpike, true, kSteps>(count, terms, rules, carried, fired, rows);
}

template <class Cell, class Real, bool kLearned, int kSteps>
ATTSNN_INLINE void back_rows_from_bits(int64_t count, RowTerms<Cell, Real, kLearned> terms, Rules<Real> rules,
                                       Rectangular<Real> window, Real carried,
                                       Rows<const uint8_t, kSteps> packed, BackRows<Real, kSteps> rows) {
  alignas(64) uint8_t codes[kSteps][kTile];
  for (int k = 0; k < kSteps; ++k) unpack_row(count, packed.of[k], codes[k]);
  back_rows<Cell, Real, kLearned, true, false, kSteps>(count, terms, rules, carried,
                                                       FromBits<Real>{window.height, codes}, rows);
}

}  // namespace attsnn
