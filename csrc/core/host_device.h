// The macros: a function of a few operations, inlined into every driver, on the host and on the device; and
// one that only device code, or its twin on the host, can call.
#pragma once

#if defined(__CUDACC__)
#define ATTSNN_INLINE __host__ __device__ __forceinline__
#define ATTSNN_DEVICE __device__ __forceinline__
#elif defined(ATTSNN_SANITIZED)  // instrumented code inlined everywhere takes minutes to compile
#define ATTSNN_INLINE inline
#else
#define ATTSNN_INLINE inline __attribute__((always_inline))
#endif
#if !defined(__CUDACC__)
#define ATTSNN_DEVICE inline
#endif
