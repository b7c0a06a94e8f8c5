// The ops on a seam's small tensors, but for the loops: a norm's numbers by channel, and the gates.
// A driver (CPU or CUDA) runs works: `each`, a task on its own, or `teams`.
#pragma once
#include "core/channels_backward.h"
#include "core/gate_weights.h"
#include "core/gates.h"
#include "core/gates_backward.h"
#include "core/space_backward.h"
#include "tensor/seam_op.h"

namespace attsnn {

// f.operator()<Real>().
template <class F>
void dispatch_state(ScalarType type, const F& f) {
  type == ScalarType::Double ? f.template operator()<double>() : f.template operator()<float>();
}

// [..., T, N, C] in one piece.
inline ChannelTiles tiles_of(const Tensor& planes) {
  const int64_t d = planes.dim();
  STD_TORCH_CHECK(d >= 3 && planes.is_contiguous(), "planes must be contiguous [..., T, N, C]");
  return {planes.size(d - 3) * planes.size(d - 2), planes.size(d - 1)};
}

inline NormNumbers<const double> numbers_of(const Tensor& norm, int64_t channels) {
  return {small_data<double>(norm, 4 * channels, "norm"), channels};
}

template <class Driver>
Tensor seam_totals(const Tensor& moments, int64_t pixels) {
  const ChannelTiles tiles = tiles_of(moments);
  const int64_t planes = tiles.rows * tiles.channels;
  const double* mean = small_data<double>(moments, 3 * planes, "moments");
  Tensor totals = empty_flat(moments, {1 + 2 * tiles.channels}, ScalarType::Double);
  const Totals work{tiles, double(pixels), mean, mean + planes, data<double>(totals)};
  Driver::teams(moments, tiles.count(), 2 * tiles.rows * kChannelTile, work);
  return totals;
}

// Statistics come as the totals of a batch, or as mean and var, float64 [C]; without either there is no norm.
template <class Driver>
std::tuple<Tensor, Tensor, Tensor, Tensor> seam_affine(const Tensor& z, const std::optional<Tensor>& totals,
                                                       const std::optional<Tensor>& mean,
                                                       const std::optional<Tensor>& var,
                                                       const std::optional<Tensor>& weight,
                                                       const std::optional<Tensor>& bias, double eps,
                                                       int64_t repeats) {
  const int64_t channels = z.size(2);
  const ScalarType state = state_type(z);
  Tensor affine = empty_flat(z, {2, 1, 1, channels}, state),
         norm = empty_flat(z, {4, channels}, ScalarType::Double);
  Tensor centre = empty_flat(z, {channels}, state), unbiased = empty_flat(z, {channels}, state);
  dispatch_state(state, [&]<class Real>() {
    NormAffine<Real> work{};
    work.repeats = repeats;
    work.eps = eps;
    work.count = small_data<double>(totals, 1 + 2 * channels, "totals");
    work.mean = totals ? work.count + 1 : small_data<double>(mean, channels, "mean");
    work.var = totals ? work.mean + channels : small_data<double>(var, channels, "var");
    work.weight = small_data<Real>(weight, channels, "weight");
    work.bias = small_data<Real>(bias, channels, "bias");
    work.a = data<Real>(affine);
    work.b = work.a + channels;
    work.centre = data<Real>(centre);
    work.unbiased = data<Real>(unbiased);
    work.numbers = {data<double>(norm), channels};
    Driver::each(z, channels, work);
  });
  return {affine, norm, centre, unbiased};
}

// Of affine only the type is read: it is that of gamma and beta.
template <class Driver>
std::tuple<Tensor, Tensor, Tensor> seam_norm_sums(const Tensor& sums, const Tensor& norm,
                                                  const Tensor& affine) {
  const ChannelTiles tiles = tiles_of(sums);
  const ScalarType state = affine.scalar_type();
  Tensor result = empty_flat(sums, {2, tiles.channels}, ScalarType::Double);
  Tensor beta = empty_flat(sums, {tiles.channels}, state), gamma = empty_flat(sums, {tiles.channels}, state);
  dispatch_state(state, [&]<class Real>() {
    const NormSums<Real> work{tiles,
                              small_data<double>(sums, 2 * tiles.rows * tiles.channels, "sums"),
                              numbers_of(norm, tiles.channels),
                              data<double>(result),
                              data<Real>(beta),
                              data<Real>(gamma)};
    Driver::teams(sums, 2 * tiles.count(), tiles.rows * kChannelTile, work);
  });
  return {result, beta, gamma};
}

template <class Driver>
Tensor seam_batch_gradient(const Tensor& sums, const Tensor& totals, const Tensor& norm,
                           const Tensor& affine) {
  const int64_t channels = sums.size(1);
  const ScalarType state = affine.scalar_type();
  Tensor result = empty_flat(sums, {3, channels}, state);
  dispatch_state(state, [&]<class Real>() {
    Driver::each(sums, channels,
                 BatchGradient<Real>{channels, small_data<double>(sums, 2 * channels, "sums"),
                                     small_data<double>(totals, 1 + 2 * channels, "totals"),
                                     numbers_of(norm, channels), data<Real>(result)});
  });
  return result;
}

// What is kept of a gate of D values, [N, D], [2, N, D], [N, D], [2, N, R], behind its weights [R, D] and
// [D, R]; none of them where there is no such gate.
enum : size_t { kReduce, kExpand, kGate, kInputs, kPlace, kHidden, kKept };

inline std::vector<Tensor> with_room(std::vector<Tensor> weights, const Tensor& like, int64_t samples,
                                     int64_t size) {
  const bool there = !weights.empty();
  STD_TORCH_CHECK(!there || weights.size() == 2, "a gate has two matrices, got ", weights.size());
  const int64_t n = there ? samples : 0, width = there ? weights[kReduce].size(0) : 0;
  weights.resize(kKept, like);
  weights[kGate] = empty_flat(like, {n, size}, like.scalar_type());
  weights[kInputs] = empty_flat(like, {2, n, size}, like.scalar_type());
  weights[kPlace] = empty_flat(like, {n, size}, ScalarType::Int);
  weights[kHidden] = empty_flat(like, {2, n, width}, like.scalar_type());
  return weights;
}

template <class Real>
Gate<Real> gate_of(const std::vector<Tensor>& kept, int64_t samples, int64_t size, bool there) {
  if (!there) return {};
  STD_TORCH_CHECK(kept.size() == kKept, "a gate is kept as ", int64_t(kKept), " tensors, got ", kept.size());
  const int64_t width = kept[kReduce].size(0), values = samples * size;
  const auto writable = [](const Real* from) { return const_cast<Real*>(from); };
  Gate<Real> gate;
  gate.samples = samples;
  gate.size = size;
  gate.width = width;
  gate.reduce = small_data<Real>(kept[kReduce], width * size, "a gate's first matrix");
  gate.expand = small_data<Real>(kept[kExpand], width * size, "a gate's second matrix");
  gate.gate = writable(small_data<Real>(kept[kGate], values, "a gate"));
  gate.inputs = writable(small_data<Real>(kept[kInputs], 2 * values, "a gate's descriptors"));
  gate.hidden = writable(small_data<Real>(kept[kHidden], 2 * samples * width, "a gate's hidden values"));
  gate.place = const_cast<int32_t*>(small_data<int32_t>(kept[kPlace], values, "a gate's places"));
  return gate;
}

// Values that a sample reads, from which a driver knows what a thread is worth.
template <class Real>
int64_t values_of(const Gates<Real>& gates) {
  const auto weights = [](const Gate<Real>& gate) { return gate.there() ? 4 * gate.size * gate.width : 0; };
  return gates.steps * gates.channels + weights(gates.time) + weights(gates.channel);
}

template <class Real>
Gates<Real> gates_of(const Tensor& moments, const Tensor& peak, const std::vector<Tensor>& time,
                     const std::vector<Tensor>& channel, bool timed, bool channelled) {
  const int64_t steps = peak.size(0), samples = peak.size(1), channels = peak.size(2);
  const int64_t planes = steps * samples * channels;
  return {steps,
          samples,
          channels,
          small_data<double>(moments, 3 * planes, "moments") + 2 * planes,
          small_data<Real>(peak, planes, "peak"),
          gate_of<Real>(time, samples, steps, timed),
          gate_of<Real>(channel, samples, channels, channelled)};
}

// time, channel: their two matrices, or nothing.
template <class Driver>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> seam_gates(
    const Tensor& moments, const Tensor& peak, const Tensor& affine, std::vector<Tensor> time,
    std::vector<Tensor> channel) {
  STD_TORCH_CHECK(peak.dim() == 3, "peak must be [T, N, C]");
  const bool timed = !time.empty(), channelled = !channel.empty();
  const int64_t steps = peak.size(0), samples = peak.size(1), channels = peak.size(2);
  time = with_room(time, peak, samples, steps);
  channel = with_room(channel, peak, samples, channels);
  Tensor gated = empty_flat(peak, {2, timed ? steps : 1, samples, channels}, peak.scalar_type());
  dispatch_state(peak.scalar_type(), [&]<class Real>() {
    const Real* a = small_data<Real>(affine, 2 * channels, "affine");
    const GatesForward<Real> work{gates_of<Real>(moments, peak, time, channel, timed, channelled), a,
                                  a + channels, data<Real>(gated)};
    Driver::teams(peak, samples, values_of(work.gates), work);
  });
  return {gated,          time[kGate],      time[kInputs],   time[kPlace],    time[kHidden],
          channel[kGate], channel[kInputs], channel[kPlace], channel[kHidden]};
}

// time, channel: all that is kept, or nothing. Beside the results of GatesBackward the gradients of each
// gate's two matrices.
template <class Driver>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> seam_gates_backward(
    const Tensor& sums, const Tensor& norm, const Tensor& moments, const Tensor& peak,
    std::vector<Tensor> time, std::vector<Tensor> channel, int64_t pixels) {
  STD_TORCH_CHECK(peak.dim() == 3, "peak must be [T, N, C]");
  const int64_t steps = peak.size(0), samples = peak.size(1), channels = peak.size(2);
  const ScalarType state = peak.scalar_type();
  Tensor planes = empty_flat(peak, {2, steps, samples, channels}, state);
  Tensor by_norm = empty_flat(peak, {2, steps, samples, channels}, ScalarType::Double);
  struct Gradients {
    Tensor by_sum, by_hidden, by_inputs, by_reduce, by_expand;
  };
  const auto room = [&](const std::vector<Tensor>& kept, int64_t size) -> Gradients {
    const int64_t n = kept.empty() ? 0 : samples, width = kept.empty() ? 0 : kept[kReduce].size(0);
    return {empty_flat(peak, {n, size}, state), empty_flat(peak, {2, n, width}, state),
            empty_flat(peak, {2, n, size}, state), empty_flat(peak, {width, size}, state),
            empty_flat(peak, {size, width}, state)};
  };
  const Gradients by_time = room(time, steps), by_channel = room(channel, channels);
  dispatch_state(state, [&]<class Real>() {
    GatesBackward<Real> work{gates_of<Real>(moments, peak, time, channel, !time.empty(), !channel.empty()),
                             small_data<double>(sums, 2 * steps * samples * channels, "sums"),
                             numbers_of(norm, channels),
                             pixels,
                             data<Real>(planes),
                             data<double>(by_norm)};
    const auto give = [](Gate<Real>& gate, const Gradients& to) {
      gate.by_sum = data<Real>(to.by_sum);
      gate.by_hidden = data<Real>(to.by_hidden);
      gate.by_inputs = data<Real>(to.by_inputs);
      gate.by_reduce = data<Real>(to.by_reduce);
      gate.by_expand = data<Real>(to.by_expand);
    };
    Gates<Real>& gates = work.gates;
    give(gates.time, by_time);
    give(gates.channel, by_channel);
    Driver::teams(peak, samples, values_of(gates), work);
    const GateWeights<Real> weights{gates.time, gates.channel};
    Driver::teams(peak, weights.tasks(), 3 * samples * std::max(steps, channels), weights);
  });
  return {planes, by_norm, by_time.by_reduce, by_time.by_expand, by_channel.by_reduce, by_channel.by_expand};
}

// ---- SA

inline Framed framed(const Tensor& kernel, int64_t height, int64_t width) {
  STD_TORCH_CHECK(
      kernel.dim() == 4 && kernel.size(1) == 2 && kernel.size(2) == kernel.size(3) && kernel.size(2) % 2 == 1,
      "SA's kernel must be [1, 2, k, k], k odd");
  return {height, width, int(kernel.size(2))};
}

inline int64_t values_of(const Framed& frame) { return 4 * frame.taps() * frame.positions(); }

template <class Driver>
std::tuple<Tensor, Tensor> seam_space(const Tensor& descriptors, const Tensor& kernel, int64_t height,
                                      int64_t width) {
  const Framed frame = framed(kernel, height, width);
  const int64_t samples = descriptors.size(1);
  const ScalarType state = descriptors.scalar_type();
  Tensor space = empty_flat(descriptors, {samples, height, width}, state);
  Tensor padded = empty_flat(descriptors, {samples, 2, frame.size()}, state);
  dispatch_state(state, [&]<class Real>() {
    Driver::teams(
        descriptors, samples, values_of(frame),
        SpaceForward<Real>{
            samples, frame, small_data<Real>(descriptors, 2 * samples * frame.pixels(), "descriptors"),
            small_data<Real>(kernel, 2 * frame.taps(), "kernel"), data<Real>(space), data<Real>(padded)});
  });
  return {space, padded};
}

// space [N, H, W]; averaged: T C.
template <class Driver>
std::tuple<Tensor, Tensor, Tensor> seam_space_backward(const Tensor& grad, const Tensor& space,
                                                       const Tensor& padded, const Tensor& kernel,
                                                       int64_t averaged) {
  STD_TORCH_CHECK(space.dim() == 3, "space must be [N, H, W]");
  const Framed frame = framed(kernel, space.size(1), space.size(2));
  const int64_t samples = space.size(0), values = samples * frame.pixels();
  const ScalarType state = space.scalar_type();
  Tensor spatial = empty_flat(space, {3, samples, frame.pixels()}, state);
  Tensor total = empty_flat(space, {samples}, ScalarType::Double);
  Tensor by_kernel = empty_flat(space, {samples, 2, kernel.size(2), kernel.size(3)}, ScalarType::Double);
  Tensor room = empty_flat(space, {samples, frame.size()}, state);
  dispatch_state(state, [&]<class Real>() {
    Driver::teams(space, samples, values_of(frame),
                  SpaceBackward<Real>{samples, averaged, frame, small_data<Real>(grad, values, "grad"),
                                      small_data<Real>(space, values, "space"),
                                      small_data<Real>(padded, 2 * samples * frame.size(), "padded"),
                                      small_data<Real>(kernel, 2 * frame.taps(), "kernel"), data<Real>(room),
                                      data<Real>(spatial), data<double>(total), data<double>(by_kernel)});
  });
  return {spatial, total, by_kernel};
}

template <class Driver>
Tensor seam_space_sums(const Tensor& sums, const Tensor& by_level, const Tensor& spatial, const Tensor& total,
                       const Tensor& place, const Tensor& p, const Tensor& norm) {
  const Maps maps = maps_of(p);
  const int64_t pixels = maps.samples * maps.pixels();
  Tensor result = empty_flat(p, {2, maps.steps, maps.samples, maps.channels}, ScalarType::Double);
  dispatch_type(p.scalar_type(), [&]<class Io, class Real>() {
    Driver::teams(p, maps.samples, 4 * (maps.steps * maps.channels + maps.pixels()),
                  SpaceSums<Io, Real>{maps, steps_of<const Io>(p),
                                      small_data<Real>(spatial, 3 * pixels, "spatial") + 2 * pixels,
                                      small_data<int32_t>(place, pixels, "place"),
                                      small_data<double>(sums, 2 * maps.planes(), "sums"),
                                      small_data<double>(total, maps.samples, "total"),
                                      small_data<double>(by_level, maps.planes(), "by_level"),
                                      numbers_of(norm, maps.channels), data<double>(result)});
  });
  return result;
}

template <class Driver, class Library>
void implement_gates(Library& m) {
  m.impl("seam_totals", TORCH_BOX((&seam_totals<Driver>)));
  m.impl("seam_affine", TORCH_BOX((&seam_affine<Driver>)));
  m.impl("seam_norm_sums", TORCH_BOX((&seam_norm_sums<Driver>)));
  m.impl("seam_batch_gradient", TORCH_BOX((&seam_batch_gradient<Driver>)));
  m.impl("seam_space", TORCH_BOX((&seam_space<Driver>)));
  m.impl("seam_space_backward", TORCH_BOX((&seam_space_backward<Driver>)));
  m.impl("seam_space_sums", TORCH_BOX((&seam_space_sums<Driver>)));
  m.impl("seam_gates", TORCH_BOX((&seam_gates<Driver>)));
  m.impl("seam_gates_backward", TORCH_BOX((&seam_gates_backward<Driver>)));
}

}  // namespace attsnn
