// The sums of reduce.cuh on torch's tensors and stream.
#pragma once
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "tensor/neuron_op.h"

namespace attsnn {

template <class Real>
void reduce_by_channel(const Tensor& like, const Shape& shape, int constants, const Real* sums,
                       Real* result) {
  const Tensor partial =
      empty_flat(like, {constants * shape.channels * reduce_tiles(shape)}, ScalarType::Double);
  on_device_of(like, [&](Stream stream) {
    launch_reduce(sums, shape, constants, data<double>(partial), result, stream);
  });
}

}  // namespace attsnn
