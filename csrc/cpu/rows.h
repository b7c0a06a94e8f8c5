// What is done to a row, the neurons of a tile at one step: loops that vectorise. `with_isa` compiles each
// for every instruction set; they know the state's type alone, so there are few. All rows are in the state's
// type.
#pragma once
#include <cstdint>
#include <cstring>

#include "core/call.h"
#include "core/surrogate.h"

namespace attsnn {

// Neurons of a tile: rows long enough to stream, a chunk of steps of them in the second-level cache.
inline constexpr int64_t kTile = 1024;
static_assert(kTile % kNeuronsPerByte == 0, "tiles share no byte");

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

// One step of a row: from x and v to what is emitted and the new v; where kBits, also two bits a neuron.
template <class Cell, class Real, bool kArrays, bool kSpike, bool kBits, class Fire>
ATTSNN_INLINE void forward_row(int64_t count, RowTerms<Cell, Real, kArrays> terms, Rules<Real> rules,
                               Fire fire, Rectangular<Real> window, Real carried, const Real* __restrict x,
                               Real* __restrict v, Real* __restrict out, uint8_t* __restrict packed) {
  const Emit emit = kSpike ? Emit::kSpike : rules.emit;
  alignas(64) uint8_t codes[kBits ? kTile : 1];
#pragma GCC ivdep
  for (int64_t j = 0; j < count; ++j) {
    const auto c = terms[j];
    const Real h = Cell::charge(c, carried, v[j], x[j]), s = fire(h, c);
    v[j] = Cell::reset(c, rules, h, s);
    out[j] = Cell::emit(c, emit, h, s);
    if constexpr (kBits) codes[j] = uint8_t((s > 0 ? 1 : 0) | (window.inside(h - c.centre) ? 2 : 0));
  }
  if constexpr (kBits) pack_row(count, codes, packed);
}

// The same for the membrane h alone, which the backward pass recomputes.
template <class Cell, class Real, bool kArrays, class Fire>
ATTSNN_INLINE void charge_row(int64_t count, RowTerms<Cell, Real, kArrays> terms, Rules<Real> rules,
                              Fire fire, Real carried, const Real* __restrict x, Real* __restrict v,
                              Real* __restrict h) {
#pragma GCC ivdep
  for (int64_t j = 0; j < count; ++j) {
    const auto c = terms[j];
    h[j] = Cell::charge(c, carried, v[j], x[j]);
    v[j] = Cell::reset(c, rules, h[j], fire(h[j], c));
  }
}

// The state after the reset, again from h.
template <class Cell, class Real, bool kArrays, class Fire>
ATTSNN_INLINE void reset_row(int64_t count, RowTerms<Cell, Real, kArrays> terms, Rules<Real> rules, Fire fire,
                             const Real* __restrict h, Real* __restrict v) {
#pragma GCC ivdep
  for (int64_t j = 0; j < count; ++j) v[j] = Cell::reset(terms[j], rules, h[j], fire(h[j], terms[j]));
}

// ds/dh of every neuron. Apart from back_row, which vectorises also where a slope calls a function.
template <class Cell, class Real, bool kArrays, class Surrogate>
ATTSNN_INLINE void slope_row(int64_t count, RowTerms<Cell, Real, kArrays> terms, Surrogate surrogate,
                             const Real* __restrict h, Real* __restrict slope) {
#pragma GCC ivdep
  for (int64_t j = 0; j < count; ++j) slope[j] = surrogate.slope(h[j] - terms[j].centre);
}

// What a step back reads and writes of a row. `x`, `before` (the state before the charge) and `sums`
// [kConstants, kTile] only where constants learn; x is null where two bits are kept.
template <class Real>
struct BackRow {
  const Real *grad_out, *x, *before;
  Real *grad_v, *grad_x, *sums;
};

// One neuron of a row, one step back.
template <class Cell, class Real, bool kLearned, bool kSpike, bool kFromInput>
ATTSNN_INLINE void back_neuron(int64_t j, const typename Cell::template Terms<Real>& c,
                               const Rules<Real>& rules, Real carried, Real h, Real s, Real slope,
                               const BackRow<Real>& row) {
  typename Cell::template Sums<Real> own{};
  const Real grad_h = Cell::back(c, rules, kSpike ? Emit::kSpike : rules.emit, h, s, slope, row.grad_out[j],
                                 row.grad_v[j], own);
  row.grad_x[j] = c.gain * grad_h;
  row.grad_v[j] = carried * (c.leak * grad_h);
  if constexpr (kLearned) {
    Cell::back_charge(carried, grad_h, kFromInput ? row.before[j] : Real(0), kFromInput ? row.x[j] : Real(0),
                      own);
    const Real* values = reinterpret_cast<const Real*>(&own);
    for (int k = 0; k < Cell::kConstants; ++k) row.sums[k * kTile + j] += values[k];
  }
}

template <class Cell, class Real, bool kLearned, bool kSpike, class Fire>
ATTSNN_INLINE void back_row(int64_t count, RowTerms<Cell, Real, kLearned> terms, Rules<Real> rules, Fire fire,
                            Real carried, const Real* __restrict h, const Real* __restrict slope,
                            BackRow<Real> row) {
#pragma GCC ivdep
  for (int64_t j = 0; j < count; ++j) {
    const auto c = terms[j];
    back_neuron<Cell, Real, kLearned, kSpike, true>(j, c, rules, carried, h[j], fire(h[j], c), slope[j], row);
  }
}

// The same from two bits a neuron, where the reset needs no membrane.
template <class Cell, class Real, bool kLearned>
ATTSNN_INLINE void back_row_from_bits(int64_t count, RowTerms<Cell, Real, kLearned> terms, Rules<Real> rules,
                                      Rectangular<Real> window, Real carried,
                                      const uint8_t* __restrict packed, BackRow<Real> row) {
  alignas(64) uint8_t codes[kTile];
  unpack_row(count, packed, codes);
#pragma GCC ivdep
  for (int64_t j = 0; j < count; ++j)
    back_neuron<Cell, Real, kLearned, true, false>(j, terms[j], rules, carried, Real(0),
                                                   codes[j] & 1 ? Real(1) : Real(0),
                                                   codes[j] & 2 ? window.height : Real(0), row);
}

// Between the type of the input and that of the state.
template <class From, class To>
ATTSNN_INLINE void convert_row(int64_t count, const From* __restrict from, To* __restrict to) {
#pragma GCC ivdep
  for (int64_t j = 0; j < count; ++j) to[j] = To(from[j]);
}

}  // namespace attsnn
