// What the threads of a block count, added to what all do: first those of a warp that are here together.
#pragma once
#include "core/counts.h"

#if !defined(__CUDACC__)
#include <atomic>
#endif

namespace attsnn {

// The twin on the host adds one by one.
ATTSNN_DEVICE void add_counted(int64_t* to, int value) {
#if defined(__CUDA_ARCH__)
  const unsigned here = __activemask();
  const int sum = __reduce_add_sync(here, value);
  if (int(threadIdx.x % 32) == __ffs(here) - 1 && sum != 0)
    atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(sum));
#elif !defined(__CUDACC__)
  std::atomic_ref(*to).fetch_add(value);
#endif
}

// The same where each thread has a place of its own, and neighbours mostly the same one.
ATTSNN_DEVICE void add_counted(int64_t* to, int64_t at, int value) {
#if defined(__CUDA_ARCH__)
  const unsigned same = __match_any_sync(__activemask(), static_cast<unsigned long long>(at));
  const int sum = __reduce_add_sync(same, value);
  if (int(threadIdx.x % 32) == __ffs(same) - 1 && sum != 0)
    atomicAdd(reinterpret_cast<unsigned long long*>(to + at), static_cast<unsigned long long>(sum));
#elif !defined(__CUDACC__)
  std::atomic_ref(to[at]).fetch_add(value);
#endif
}

// What the neurons of one thread have counted.
template <class Real, int kVector>
struct Counter {
  const Counts& counts;
  int mine[kVector] = {};

  ATTSNN_DEVICE explicit Counter(const Counts& all) : counts(all) {}

  // Of this block's copy; their number is a power of two.
  ATTSNN_DEVICE int64_t copy() const { return (int64_t(blockIdx.x) & (counts.copies - 1)) * counts.apart; }

  ATTSNN_DEVICE int take(int j, Real one) {
    mine[j] += int(one);
    return int(one);
  }
  ATTSNN_DEVICE void step(int64_t t, int sum) const { add_counted(counts.by_step + copy() + t, sum); }

  template <class L>
  ATTSNN_DEVICE void finish(const L& lanes) const {
    const auto channel = [&](int j) { return (lanes.first + j) / counts.channel_stride % counts.channels; };
#pragma unroll
    for (int j = 0; j < kVector; ++j)
      if (j < lanes.count) add_counted(counts.by_channel + copy(), channel(j), mine[j]);
  }
};

}  // namespace attsnn
