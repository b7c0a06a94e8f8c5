// The works of core/ on small tensors on CUDA: a thread a task, or a block.
#pragma once
#include "core/channels_backward.h"
#include "core/gate_weights.h"
#include "core/gates.h"
#include "core/gates_backward.h"
#include "core/running.h"
#include "core/space_backward.h"
#include "cuda/team.cuh"

namespace attsnn {

inline constexpr int kEachThreads = 128;

template <class Work>
__global__ void __launch_bounds__(kEachThreads) each_kernel(Work work, int64_t tasks) {
  const int64_t i = int64_t(blockIdx.x) * kEachThreads + threadIdx.x;
  if (i < tasks) work(i);
}

// At least 1 block: left to choose, the compiler spills.
template <class Work>
__global__ void __launch_bounds__(kTeamThreads, 1) teams_kernel(Work work) {
  work(Block{}, int64_t(blockIdx.x));
}

template <class Work>
void launch_each(int64_t tasks, const Work& work, Stream stream) {
  if (tasks > 0)
    launch(stream, each_kernel<Work>, blocks_for(tasks, kEachThreads), kEachThreads, 0, work, tasks);
}

template <class Work>
void launch_teams(int64_t tasks, const Work& work, Stream stream) {
  if (tasks > 0) launch(stream, teams_kernel<Work>, unsigned(tasks), kTeamThreads, 0, work);
}

}  // namespace attsnn
