// What a driver of the seams gets: raw pointers and numbers (core/seam.h has the arithmetic). Small tensors:
// planes are [T, N, C], spatial maps [N, pixels], both contiguous.
#pragma once
#include "seam.h"

namespace attsnn {

// One read of z: the pooled map, and by plane the mean and the centred second moment of z, the mean of the
// pooled map, and its extremum where wanted: the maximum where gamma > 0, the minimum where gamma < 0, the
// value at place 0 where gamma = 0, for then all normed values tie.
template <class Io, class Real>
struct StatisticsCall {
  Maps maps;
  int64_t pool;
  Steps<const Io> z;
  const Real* gamma = nullptr;  // [C]; null: maxima
  Steps<Io> pooled;             // null where pool = 1
  double *mean, *moment, *pooled_mean;
  Real* extremum = nullptr;  // null: not wanted
  int32_t* place = nullptr;
};

// SA's descriptors of A p + B over (T, C), the place being t * C + c.
template <class Io, class Real>
struct SqueezeCall {
  Maps maps;
  Steps<const Io> p;
  Affine<Real> affine;
  Real *mean, *extremum;
  int32_t* place;
};

// x of every step from p; where `rounded`, x is a tensor of its own (a shortcut entered, or it is handed on
// as `membrane`) and has the type of one before the neuron reads it.
template <class Io, class Real>
struct SeamSource {
  Maps maps;
  Steps<const Io> p;
  Affine<Real> affine;
  const Real* spatial = nullptr;  // SA; null: 1
  Real floor;
  bool rounded;
  Steps<const Io> shortcut;  // null: none
  Steps<Io> membrane;        // null: not wanted
};

// Pass A: where the gradient of x goes, that of the membrane added before it is rounded; and its sums, as it
// was rounded, where the relu lets it through: by plane, times SA, against 1 and against (p - centre); by
// pixel, against A p + B. `up` null: the gradient of x is grad_out itself, and is not written again.
template <class Io, class Real>
struct SeamSink {
  Maps maps;
  Steps<Io> up;
  Steps<const Io> grad_membrane, p;  // grad_membrane null: none
  Affine<Real> affine;
  const Real *spatial = nullptr, *centre = nullptr;  // centre [C]; null: 0
  Real floor;
  double* sums;                  // [2, T, N, C]
  Real* grad_spatial = nullptr;  // null: there is no SA
};

template <class Cell, class Io, class Real>
using SeamForward = Forward<Cell, Real, SeamSource<Io, Real>, Steps<Io>>;
template <class Cell, class Io, class Real>
using SeamBackward = Backward<Cell, Real, SeamSource<Io, Real>, Steps<const Io>, SeamSink<Io, Real>>;

// Pass B: by plane the sum of weight [N, pixels] * (p - centre).
template <class Io, class Real>
struct ProjectCall {
  Maps maps;
  Steps<const Io> p;
  const Real *weight, *centre = nullptr;
  double* sum;
};

// Pass C: the gradient of z.
template <class Io, class Real>
struct GradCall {
  Maps maps;  // of z
  int64_t pool;
  Steps<const Io> up, p, z;
  Affine<Real> affine;
  Real floor;
  const Real *spatial = nullptr, *level = nullptr, *point = nullptr;  // null: there is no SA
  const int32_t* spatial_place = nullptr;
  const Real *uniform = nullptr, *at_peak = nullptr;  // by plane; null: neither TA nor CA
  const int32_t* place = nullptr;
  const Real *offset = nullptr, *slope = nullptr, *centre = nullptr;  // [C]; null: no batch statistics
  Steps<Io> grad_z;
};

}  // namespace attsnn
