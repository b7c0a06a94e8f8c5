// The seams on CUDA: registers them, and compiles the kernels of the works on small tensors. Those of the
// passes over the maps are compiled in seam_<type>.cu.
#include <torch/csrc/stable/library.h>

#include "cuda/launch.cuh"  // first: the kernels need its words

#include "cuda/gates_kernel.cuh"
#include "cuda/reduce_op.cuh"
#include "cuda/seam_launch.h"
#include "tensor/seam_op.h"

namespace attsnn {
namespace {

struct CudaSeamDriver {
  static constexpr int64_t kCountCopies = 64;

  template <class Work>
  static void each(const Tensor& like, int64_t tasks, const Work& work) {
    on_device_of(like, [&](Stream stream) { launch_each(tasks, work, stream); });
  }
  template <class Work>
  static void teams(const Tensor& like, int64_t tasks, int64_t /*values*/, const Work& work) {
    on_device_of(like, [&](Stream stream) { launch_teams(tasks, work, stream); });
  }
  template <class Io, class Real>
  static void statistics(const Tensor& z, const StatisticsCall<Io, Real>& call) {
    on_device_of(z, [&](Stream stream) { launch_statistics(call, stream); });
  }
  template <class Io, class Real>
  static void squeeze(const Tensor& p, const SqueezeCall<Io, Real>& call) {
    on_device_of(p, [&](Stream stream) { launch_squeeze(call, stream); });
  }
  template <class Io, class Real>
  static void project(const Tensor& p, const ProjectCall<Io, Real>& call) {
    on_device_of(p, [&](Stream stream) { launch_project(call, stream); });
  }
  template <class Io, class Real>
  static void gradient(const Tensor& z, const GradCall<Io, Real>& call) {
    STD_TORCH_CHECK(call.maps.steps <= UINT32_MAX, "a seam on CUDA takes at most ", UINT32_MAX,
                    " steps, got ", call.maps.steps);
    on_device_of(z, [&](Stream stream) { launch_grad(call, stream); });
  }
  template <class Cell, class Io, class Real>
  static void forward(const Tensor& p, const SeamForward<Cell, Io, Real>& call, const Firing& firing) {
    on_device_of(p, [&](Stream stream) { launch_seam_forward(call, firing, stream); });
  }
  template <class Cell, class Io, class Real>
  static void backward(const Tensor& p, const SeamBackward<Cell, Io, Real>& call, const Firing& firing) {
    std::vector<Tensor> rooms;
    const Scratch<Real> scratch = [&](int64_t numbers) {
      rooms.push_back(empty_flat(p, {numbers}, state_type(p)));
      return data<Real>(rooms.back());
    };
    on_device_of(p, [&](Stream stream) { launch_seam_backward(call, firing, scratch, stream); });
  }
  template <class Real>
  static void reduce(const Tensor& like, const Shape& shape, int constants, const Real* sums, Real* result) {
    reduce_by_channel(like, shape, constants, sums, result);
  }
};

}  // namespace
}  // namespace attsnn

STABLE_TORCH_LIBRARY_IMPL(attsnn, CUDA, m) { attsnn::implement_seams<attsnn::CudaSeamDriver>(m); }
