// Vectors of neighbouring neurons in and out of memory: one wide access where they lie whole and aligned,
// else one by one. Torch-free; on the host the wide accesses are plain ones.
#pragma once
#include <cstdint>

#include "core/host_device.h"

namespace attsnn {

template <class T, int kVector>
struct alignas(sizeof(T) * kVector < 16 ? sizeof(T) * kVector : 16) Pack {
  T values[kVector];
  ATTSNN_INLINE T& operator[](int j) { return values[j]; }
  ATTSNN_INLINE const T& operator[](int j) const { return values[j]; }
};

// Read once and not again: kept out of L1. PTX on the device, which the host-run tests do not cover.
template <class P>
ATTSNN_INLINE P load_streaming(const P* from) {
#if defined(__CUDA_ARCH__)
  P pack;
  if constexpr (sizeof(P) % 16 == 0) {
    uint4* to = reinterpret_cast<uint4*>(&pack);
    for (int i = 0; i < int(sizeof(P) / 16); ++i)
      asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
          : "=r"(to[i].x), "=r"(to[i].y), "=r"(to[i].z), "=r"(to[i].w)
          : "l"(reinterpret_cast<const uint4*>(from) + i));
  } else if constexpr (sizeof(P) == 8) {
    uint2* to = reinterpret_cast<uint2*>(&pack);
    asm("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(to->x), "=r"(to->y) : "l"(from));
  } else if constexpr (sizeof(P) == 4) {
    asm("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(*reinterpret_cast<uint32_t*>(&pack)) : "l"(from));
  } else {
    pack = *from;
  }
  return pack;
#else
  return *from;
#endif
}

template <class P>
ATTSNN_INLINE void store_streaming(P* to, const P& pack) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(P) % 16 == 0) {
    for (int i = 0; i < int(sizeof(P) / 16); ++i)
      __stcs(reinterpret_cast<uint4*>(to) + i, reinterpret_cast<const uint4*>(&pack)[i]);
  } else if constexpr (sizeof(P) == 8) {
    __stcs(reinterpret_cast<uint2*>(to), *reinterpret_cast<const uint2*>(&pack));
  } else {
    *to = pack;
  }
#else
  *to = pack;
#endif
}

// `count` neurons from the first, all of them in one access where `whole`.
template <int kVector, class T>
ATTSNN_INLINE Pack<T, kVector> load(const T* from, int count, bool whole) {
  if (whole) return load_streaming(reinterpret_cast<const Pack<T, kVector>*>(from));
  Pack<T, kVector> pack;
#pragma unroll
  for (int j = 0; j < kVector; ++j) pack[j] = j < count ? from[j] : T(0);
  return pack;
}

template <int kVector, class T>
ATTSNN_INLINE void store(T* to, const Pack<T, kVector>& pack, int count, bool whole) {
  if (whole) return store_streaming(reinterpret_cast<Pack<T, kVector>*>(to), pack);
#pragma unroll
  for (int j = 0; j < kVector; ++j)
    if (j < count) to[j] = pack[j];
}

}  // namespace attsnn
