// A CPU thread as the team of core/channels.h: it does everything itself, in loops that vectorise, in an
// order that only the lengths decide.
#pragma once
#include "core/seam.h"
#include "cpu/partials.h"

namespace attsnn {

struct OneThread {
  // f(i), i < count, which do not see each other.
  template <class F>
  ATTSNN_INLINE void each(int64_t count, const F& f) const {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) f(i);
  }

  // finish(row, the sum of term(row, i) over i < length).
  template <class Term, class Finish>
  ATTSNN_INLINE void rows(int64_t count, int64_t length, const Term& term, const Finish& finish) const {
    for (int64_t row = 0; row < count; ++row) {
      Partials<decltype(term(row, row))> lanes;
      in_lanes(length, [&](int64_t i, int l) { lanes.of[l] += term(row, i); });
      finish(row, lanes.total());
    }
  }

  // The same where the terms of a row are far apart, and those of neighbouring columns side by side:
  // finish(column, the sum of term(i, column) over i < length). As many columns together as hide the time
  // from one addition to the next.
  template <class Term, class Finish>
  ATTSNN_INLINE void columns(int64_t length, int64_t count, const Term& term, const Finish& finish) const {
    constexpr int64_t kColumns = 256;
    for (int64_t first = 0; first < count; first += kColumns) {
      const int64_t width = std::min(kColumns, count - first);
      decltype(term(first, first)) sums[kColumns] = {};
      for (int64_t i = 0; i < length; ++i)
#pragma GCC ivdep
        for (int64_t k = 0; k < width; ++k) sums[k] += term(i, first + k);
      for (int64_t k = 0; k < width; ++k) finish(first + k, sums[k]);
    }
  }

  // finish(row, the Extremum of value(row, i) over i < length).
  template <class Value, class Finish>
  ATTSNN_INLINE void peaks(int64_t count, int64_t length, const Value& value, const Finish& finish) const {
    for (int64_t row = 0; row < count; ++row) {
      Extremum<decltype(value(row, row))> most{value(row, 0), 0};
      for (int64_t i = 1; i < length; ++i) most.meet(value(row, i), int32_t(i));
      finish(row, most);
    }
  }

  // f(i) for all i < count, those of one target in their order and by one member.
  template <class Target, class F>
  ATTSNN_INLINE void scatter(int64_t count, const Target&, const F& f) const {
    for (int64_t i = 0; i < count; ++i) f(i);
  }
};

}  // namespace attsnn
