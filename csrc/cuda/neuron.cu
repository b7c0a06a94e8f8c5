// The neurons on CUDA: registers them. Their kernels are compiled in neuron_<type>.cu.
#include <torch/csrc/stable/library.h>

#include "core/neurons.h"
#include "cuda/launch.cuh"
#include "cuda/neuron_launch.h"
#include "cuda/reduce_op.cuh"
#include "tensor/neuron_op.h"

namespace attsnn {
namespace {

struct CudaDriver {
  static constexpr bool kSumsSteps = false;
  static constexpr int64_t kCountCopies = 64;

  template <class Cell, class Io, class Real>
  static void forward(const Tensor& x, const ForwardCall<Cell, Io, Real>& call, const Firing& firing) {
    on_device_of(x, [&](Stream stream) { launch_forward(call, firing, stream); });
  }

  template <class Cell, class Io, class Real>
  static void backward(const Tensor& grad_out, const BackwardCall<Cell, Io, Real>& call,
                       const Firing& firing) {
    on_device_of(grad_out, [&](Stream stream) { launch_backward(call, firing, stream); });
  }

  template <class Real>
  static void reduce(const Tensor& like, const Shape& shape, int constants, const Real* sums, Real* result) {
    reduce_by_channel(like, shape, constants, sums, result);
  }
};

}  // namespace
}  // namespace attsnn

STABLE_TORCH_LIBRARY_IMPL(attsnn, CUDA, m) {
  using namespace attsnn;
  Neurons::for_each([&](auto type) {
    using Cell = typename decltype(type)::type;
    m.impl((std::string(Cell::kName) + "_forward").c_str(), TORCH_BOX((&neuron_forward<Cell, CudaDriver>)));
    m.impl((std::string(Cell::kName) + "_counted").c_str(), TORCH_BOX((&neuron_counted<Cell, CudaDriver>)));
    m.impl((std::string(Cell::kName) + "_backward").c_str(), TORCH_BOX((&neuron_backward<Cell, CudaDriver>)));
  });
}
