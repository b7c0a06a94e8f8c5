// A seam as the neurons' kernels see it: x is computed from p where they would read it.
#pragma once
#include "core/seam_call.h"
#include "cuda/lanes.cuh"

namespace attsnn {

// Beside what x is computed from there is room for half of what a neuron holds.
template <class Io, class Real>
inline constexpr int kStepsInRegisters<SeamSource<Io, Real>> = 8;
template <class Io, class Real>
inline constexpr int kValuesInRegisters<SeamSource<Io, Real>> = 32;
template <class Io, class Real>
inline constexpr int kBackwardWide<Io, SeamSource<Io, Real>> = 4;

// The quotient and the remainder: on the device 32-bit divisions take a quarter of the time.
ATTSNN_INLINE int64_t divide(int64_t value, int64_t by, int64_t& rest) {
  const bool narrow = uint64_t(value) <= UINT32_MAX && uint64_t(by) <= UINT32_MAX;
  const int64_t quotient = narrow ? int64_t(uint32_t(value) / uint32_t(by)) : value / by;
  rest = value - quotient * by;
  return quotient;
}

// Where an element of one step lies: in a row of channels or of pixels, whatever is innermost.
struct Place {
  int64_t n, outer, inner;
  bool last;
  ATTSNN_INLINE Place(const Maps& maps, int64_t i) : last(maps.channels_last) {
    n = divide(divide(i, last ? maps.channels : maps.pixels(), inner), last ? maps.pixels() : maps.channels,
               outer);
  }
  ATTSNN_INLINE int64_t c() const { return last ? inner : outer; }
  ATTSNN_INLINE int64_t pixel() const { return last ? outer : inner; }
  // The element after it in memory.
  ATTSNN_INLINE void advance(const Maps& maps) {
    const bool row_ends = ++inner == (last ? maps.channels : maps.pixels());
    inner = row_ends ? 0 : inner;
    outer += row_ends;
    const bool sample_ends = outer == (last ? maps.pixels() : maps.channels);
    outer = sample_ends ? 0 : outer;
    n += sample_ends;
  }
};

// kVector neighbouring small numbers, which stay in the caches: in wide accesses where they are aligned.
template <int kVector, class T>
ATTSNN_INLINE void load_cached(const T* from, T* to) {
  using Wide = Pack<T, kVector>;
  if (reinterpret_cast<uintptr_t>(from) % alignof(Wide) == 0) {
    const Wide wide = *reinterpret_cast<const Wide*>(from);
#pragma unroll
    for (int j = 0; j < kVector; ++j) to[j] = wide[j];
  } else {
#pragma unroll
    for (int j = 0; j < kVector; ++j) to[j] = from[j];
  }
}

// The backward pass reads x where it was kept as `membrane`, else computes it again; it writes nothing here.
template <class Io, class Real, int kVector, bool kBack>
struct SourceRows<SeamSource<Io, Real>, kVector, kBack> {
  static constexpr int kInFlight = kAhead;
  struct Raw {
    Pack<Io, kVector> p, shortcut;
  };
  SeamSource<Io, Real> source;
  Real spatial[kVector];
  int64_t base;        // of A and B at the first neuron, in one step
  int apart[kVector];  // from there to those of the others
  bool one, row;       // all on one plane; on neighbouring channels

  template <class L>
  ATTSNN_INLINE SourceRows(const SeamSource<Io, Real>& from, const L& lanes) : source(from) {
    Place place(source.maps, lanes.first);
    base = source.affine.at(0, place.n) + place.c();
    one = true;
    row = lanes.count == kVector;
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      const bool there = j < lanes.count;
      apart[j] = there ? int(source.affine.at(0, place.n) + place.c() - base) : 0;
      one = one && apart[j] == 0;
      row = row && apart[j] == j;
      spatial[j] = there && source.spatial != nullptr
                       ? source.spatial[place.n * source.maps.pixels() + place.pixel()]
                       : Real(1);
      if (there) place.advance(source.maps);
    }
  }

  ATTSNN_INLINE bool kept() const { return kBack && source.membrane.data != nullptr; }
  ATTSNN_INLINE bool repeated() const { return false; }

  template <class L>
  ATTSNN_INLINE Raw load(int64_t t, const L& lanes) const {
    Raw raw{};
    const Io* from = kept() ? source.membrane[t] : source.p[t];
    raw.p = attsnn::load<kVector>(from + lanes.first, lanes.count, lanes.whole);
    if (!kBack && source.shortcut.data != nullptr)
      raw.shortcut = attsnn::load<kVector>(source.shortcut[t] + lanes.first, lanes.count, lanes.whole);
    return raw;
  }

  // Of A or B, at this step.
  ATTSNN_INLINE void gather(const Real* from, Real* to) const {
    if (one) {
      const Real all = *from;
#pragma unroll
      for (int j = 0; j < kVector; ++j) to[j] = all;
    } else if (row) {
      load_cached<kVector>(from, to);
    } else {
#pragma unroll
      for (int j = 0; j < kVector; ++j) to[j] = from[apart[j]];
    }
  }

  template <class L>
  ATTSNN_INLINE void values(const Raw& raw, int64_t t, const L&, Real* x) const {
    if (kept()) {
#pragma unroll
      for (int j = 0; j < kVector; ++j) x[j] = Real(raw.p[j]);
      return;
    }
    Real a[kVector], b[kVector];
    gather(source.affine.a + source.affine.at(t, 0) + base, a);
    gather(source.affine.b + source.affine.at(t, 0) + base, b);
    const bool joined = !kBack && source.shortcut.data != nullptr;
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      x[j] = spatial[j] * rectified(a[j] * Real(raw.p[j]) + b[j], source.floor);
      if (joined) x[j] += Real(raw.shortcut[j]);
      if (source.rounded) x[j] = Real(Io(x[j]));
    }
  }

  template <class L>
  ATTSNN_INLINE void keep(int64_t t, const L& lanes, const Real* x) const {
    if (source.membrane.data == nullptr) return;
    Pack<Io, kVector> pack;
#pragma unroll
    for (int j = 0; j < kVector; ++j) pack[j] = Io(x[j]);
    store<kVector>(source.membrane[t] + lanes.first, pack, lanes.count, lanes.whole);
  }
};

// Whether every row that a seam's neurons touch can be reached by accesses of that many bytes.
template <class Io, class Real>
bool rows_aligned(const SeamSource<Io, Real>& source, size_t bytes) {
  return rows_aligned(source.p, bytes) && rows_aligned(source.shortcut, bytes) &&
         rows_aligned(source.membrane, bytes);
}
}  // namespace attsnn
