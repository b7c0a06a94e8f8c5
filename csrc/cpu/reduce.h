// Sums over the neurons of a channel, the same bits every time.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "core/call.h"
#include "cpu/tiles.h"

namespace attsnn {

// sums [constants, neurons] -> result [constants, channels], in double, by tiles that follow from the
// shape.
template <class Real>
void reduce_by_channel(const Shape& shape, int constants, const Real* sums, Real* result) {
  const int64_t members = shape.neurons / shape.channels, tile = 8 * kTile;
  const int64_t tiles = (members + tile - 1) / tile, rows = constants * shape.channels;
  std::vector<double> partial(rows * tiles);
  torch::stable::parallel_for(0, rows * tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / tiles, channel = row % shape.channels, from = task % tiles * tile;
      const Real* values = sums + row / shape.channels * shape.neurons;
      for (int64_t k = from; k < std::min(from + tile, members); ++k)
        partial[task] += values[shape.member(channel, k)];
    }
  });
  for (int64_t row = 0; row < rows; ++row) {
    double sum = 0;
    for (int64_t i = 0; i < tiles; ++i) sum += partial[row * tiles + i];
    result[row] = Real(sum);
  }
}

}  // namespace attsnn
