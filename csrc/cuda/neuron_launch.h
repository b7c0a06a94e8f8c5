// What neuron.cu calls and neuron_<type>.cu compile.
#pragma once
#include "core/call.h"
#include "tensor/dispatch.h"

namespace attsnn {

template <class Cell, class Io, class Real>
void launch_forward(const ForwardCall<Cell, Io, Real>& call, const Firing& firing, Stream stream);

template <class Cell, class Io, class Real>
void launch_backward(const BackwardCall<Cell, Io, Real>& call, const Firing& firing, Stream stream);

}  // namespace attsnn
