// What is done to a row, the neurons of a tile at one step: loops that vectorise. `with_isa` compiles each
// for every instruction set; they know the state's type alone, so there are few. All rows are in the state's
// type.
#pragma once
#include <cstdint>
#include <cstring>

#include "core/call.h"
#include "core/surrogate.h"

namespace attsnn {

inline constexpr int64_t kTile = 512;  // neurons; a multiple of kNeuronsPerByte, so that tiles share no byte

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

// Charge, fire, reset: from x and v to h, s and the new v.
template <class Cell, class Real, bool kArrays, class Fire>
ATTSNN_INLINE void charge_row(int64_t count, RowTerms<Cell, Real, kArrays> terms, Rules<Real> rules,
                              Fire fire, Real carried, const Real* __restrict x, Real* __restrict v,
                              Real* __restrict h, Real* __restrict s) {
#pragma GCC ivdep
  for (int64_t j = 0; j < count; ++j) {
    const auto c = terms[j];
    const Real membrane = Cell::charge(c, carried, v[j], x[j]), spike = fire(membrane, c);
    h[j] = membrane;
    s[j] = spike;
    v[j] = Cell::reset(c, rules, membrane, spike);
  }
}

template <class Cell, class Real, bool kArrays, Emit kEmit>
ATTSNN_INLINE void emit_row(int64_t count, RowTerms<Cell, Real, kArrays> terms, const Real* __restrict h,
                            const Real* __restrict s, Real* __restrict out) {
#pragma GCC ivdep
  for (int64_t j = 0; j < count; ++j) out[j] = Cell::emit(terms[j], kEmit, h[j], s[j]);
}

// Spikes again from h, and the state after the reset.
template <class Cell, class Real, bool kArrays, class Fire>
ATTSNN_INLINE void reset_row(int64_t count, RowTerms<Cell, Real, kArrays> terms, Rules<Real> rules, Fire fire,
                             const Real* __restrict h, Real* __restrict s, Real* __restrict v) {
#pragma GCC ivdep
  for (int64_t j = 0; j < count; ++j) {
    const auto c = terms[j];
    const Real spike = fire(h[j], c);
    s[j] = spike;
    v[j] = Cell::reset(c, rules, h[j], spike);
  }
}

// ds/dh of every neuron.
template <class Cell, class Real, bool kArrays, class Surrogate>
ATTSNN_INLINE void slope_row(int64_t count, RowTerms<Cell, Real, kArrays> terms, Surrogate surrogate,
                             const Real* __restrict h, Real* __restrict slope) {
#pragma GCC ivdep
  for (int64_t j = 0; j < count; ++j) slope[j] = surrogate.slope(h[j] - terms[j].centre);
}

// One step back; the sums [kConstants, kTile], and what they need (x, the state before), only where constants
// learn.
template <class Cell, class Real, bool kLearned, Emit kEmit>
ATTSNN_INLINE void back_row(int64_t count, RowTerms<Cell, Real, kLearned> terms, Rules<Real> rules,
                            Real carried, const Real* __restrict h, const Real* __restrict s,
                            const Real* __restrict slope, const Real* __restrict grad_out,
                            const Real* __restrict x, const Real* __restrict before, Real* __restrict grad_v,
                            Real* __restrict grad_x, Real* __restrict sums) {
#pragma GCC ivdep
  for (int64_t j = 0; j < count; ++j) {
    const auto c = terms[j];
    typename Cell::template Sums<Real> own{};
    const Real grad_h = Cell::back(c, rules, kEmit, h[j], s[j], slope[j], grad_out[j], grad_v[j], own);
    grad_x[j] = c.gain * grad_h;
    grad_v[j] = carried * (c.leak * grad_h);
    if constexpr (kLearned) {
      Cell::back_charge(carried, grad_h, before[j], x[j], own);
      const Real* values = reinterpret_cast<const Real*>(&own);
      for (int k = 0; k < Cell::kConstants; ++k) sums[k * kTile + j] += values[k];
    }
  }
}

// Two bits of four neurons in one byte, spike + 2 window, the first neuron lowest. Rows are padded to whole
// bytes.
template <class Cell, class Real, bool kArrays>
ATTSNN_INLINE void pack_row(int64_t count, RowTerms<Cell, Real, kArrays> terms, Rectangular<Real> window,
                            const Real* __restrict h, const Real* __restrict s, uint8_t* __restrict packed) {
  alignas(64) uint8_t codes[kTile];
  for (int64_t j = count & -kNeuronsPerByte; j < bytes_of_bits(count) * kNeuronsPerByte; ++j) codes[j] = 0;
#pragma GCC ivdep
  for (int64_t j = 0; j < count; ++j) {
    const bool inside = window.inside(h[j] - terms[j].centre);
    codes[j] = uint8_t((s[j] > 0 ? 1 : 0) | (inside ? 2 : 0));
  }
  for (int64_t b = 0; b < bytes_of_bits(count); ++b) {
    uint32_t w;
    std::memcpy(&w, codes + kNeuronsPerByte * b, sizeof w);
    packed[b] = uint8_t(w | w >> 6 | w >> 12 | w >> 18);
  }
}

template <class Real>
ATTSNN_INLINE void unpack_row(int64_t count, Rectangular<Real> window, const uint8_t* __restrict packed,
                              Real* __restrict s, Real* __restrict slope) {
  alignas(64) uint8_t codes[kTile];
  for (int64_t b = 0; b < bytes_of_bits(count); ++b) {
    uint32_t w = packed[b];
    w = (w | w << 6 | w << 12 | w << 18) & 0x03030303u;
    std::memcpy(codes + kNeuronsPerByte * b, &w, sizeof w);
  }
#pragma GCC ivdep
  for (int64_t j = 0; j < count; ++j) {
    s[j] = codes[j] & 1 ? Real(1) : Real(0);
    slope[j] = codes[j] & 2 ? window.height : Real(0);
  }
}

// Between the type of the input and that of the state.
template <class From, class To>
ATTSNN_INLINE void convert_row(int64_t count, const From* __restrict from, To* __restrict to) {
#pragma GCC ivdep
  for (int64_t j = 0; j < count; ++j) to[j] = To(from[j]);
}

}  // namespace attsnn
