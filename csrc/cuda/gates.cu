// The ops on a seam's small tensors on CUDA: registers them and compiles their kernels.
#include <torch/csrc/stable/library.h>

#include "cuda/launch.cuh"  // first: the kernels need its words

#include "cuda/gates_kernel.cuh"
#include "tensor/gates_op.h"

namespace attsnn {
namespace {

struct CudaGatesDriver {
  template <class Work>
  static void each(const Tensor& like, int64_t tasks, const Work& work) {
    on_device_of(like, [&](Stream stream) { launch_each(tasks, work, stream); });
  }
  template <class Work>
  static void teams(const Tensor& like, int64_t tasks, int64_t /*values*/, const Work& work) {
    on_device_of(like, [&](Stream stream) { launch_teams(tasks, work, stream); });
  }
};

}  // namespace
}  // namespace attsnn

STABLE_TORCH_LIBRARY_IMPL(attsnn, CUDA, m) { attsnn::implement_gates<attsnn::CudaGatesDriver>(m); }
