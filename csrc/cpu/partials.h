// Sums over a row that vectorise, in an order that the instruction set does not change.
#pragma once
#include <algorithm>
#include <cstdint>

#include "core/host_device.h"

namespace attsnn {

// The lanes of a sum over a row: a fixed tree, whatever the instruction set. They stay an array, whose loop
// is not unrolled: so it vectorises, and each lane waits for itself alone.
inline constexpr int kLanes = 32;
template <class T>
struct Partials {
  T of[kLanes] = {};
  // In halves, whose lengths the compiler knows: in a loop over them the additions of a vector become those
  // of its lanes.
  ATTSNN_INLINE double total() { return halved<kLanes / 2>(); }

 private:
  template <int kHalf>
  ATTSNN_INLINE double halved() {
    for (int l = 0; l < kHalf; ++l) of[l] += of[l + kHalf];
    if constexpr (kHalf > 1)
      return halved<kHalf / 2>();
    else
      return of[0];
  }
};

// f(i, lane) for i < count.
template <class F>
ATTSNN_INLINE void in_lanes(int64_t count, const F& f) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
#pragma GCC ivdep
#pragma GCC unroll 1
    for (int l = 0; l < kLanes; ++l) f(i + l, l);
  const int rest = int(count - i);
#pragma GCC ivdep
#pragma GCC unroll 1
  for (int l = 0; l < rest; ++l) f(i + l, l);
}

}  // namespace attsnn
