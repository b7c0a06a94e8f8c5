// Projected full attention on CUDA: registers the ops. Kernels are compiled in pfa_<type>.cu.
#include <torch/csrc/stable/library.h>

#include "cuda/launch.cuh"  // first: the kernels need its words

#include "cuda/pfa_launch.h"
#include "tensor/pfa_op.h"

namespace attsnn {
namespace {

struct CudaPfaDriver {
  template <class Io, class Real>
  static void forward(const Tensor& x, const PfaForward<Io, Real>& call) {
    with_scratch<Real>(
        x, [&](const Scratch<Real>& scratch, Stream stream) { launch_pfa_forward(call, scratch, stream); });
  }
  template <class Io, class Real>
  static void backward(const Tensor& grad_y, const PfaBackward<Io, Real>& call) {
    with_scratch<Real>(grad_y, [&](const Scratch<Real>& scratch, Stream stream) {
      launch_pfa_backward(call, scratch, stream);
    });
  }

 private:
  template <class Real, class F>
  static void with_scratch(const Tensor& like, const F& f) {
    std::vector<Tensor> rooms;
    const Scratch<Real> scratch = [&](int64_t numbers) {
      rooms.push_back(empty_flat(like, {numbers}, state_type(like)));
      return data<Real>(rooms.back());
    };
    on_device_of(like, [&](Stream stream) { f(scratch, stream); });
  }
};

}  // namespace
}  // namespace attsnn

STABLE_TORCH_LIBRARY_IMPL(attsnn, CUDA, m) { attsnn::implement_pfa<attsnn::CudaPfaDriver>(m); }
