// What pfa.cpp calls and pfa_<type>.cpp compile.
#pragma once
#include "core/pfa_call.h"

namespace attsnn {

template <class Io, class Real>
void pfa_forward_on_cpu(const PfaForward<Io, Real>& call);

template <class Io, class Real>
void pfa_backward_on_cpu(const PfaBackward<Io, Real>& call);

}  // namespace attsnn
