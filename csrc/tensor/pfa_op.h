// The dispatcher ops of projected full attention, but for their loops: reads the arguments, allocates the
// results, hands typed calls to a driver (CPU or CUDA). The shape rules are those of attsnn/ops/pfa.py.
#pragma once
#include <torch/csrc/stable/library.h>

#include "core/pfa_call.h"
#include "tensor/seam_pass.h"

namespace attsnn {

inline PfaShape pfa_shape(const Tensor& x, const Tensor& spatial) {
  const Maps maps = samples_of(x);
  STD_TORCH_CHECK(maps.sample_size() > 0, "x must have channels and pixels");
  const int64_t rank = spatial.dim() == 4 ? spatial.size(0) : 0;
  STD_TORCH_CHECK(rank >= 1 && rank <= kMaxRank && spatial.size(1) == maps.steps &&
                      (spatial.size(2) == 1 || spatial.size(2) == 3) && spatial.size(3) == spatial.size(2),
                  "the spatial weight must be [R, T, k, k], R from 1 to ", kMaxRank, ", k 1 or 3");
  return {maps, rank, spatial.size(2)};
}

inline Fusion fusion_of(int64_t fusion) {
  STD_TORCH_CHECK(fusion >= 0 && fusion <= 2, "there is no fusion ", fusion);
  return Fusion(fusion);
}

template <class T>
Places<T> places_of(const Tensor& x) {
  if constexpr (std::is_const_v<T>)
    return {static_cast<T*>(x.const_data_ptr()), x.stride(0), x.stride(1)};
  else
    return {data<T>(x), x.stride(0), x.stride(1)};
}

// Bytes of what is kept: the means over C and over the pixels, then an additive map's bits.
template <class Real>
int64_t kept_size(const PfaShape& shape, bool bits) {
  const int64_t means = shape.by_pixel() + shape.by_channel();
  return means * int64_t(sizeof(Real)) + (bits ? shape.bytes_of_bits() : 0);
}

// The weights and biases, in the state's type; biases are not there backward.
template <class Real>
PfaWeights<const Real> weights_of(const PfaShape& shape, const Tensor& spatial, const Tensor& temporal,
                                  const Tensor& channel, const std::vector<Tensor>& biases) {
  const int64_t rank = shape.rank, steps = shape.maps.steps;
  const auto bias = [&](size_t i) {
    return biases.empty() ? nullptr : small_data<Real>(biases[i], rank, "a bias");
  };
  return {small_data<Real>(spatial, rank * steps * shape.taps(), "the spatial weight"),
          bias(0),
          small_data<Real>(temporal, rank * shape.maps.channels, "the temporal weight"),
          bias(1),
          small_data<Real>(channel, rank * steps, "the channel weight"),
          bias(2)};
}

// -> y; the factors S [N, R, H, W], Tm [N, T, R], Cm [N, C, R]; bytes that are kept, none where `keep` is
// false.
template <class Driver>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> pfa_forward(
    const Tensor& x, const Tensor& spatial, const Tensor& spatial_bias, const Tensor& temporal,
    const Tensor& temporal_bias, const Tensor& channel, const Tensor& channel_bias, double scale,
    int64_t fusion, bool keep) {
  const PfaShape shape = pfa_shape(x, spatial);
  const Maps& maps = shape.maps;
  const ScalarType state = state_type(x);
  const Tensor y = empty_maps(x, maps);
  const Tensor of_space = empty_flat(x, {maps.samples, shape.rank, maps.height, maps.width}, state);
  const Tensor of_steps = empty_flat(x, {maps.samples, maps.steps, shape.rank}, state);
  const Tensor of_channels = empty_flat(x, {maps.samples, maps.channels, shape.rank}, state);
  std::optional<Tensor> kept;
  dispatch_type(x.scalar_type(), [&]<class Io, class Real>() {
    const bool bits = keep && fusion_of(fusion) == Fusion::kAdd;
    kept = empty_flat(x, {kept_size<Real>(shape, bits)}, ScalarType::Byte);
    Real* means = data<Real>(*kept);
    PfaForward<Io, Real> call{};
    call.shape = shape;
    call.fusion = fusion_of(fusion);
    call.scale = Real(scale);
    call.x = places_of<const Io>(x);
    call.y = places_of<Io>(y);
    call.weights =
        weights_of<Real>(shape, spatial, temporal, channel, {spatial_bias, temporal_bias, channel_bias});
    call.small = {means, means + shape.by_pixel(), data<Real>(of_space), data<Real>(of_steps),
                  data<Real>(of_channels)};
    if (bits) call.bits = reinterpret_cast<uint8_t*>(means + shape.by_pixel() + shape.by_channel());
    if (maps.samples > 0) Driver::forward(x, call);
  });
  return {y, of_space, of_steps, of_channels, keep ? *kept : empty_flat(x, {0}, ScalarType::Byte)};
}

// -> the gradients of x (empty where it is not wanted), of the weights and the biases, in their order.
template <class Driver>
std::vector<Tensor> pfa_backward(const Tensor& grad_y, const std::optional<Tensor>& x, const Tensor& spatial,
                                 const Tensor& temporal, const Tensor& channel, const Tensor& of_space,
                                 const Tensor& of_steps, const Tensor& of_channels, const Tensor& kept,
                                 double scale, int64_t fusion, bool wants_x) {
  const PfaShape shape = pfa_shape(grad_y, spatial);
  const Maps& maps = shape.maps;
  const ScalarType state = state_type(grad_y);
  const bool added = fusion_of(fusion) == Fusion::kAdd;
  STD_TORCH_CHECK(added != x.has_value(), "x is given where the map is not added, and only there");
  if (x)
    STD_TORCH_CHECK(x->scalar_type() == grad_y.scalar_type() && same_maps(samples_of(*x), maps),
                    "x must have the shape, the type and the layout of the gradient");
  const int64_t rank = shape.rank;
  std::vector<Tensor> grads{wants_x ? empty_maps(grad_y, maps)
                                    : empty_flat(grad_y, {0}, grad_y.scalar_type())};
  for (const Tensor* weight : {&spatial, &temporal, &channel}) {
    std::vector<int64_t> sizes;
    for (int64_t d = 0; d < weight->dim(); ++d) sizes.push_back(weight->size(d));
    grads.push_back(empty_flat(grad_y, sizes, state));
    grads.push_back(empty_flat(grad_y, {rank}, state));
  }
  dispatch_type(grad_y.scalar_type(), [&]<class Io, class Real>() {
    STD_TORCH_CHECK(kept.scalar_type() == ScalarType::Byte && kept.is_contiguous() &&
                        kept.numel() == kept_size<Real>(shape, added),
                    "kept must be what the forward pass kept");
    const Real* means = const_data<Real>(kept);
    PfaBackward<Io, Real> call{};
    call.shape = shape;
    call.fusion = fusion_of(fusion);
    call.scale = Real(scale);
    call.grad_y = places_of<const Io>(grad_y);
    if (x) call.x = places_of<const Io>(*x);
    call.weights = weights_of<Real>(shape, spatial, temporal, channel, {});
    call.small = {means, means + shape.by_pixel(),
                  small_data<Real>(of_space, maps.samples * rank * maps.pixels(), "S"),
                  small_data<Real>(of_steps, maps.samples * maps.steps * rank, "Tm"),
                  small_data<Real>(of_channels, maps.samples * maps.channels * rank, "Cm")};
    if (added) call.bits = reinterpret_cast<const uint8_t*>(means + shape.by_pixel() + shape.by_channel());
    if (wants_x) call.grad_x = places_of<Io>(grads[0]);
    call.grads = {data<Real>(grads[1]), data<Real>(grads[2]), data<Real>(grads[3]),
                  data<Real>(grads[4]), data<Real>(grads[5]), data<Real>(grads[6])};
    Driver::backward(grad_y, call);
  });
  return grads;
}

template <class Driver, class Library>
void implement_pfa(Library& m) {
  m.impl("pfa_forward", TORCH_BOX(&pfa_forward<Driver>));
  m.impl("pfa_backward", TORCH_BOX(&pfa_backward<Driver>));
}

}  // namespace attsnn
