// Pass C: the gradient of z. Bytes of a pooled value: up and p once, z and its gradient for every pixel of
// its window; without batch statistics z is not read, without a pool it is p.
#pragma once
#include "cuda/fold_kernel.cuh"

namespace attsnn {

inline constexpr int kGradThreads = 256;

// What the gradient takes from a plane and from a pixel.
template <class Real>
struct PlaneTerms {
  Real a, b, uniform, at_peak, offset, slope, centre;
  int32_t place;
};
template <class Real>
struct PixelTerms {
  Real spatial, level, point;
  int32_t place;
};

// A thread takes a vector of pixels of a sample through `walk` channels, or channels-last a vector of
// channels through `walk` pixels, so that the terms along the vector are loaded once. An item is, with kPool
// = 1, the vector; with 2, two rows of it, or channels-last a window; with 0, any pool, a window (kV = 1).
template <class Io, class Real, int kPool, int kV, bool kLast>
struct GradItems {
  static_assert(kPool != 0 || kV == 1);
  static constexpr int kOut = kLast || kPool != 2 ? kV : kV / 2;  // pooled values
  static constexpr int kWindow = kPool == 0 ? 1 : kLast ? kPool * kPool : kPool;
  int height, width, pool, columns, items;  // of z; without a pool one row of pixels

  ATTSNN_INLINE explicit GradItems(const GradCall<Io, Real>& call)
      : height(kPool == 1 ? 1 : int(call.maps.height)),
        width(int(kPool == 1 ? call.maps.pixels() : call.maps.width)),
        pool(kPool > 0 ? kPool : int(call.pool)),
        columns(kLast || kPool == 0 ? (width + pool - 1) / pool : width / kV),
        items((height + pool - 1) / pool * columns) {}

  // Threads of a step, and how many share what is walked through.
  ATTSNN_INLINE int64_t vectors(const Maps& maps) const { return kLast ? maps.channels / kV : items; }
  ATTSNN_INLINE int64_t walked(const Maps& maps) const { return kLast ? items : maps.channels; }
  ATTSNN_INLINE int64_t chunks(const Maps& maps, int walk) const { return (walked(maps) + walk - 1) / walk; }
};

template <class Io, class Real>
ATTSNN_INLINE PlaneTerms<Real> plane_terms(const GradCall<Io, Real>& call, int64_t t, int64_t n, int64_t c) {
  const int64_t plane = call.maps.plane(t, n, c), affine = call.affine.at(t, n) + c;
  const bool gates = call.uniform != nullptr, norm = call.offset != nullptr;
  return {call.affine.a[affine],
          call.affine.b[affine],
          gates ? call.uniform[plane] : Real(0),
          gates ? call.at_peak[plane] : Real(0),
          norm ? call.offset[c] : Real(0),
          norm ? call.slope[c] : Real(0),
          norm ? call.centre[c] : Real(0),
          gates ? call.place[plane] : -1};
}

template <class Io, class Real>
ATTSNN_INLINE PixelTerms<Real> pixel_terms(const GradCall<Io, Real>& call, int64_t pixel) {
  const bool levels = call.level != nullptr;
  return {call.spatial != nullptr ? call.spatial[pixel] : Real(1), levels ? call.level[pixel] : Real(0),
          levels ? call.point[pixel] : Real(0), levels ? call.spatial_place[pixel] : -1};
}

// Grid: threads of a step in x, steps from `first_step` in y. In 64 bits that number costs up to 20
// registers, and spills: seam.cu sees that there are not more steps than its 32 hold.
template <class Io, class Real, int kPool, int kV, bool kLast>
__global__ void __launch_bounds__(kGradThreads)
    grad_kernel(GradCall<Io, Real> call, int walk, uint32_t first_step) {
  using Items = GradItems<Io, Real, kPool, kV, kLast>;
  constexpr int kOut = Items::kOut, kPlanes = kLast ? kOut : 1, kPixels = kLast ? 1 : kOut;
  const Maps &maps = call.maps, pooled = maps.pooled(call.pool);
  const Items of(call);
  const int64_t t = first_step + blockIdx.y, chunks = of.chunks(maps, walk);
  int64_t vector, chunk;
  const int64_t n = divide(divide(int64_t(blockIdx.x) * kGradThreads + threadIdx.x, of.vectors(maps), vector),
                           chunks, chunk);
  if (n >= maps.samples) return;
  const bool normed = call.offset != nullptr;
  const Real portion = Real(1) / Real(of.pool * of.pool);
  PlaneTerms<Real> planes[kPlanes];
  PixelTerms<Real> pixels[kPixels]{};
  for (int64_t walked = chunk; walked < of.walked(maps); walked += chunks) {
    const int item = int(kLast ? walked : vector), row = item / of.columns, column = item % of.columns;
    const int64_t c = kLast ? vector * kV : walked;
    const int64_t x0 = int64_t(column) * (kLast || kPool == 0 ? of.pool : kV);
    const int64_t pooled_width = kPool == 1 ? of.width : pooled.width;
    const int64_t px = int64_t(column) * kPixels, pixel = row * pooled_width + px;
    const bool inside = px < pooled_width && (kPool == 1 || row < pooled.height), first = walked == chunk;
    if (kLast ? first : true)
#pragma unroll
      for (int j = 0; j < kPlanes; ++j) planes[j] = plane_terms(call, t, n, c + j);
    if ((kLast || first) && inside)
#pragma unroll
      for (int j = 0; j < kPixels; ++j) pixels[j] = pixel_terms(call, n * pooled.pixels() + pixel + j);
    Pack<Io, kOut> p{}, up{};
    if (inside) {
      const int64_t from = pooled.at(n, c, pixel);
      p = load_whole<kOut>(call.p[t] + from);
      // Not through the read-only path: the result may lie in its place.
      up = *reinterpret_cast<const Pack<Io, kOut>*>(call.up[t] + from);
    }
    Real share[kOut];
#pragma unroll
    for (int j = 0; j < kOut; ++j) {
      const auto& plane = planes[kLast ? j : 0];
      const auto& at = pixels[kLast ? 0 : j];
      const bool point = at.place == t * maps.channels + c + (kLast ? j : 0);
      const bool peak = plane.place == pixel + (kLast ? 0 : j);
      const Real y =
          plane_gradient(plane.a, plane.b, at.spatial, call.floor, Real(p[j]), Real(up[j]), at.level,
                         point ? at.point : Real(0), plane.uniform, peak ? plane.at_peak : Real(0));
      share[j] = !inside ? Real(0) : kPool == 1 ? y : y * portion;
    }
#pragma unroll
    for (int k = 0; k < (kPool == 0 ? of.pool * of.pool : Items::kWindow); ++k) {
      const int64_t y = int64_t(row) * of.pool + (kLast || kPool == 0 ? k / of.pool : k);
      const int64_t x = x0 + (kLast || kPool == 0 ? k % of.pool : 0);
      if (y >= of.height || x >= of.width) continue;
      const int64_t at = maps.at(n, c, y * of.width + x);
      Pack<Io, kV> z{}, grad;
      if constexpr (kPool == 1)
        z = p;
      else if (normed)
        z = load_whole<kV>(call.z[t] + at);
#pragma unroll
      for (int j = 0; j < kV; ++j) {
        const auto& plane = planes[kLast ? j : 0];
        const Real mine = share[kLast || kPool != 2 ? j : j / 2];
        grad[j] =
            Io(normed ? norm_gradient(mine, Real(z[j]), plane.offset, plane.slope, plane.centre) : mine);
      }
      store_streaming(reinterpret_cast<Pack<Io, kV>*>(call.grad_z[t] + at), grad);
    }
  }
}

}  // namespace attsnn
