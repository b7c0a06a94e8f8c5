// The works of core/ on small tensors on CUDA: a thread a task, or a block.
#pragma once
#include "core/channels_backward.h"
#include "core/gate_weights.h"
#include "core/gates.h"
#include "core/gates_backward.h"
#include "core/running.h"
#include "core/space_backward.h"
#include "cuda/grid.cuh"
#include "cuda/team.cuh"

namespace attsnn {

inline constexpr int kEachThreads = 128;

// Blocks from `first`.
template <class Work>
__global__ void __launch_bounds__(kEachThreads) each_kernel(Work work, int64_t tasks, int64_t first) {
  const int64_t i = (first + blockIdx.x) * kEachThreads + threadIdx.x;
  if (i < tasks) work(i);
}

// A block a task, from `first`. At least 1 of them a multiprocessor: left to choose, the compiler spills.
template <class Work>
__global__ void __launch_bounds__(kTeamThreads, 1) teams_kernel(Work work, int64_t first) {
  work(Block{}, first + blockIdx.x);
}

template <class Work>
void launch_each(int64_t tasks, const Work& work, Stream stream) {
  in_launches(blocks_for(tasks, kEachThreads), limits().x, [&](int64_t first, int64_t blocks) {
    launch(stream, each_kernel<Work>, blocks, kEachThreads, 0, work, tasks, first);
  });
}

template <class Work>
void launch_teams(int64_t tasks, const Work& work, Stream stream) {
  in_launches(tasks, limits().x, [&](int64_t first, int64_t blocks) {
    launch(stream, teams_kernel<Work>, blocks, kTeamThreads, 0, work, first);
  });
}

}  // namespace attsnn
