// What seam.cu calls and seam_<type>.cu compile.
#pragma once
#include <functional>

#include "core/seam_call.h"
#include "tensor/dispatch.h"

namespace attsnn {

// Makes room for so many numbers, as long as the call lasts.
template <class Real>
using Scratch = std::function<Real*(int64_t)>;

template <class Io, class Real>
void launch_statistics(const StatisticsCall<Io, Real>& call, Stream stream);

template <class Io, class Real>
void launch_squeeze(const SqueezeCall<Io, Real>& call, Stream stream);

template <class Cell, class Io, class Real>
void launch_seam_forward(const SeamForward<Cell, Io, Real>& call, const Firing& firing, Stream stream);

template <class Cell, class Io, class Real>
void launch_seam_backward(const SeamBackward<Cell, Io, Real>& call, const Firing& firing,
                          const Scratch<Real>& scratch, Stream stream);

template <class Io, class Real>
void launch_project(const ProjectCall<Io, Real>& call, Stream stream);

template <class Io, class Real>
void launch_grad(const GradCall<Io, Real>& call, Stream stream);

}  // namespace attsnn
