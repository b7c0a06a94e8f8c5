// Tasks over torch's threads, each on its own.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace attsnn {

inline constexpr int64_t kGrain = 16384;  // values below which a thread does not pay

// f(i) for tasks that read so many values each.
template <class F>
void over_tasks(int64_t tasks, int64_t values, const F& f) {
  torch::stable::parallel_for(0, tasks, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, values)),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t i = begin; i < end; ++i) f(i);
                              });
}

// A thread's buffer number kIndex, at least that long.
template <class T, int kIndex>
T* scratch(int64_t size) {
  thread_local std::vector<T> memory;
  if (int64_t(memory.size()) < size) memory.resize(size);
  return memory.data();
}

}  // namespace attsnn
