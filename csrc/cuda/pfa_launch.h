// What pfa.cu calls and pfa_<type>.cu compile.
#pragma once
#include "core/pfa_call.h"
#include "cuda/seam_launch.h"

namespace attsnn {

template <class Io, class Real>
void launch_pfa_forward(const PfaForward<Io, Real>& call, const Scratch<Real>& scratch, Stream stream);

template <class Io, class Real>
void launch_pfa_backward(const PfaBackward<Io, Real>& call, const Scratch<Real>& scratch, Stream stream);

}  // namespace attsnn
