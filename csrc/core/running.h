// The running statistics of a norm.
#pragma once
#include <cstdint>

#include "host_device.h"

namespace attsnn {

// Running statistics a step towards those of a batch, and the batches counted. A task is a channel.
template <class Real>
struct RunningStatistics {
  const Real *batch_mean, *batch_var;
  Real rate, *mean, *var;
  int64_t* batches;

  ATTSNN_INLINE void operator()(int64_t c) const {
    mean[c] = (1 - rate) * mean[c] + rate * batch_mean[c];
    var[c] = (1 - rate) * var[c] + rate * batch_var[c];
    if (c == 0) ++*batches;
  }
};

}  // namespace attsnn
