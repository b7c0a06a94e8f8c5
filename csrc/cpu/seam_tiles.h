// A seam as the source and the sink of the neurons' tiles: x computed row by row from p, the gradient of x
// summed row by row before it leaves the cache.
#pragma once
#include "cpu/memory.h"
#include "cpu/seam_rows.h"

namespace attsnn {

template <class Io, class Real>
class SeamRows final : public Source<Real> {
 public:
  explicit SeamRows(const SeamSource<Io, Real>& seam) : seam_(seam) {}

  const Real* row(int64_t t, int64_t first, int64_t count, Real* x) const override {
    alignas(64) Real p_buffer[kTile], shortcut_buffer[kTile];
    Io* membrane = seam_.membrane.data == nullptr ? nullptr : seam_.membrane[t] + first;
    if constexpr (std::is_same_v<Io, Real>) x = membrane == nullptr ? x : membrane;  // computed in its place
    const Real* p = as_real(seam_.p[t] + first, count, p_buffer);
    const SeamRow<Real> row{seam_.maps, t, first, count, seam_.affine, seam_.spatial, seam_.floor};
    const bool added = seam_.shortcut.data != nullptr;
    const Real* shortcut = added ? as_real(seam_.shortcut[t] + first, count, shortcut_buffer) : nullptr;
    with_flags(seam_.spatial != nullptr, added, [&]<bool kSpatial, bool kShortcut>() {
      with_planes<64>(seam_.maps, [&]<bool kLast, int kPixels>() {
        with_isa<source_row<Real, kLast, kSpatial, kShortcut, kPixels>>(row, p, shortcut, x);
      });
    });
    if constexpr (!std::is_same_v<Io, Real>)
      if (membrane != nullptr || seam_.rounded) {
        alignas(64) Io buffer[kTile];
        Io* rounded = membrane == nullptr ? buffer : membrane;
        with_isa<convert_row<Real, Io>>(count, static_cast<const Real*>(x), rounded);
        return as_real(static_cast<const Io*>(rounded), count, x);
      }
    return x;
  }

 private:
  SeamSource<Io, Real> seam_;
};

// What a task, a range of one sample's neurons, sums in pass A.
struct SeamPartial {
  double *sum, *centred;  // [T, C], a step `stride` behind the other
  int64_t stride;
  double* grad_spatial;  // [pixels], where there is SA
};

template <class Io, class Real>
class SeamGradientRows final : public Sink<Real> {
 public:
  SeamGradientRows(const SeamSink<Io, Real>& sink, const SeamPartial& partial)
      : sink_(sink), partial_(partial) {}

  Real* place(int64_t t, int64_t first, Real* buffer) const override {
    if constexpr (std::is_same_v<Io, Real>) return sink_.up[t] + first;
    return buffer;
  }
  void take(int64_t t, int64_t first, int64_t count, Real* row) const override {
    alignas(64) Real buffer[kTile];
    if (sink_.grad_membrane.data != nullptr)
      with_isa<add_row<Real>>(count, as_real(sink_.grad_membrane[t] + first, count, buffer), row);
    Io* up = sink_.up[t] + first;
    if constexpr (!std::is_same_v<Io, Real>)
      with_isa<convert_row<Real, Io>>(count, static_cast<const Real*>(row), up);
    sum(t, first, count, up);
  }
  // The sums of neurons [begin, end) of one step, whose gradient is there.
  void sum(const Steps<const Io>& up, int64_t begin, int64_t end) const {
    for (int64_t first = begin; first < end; first += kTile)
      sum(0, first, std::min(kTile, end - first), up[0] + first);
  }

 private:
  void sum(int64_t t, int64_t first, int64_t count, const Io* up) const {
    alignas(64) Real buffer[kTile], p_buffer[kTile];
    const SeamRow<Real> place{sink_.maps, t, first, count, sink_.affine, sink_.spatial, sink_.floor};
    const Real* rounded = as_real(up, count, buffer);
    const Real* p = as_real(sink_.p[t] + first, count, p_buffer);
    const int64_t of_step = t * partial_.stride;
    with_flags(sink_.spatial != nullptr, [&]<bool kSpatial>() {
      with_planes(sink_.maps, [&]<bool kLast, int kPixels>() {
        with_isa<sums_row<Real, kLast, kSpatial, kPixels>>(place, p, rounded, sink_.centre,
                                                           partial_.sum + of_step, partial_.centred + of_step,
                                                           partial_.grad_spatial);
      });
    });
  }

  const SeamSink<Io, Real>& sink_;
  SeamPartial partial_;
};

}  // namespace attsnn
