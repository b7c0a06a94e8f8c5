// The average pool without a seam around it, as a residual network's shortcut needs it, and its gradient.
#include <torch/csrc/stable/library.h>

#include "cpu/pool.h"

#include "cpu/isa.h"
#include "cpu/over_tasks.h"
#include "tensor/seam_pass.h"

namespace attsnn {
namespace {

// f.operator()<Real>(sample of `from`, sample of `to`) for every step of every sample, `large` being the
// larger of the two.
template <class F>
void over_samples(const Tensor& from, const Tensor& to, const Maps& large, const F& f) {
  const int64_t from_size = from.size(2) * from.size(3) * from.size(4);
  const int64_t to_size = to.size(2) * to.size(3) * to.size(4);
  dispatch_type(from.scalar_type(), [&]<class Io, class Real>() {
    const auto source = steps_of<const Io>(from);
    const auto sink = steps_of<Io>(to);
    over_tasks(large.steps * large.samples, large.sample_size(), [&](int64_t i) {
      const int64_t t = i / large.samples, n = i % large.samples;
      f.template operator()<Real>(source[t] + n * from_size, sink[t] + n * to_size);
    });
  });
}

Tensor average_pool(const Tensor& x, int64_t pool) {
  const Maps maps = maps_of(x);
  check_pool(pool, maps.height, maps.width);
  Tensor pooled = empty_maps(x, maps.pooled(pool).laid());
  over_samples(x, pooled, maps, [&]<class Real, class Io>(const Io* from, Io* to) {
    with_isa<pool_sample<Real, Io>>(maps, pool, from, to);
  });
  return pooled;
}

Tensor average_pool_backward(const Tensor& grad, int64_t pool, int64_t height, int64_t width,
                             bool channels_last) {
  check_pool(pool, height, width);
  const Maps small = maps_of(grad);
  const Maps maps{small.steps, small.samples, small.channels, height, width, channels_last};
  STD_TORCH_CHECK(same_maps(small, maps.pooled(pool).laid()),
                  "the gradient must have the shape and the layout of the pooled maps");
  Tensor grad_x = empty_maps(grad, maps);
  over_samples(grad, grad_x, maps, [&]<class Real, class Io>(const Io* from, Io* to) {
    with_isa<spread_sample<Real, Io>>(maps, pool, from, to);
  });
  return grad_x;
}

}  // namespace
}  // namespace attsnn

STABLE_TORCH_LIBRARY_IMPL(attsnn, CPU, m) {
  m.impl("average_pool", TORCH_BOX(&attsnn::average_pool));
  m.impl("average_pool_backward", TORCH_BOX(&attsnn::average_pool_backward));
}
