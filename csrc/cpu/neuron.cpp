// The neurons on the CPU: tiles of neurons over the threads, each tile through all steps (loop.h).
#include <torch/csrc/stable/library.h>

#include <memory>

#include "core/neurons.h"
#include "cpu/loop.h"
#include "tensor/neuron_op.h"

namespace attsnn {
namespace {

struct CpuDriver {
  // f(first, count, workspace) for every tile. Tiles depend on the shape alone, never on the number of
  // threads. A thread keeps its workspace, under 1 MB, for the next call.
  template <class Cell, class Real, bool kArrays, class F>
  static void over_tiles(const Shape& shape, const F& f) {
    const int64_t tiles = (shape.neurons + kTile - 1) / kTile;
    const int64_t grain =
        std::max<int64_t>(1, 16384 / (kTile * shape.steps));  // below it a thread does not pay
    torch::stable::parallel_for(0, tiles, grain, [&](int64_t begin, int64_t end) {
      thread_local const auto workspace = std::make_unique<Workspace<Cell, Real, kArrays>>();
      for (int64_t tile = begin; tile < end; ++tile)
        f(tile * kTile, std::min(kTile, shape.neurons - tile * kTile), *workspace);
    });
  }

  template <class Cell, class Io, class Real>
  static void forward(const Tensor&, const ForwardCall<Cell, Io, Real>& call, const Firing& firing) {
    const Rectangular<Real> window(firing.scale);
    const auto run = [&]<bool kArrays>() {
      dispatch_fire<Real>(firing, [&](const auto& chosen) {
        with_step(chosen, [&](const auto& fire) {
          over_tiles<Cell, Real, kArrays>(call.shape, [&](int64_t first, int64_t count, auto& workspace) {
            forward_tile(call, fire, window, first, count, workspace);
          });
        });
      });
    };
    call.neuron.learned ? run.template operator()<true>() : run.template operator()<false>();
  }

  template <class Cell, class Io, class Real>
  static void backward(const Tensor&, const BackwardCall<Cell, Io, Real>& call, const Firing& firing) {
    const auto run = [&]<bool kLearned>() {
      dispatch_firing<Real>(firing, [&](const auto& chosen, const auto& surrogate) {
        with_step(chosen, [&](const auto& fire) {
          over_tiles<Cell, Real, kLearned>(call.shape, [&](int64_t first, int64_t count, auto& workspace) {
            backward_tile(call, fire, surrogate, first, count, workspace);
          });
        });
      });
    };
    call.neuron.learned ? run.template operator()<true>() : run.template operator()<false>();
  }

  // sums [constants, neurons] -> result [constants, channels], in double, by tiles that follow from the
  // shape.
  template <class Real>
  static void reduce(const Tensor&, const Shape& shape, int constants, const Real* sums, Real* result) {
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
};

}  // namespace
}  // namespace attsnn

STABLE_TORCH_LIBRARY_IMPL(attsnn, CPU, m) {
  using namespace attsnn;
  Neurons::for_each([&](auto type) {
    using Cell = typename decltype(type)::type;
    m.impl((std::string(Cell::kName) + "_forward").c_str(), TORCH_BOX((&neuron_forward<Cell, CpuDriver>)));
    m.impl((std::string(Cell::kName) + "_backward").c_str(), TORCH_BOX((&neuron_backward<Cell, CpuDriver>)));
  });
}
