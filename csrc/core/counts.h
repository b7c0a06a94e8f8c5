// What is emitted, counted on the way: the values that are not zero, of integer spikes their sum, by step and
// by channel. Whole numbers are exact in any order of adding.
#pragma once
#include <cstdint>

#include "host_device.h"
#include "levels.h"

namespace attsnn {

struct Counts {
  int64_t *by_step = nullptr, *by_channel = nullptr;  // [T], [C]; null: not wanted
  int64_t channels = 1, channel_stride = 1;  // of a neuron's channel: (i / channel_stride) % channels
  // Where many add at the same time there are several of both, a power of two, so far apart, which are added
  // behind.
  int64_t copies = 1, apart = 0;

  ATTSNN_INLINE bool wanted() const { return by_step != nullptr; }
};

// What one emitted value counts, `out` as it is before it is rounded to its type: of a spike itself, of a
// soft integer spike the nearest.
template <bool kSpike, class Fire, class Real>
ATTSNN_INLINE Real counted(const Fire& fire, Real s, Real out) {
  constexpr bool kLevels = requires { fire.surrogate.levels; };
  if constexpr (kSpike && kLevels && requires { fire.whole(); })
    return s;
  else if constexpr (kLevels)
    return nearest(s);
  else if constexpr (kSpike && !requires { fire.surrogate; })
    return s;
  else
    return out != 0 ? Real(1) : Real(0);
}

}  // namespace attsnn
