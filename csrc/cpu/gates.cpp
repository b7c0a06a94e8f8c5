// The ops on a seam's small tensors on the CPU: a thread is a team, and takes channels or samples.
#include <torch/csrc/stable/library.h>

#include "cpu/over_tasks.h"
#include "cpu/team.h"
#include "tensor/gates_op.h"

namespace attsnn {
namespace {

template <class Work>
void work_alone(const Work& work, int64_t task) {
  work(Alone{}, task);
}

struct CpuGatesDriver {
  template <class Work>
  static void each(const Tensor&, int64_t tasks, const Work& work) {
    for (int64_t i = 0; i < tasks; ++i) work(i);
  }
  template <class Work>
  static void teams(const Tensor&, int64_t tasks, int64_t values, const Work& work) {
    over_tasks(tasks, values, [&](int64_t i) { with_isa<work_alone<Work>>(work, i); });
  }
};

}  // namespace
}  // namespace attsnn

STABLE_TORCH_LIBRARY_IMPL(attsnn, CPU, m) { attsnn::implement_gates<attsnn::CpuGatesDriver>(m); }
