// Projected full attention on the CPU: registers the ops. The loops are compiled in pfa_<type>.cpp.
#include <torch/csrc/stable/library.h>

#include "cpu/pfa_tasks.h"
#include "tensor/pfa_op.h"

namespace attsnn {
namespace {

struct CpuPfaDriver {
  template <class Io, class Real>
  static void forward(const Tensor&, const PfaForward<Io, Real>& call) {
    pfa_forward_on_cpu(call);
  }
  template <class Io, class Real>
  static void backward(const Tensor&, const PfaBackward<Io, Real>& call) {
    pfa_backward_on_cpu(call);
  }
};

}  // namespace
}  // namespace attsnn

STABLE_TORCH_LIBRARY_IMPL(attsnn, CPU, m) { attsnn::implement_pfa<attsnn::CpuPfaDriver>(m); }
