// The neurons on the CPU: tiles of neurons over the threads, each tile through all steps (loop.h).
#include <torch/csrc/stable/library.h>

#include "core/neurons.h"
#include "cpu/memory.h"
#include "cpu/over_tasks.h"
#include "cpu/reduce.h"
#include "tensor/neuron_op.h"

namespace attsnn {
namespace {

struct CpuDriver {
  static constexpr bool kSumsSteps = true;
  static constexpr int64_t kCountCopies = 1;

  // f(begin, end) for ranges of whole tiles. Tiles depend on the shape alone, never on the number of threads.
  template <class F>
  static void over_ranges(const Shape& shape, const F& f) {
    const int64_t tiles = (shape.neurons + kTile - 1) / kTile;
    const int64_t grain = std::max<int64_t>(1, kGrain / (kTile * shape.steps));
    torch::stable::parallel_for(0, tiles, grain, [&](int64_t begin, int64_t end) {
      f(begin * kTile, std::min(end * kTile, shape.neurons));
    });
  }

  template <class Cell, class Io, class Real>
  static void forward(const Tensor&, const ForwardCall<Cell, Io, Real>& call, const Firing& firing) {
    with_rows(call, [&](const auto& rows) {
      over_ranges(call.shape, [&](int64_t begin, int64_t end) { forward_tiles(rows, firing, begin, end); });
    });
  }

  template <class Cell, class Io, class Real>
  static void backward(const Tensor&, const BackwardCall<Cell, Io, Real>& call, const Firing& firing) {
    with_rows(call, [&](const auto& rows) {
      over_ranges(call.shape, [&](int64_t begin, int64_t end) { backward_tiles(rows, firing, begin, end); });
    });
  }

  template <class Real>
  static void reduce(const Tensor&, const Shape& shape, int constants, const Real* sums, Real* result) {
    reduce_by_channel(shape, constants, sums, result);
  }
};

}  // namespace
}  // namespace attsnn

STABLE_TORCH_LIBRARY_IMPL(attsnn, CPU, m) {
  using namespace attsnn;
  Neurons::for_each([&](auto type) {
    using Cell = typename decltype(type)::type;
    m.impl((std::string(Cell::kName) + "_forward").c_str(), TORCH_BOX((&neuron_forward<Cell, CpuDriver>)));
    m.impl((std::string(Cell::kName) + "_counted").c_str(), TORCH_BOX((&neuron_counted<Cell, CpuDriver>)));
    m.impl((std::string(Cell::kName) + "_backward").c_str(), TORCH_BOX((&neuron_backward<Cell, CpuDriver>)));
  });
}
