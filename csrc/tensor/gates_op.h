// A seam's small tensors, but for the loops: a norm's numbers by channel, and the gates. A driver (CPU or
// CUDA) runs works: `each`, a task on its own, or `teams`. tensor/seam_op.h joins them.
#pragma once
#include "core/channels_backward.h"
#include "core/gate_weights.h"
#include "core/gates.h"
#include "core/gates_backward.h"
#include "core/running.h"
#include "core/space_backward.h"
#include "tensor/seam_pass.h"

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

// Of a batch: the number of values, and by channel their mean and centred second moment, [1 + 2 C].
template <class Driver>
Tensor totals_of(const Tensor& moments, int64_t pixels) {
  const ChannelTiles tiles = tiles_of(moments);
  const int64_t planes = tiles.rows * tiles.channels;
  const double* mean = small_data<double>(moments, 3 * planes, "moments");
  Tensor totals = empty_flat(moments, {1 + 2 * tiles.channels}, ScalarType::Double);
  const Totals work{tiles, double(pixels), mean, mean + planes, data<double>(totals)};
  Driver::teams(moments, tiles.count(), 2 * tiles.rows * kChannelTile, work);
  return totals;
}

// affine [2, 1, 1, C], the norm's numbers [4, C], its mean and the unbiased variance [C].
struct NormAsRead {
  Tensor affine, norm, centre, unbiased;
};

// For p's type and channels. statistics: the totals of a batch; or mean and var, float64 [C]; or nothing,
// where there is no norm.
template <class Driver>
NormAsRead norm_of(const Tensor& p, const std::vector<Tensor>& statistics,
                   const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, double eps,
                   int64_t repeats) {
  STD_TORCH_CHECK(statistics.size() <= 2, "statistics: wanted totals, or mean and var, or nothing");
  const int64_t channels = p.size(2);
  const ScalarType state = state_type(p);
  const NormAsRead result{empty_flat(p, {2, 1, 1, channels}, state),
                          empty_flat(p, {4, channels}, ScalarType::Double), empty_flat(p, {channels}, state),
                          empty_flat(p, {channels}, state)};
  dispatch_state(state, [&]<class Real>() {
    NormAffine<Real> work{};
    work.repeats = repeats;
    work.eps = eps;
    if (statistics.size() == 1) {
      work.count = small_data<double>(statistics[0], 1 + 2 * channels, "totals");
      work.mean = work.count + 1, work.var = work.mean + channels;
    } else if (statistics.size() == 2) {
      work.mean = small_data<double>(statistics[0], channels, "mean");
      work.var = small_data<double>(statistics[1], channels, "var");
    }
    work.weight = small_data<Real>(weight, channels, "weight");
    work.bias = small_data<Real>(bias, channels, "bias");
    work.a = data<Real>(result.affine);
    work.b = work.a + channels;
    work.centre = data<Real>(result.centre);
    work.unbiased = data<Real>(result.unbiased);
    work.numbers = {data<double>(result.norm), channels};
    Driver::each(p, channels, work);
  });
  return result;
}

template <class Driver>
void update_running(const Tensor& mean, const Tensor& var, const Tensor& batches, const Tensor& batch_mean,
                    const Tensor& batch_var, double momentum) {
  const int64_t channels = mean.numel();
  STD_TORCH_CHECK(batches.scalar_type() == ScalarType::Long && batches.numel() == 1,
                  "batches must be one int64");
  STD_TORCH_CHECK(mean.scalar_type() == ScalarType::Float || mean.scalar_type() == ScalarType::Double,
                  "running statistics must be float32 or float64");
  dispatch_state(mean.scalar_type(), [&]<class Real>() {
    const auto of = [&](const Tensor& tensor, const char* name) {
      return small_data<Real>(tensor, channels, name);
    };
    of(mean, "mean"), of(var, "var");  // checks them
    Driver::each(
        mean, channels,
        RunningStatistics<Real>{of(batch_mean, "batch_mean"), of(batch_var, "batch_var"), Real(momentum),
                                data<Real>(mean), data<Real>(var), data<int64_t>(batches)});
  });
}

// The sums by plane -> the gradients of beta and gamma in float64, [2, C], and each in its own type, `state`.
template <class Driver>
std::vector<Tensor> norm_gradients(const Tensor& sums, const Tensor& norm, ScalarType state) {
  const ChannelTiles tiles = tiles_of(sums);
  const std::vector<Tensor> result{empty_flat(sums, {2, tiles.channels}, ScalarType::Double),
                                   empty_flat(sums, {tiles.channels}, state),
                                   empty_flat(sums, {tiles.channels}, state)};
  dispatch_state(state, [&]<class Real>() {
    const NormSums<Real> work{tiles,
                              small_data<double>(sums, 2 * tiles.rows * tiles.channels, "sums"),
                              numbers_of(norm, tiles.channels),
                              data<double>(result[0]),
                              data<Real>(result[1]),
                              data<Real>(result[2])};
    Driver::teams(sums, 2 * tiles.count(), tiles.rows * kChannelTile, work);
  });
  return result;
}

// What the statistics of the batch hand back to z, [3, C].
template <class Driver>
Tensor batch_gradient(const Tensor& sums, const Tensor& totals, const Tensor& norm, ScalarType state) {
  const int64_t channels = norm.size(1);
  Tensor result = empty_flat(sums, {3, channels}, state);
  dispatch_state(state, [&]<class Real>() {
    Driver::each(sums, channels,
                 BatchGradient<Real>{channels, small_data<double>(sums, 2 * channels, "sums"),
                                     small_data<double>(totals, 1 + 2 * channels, "totals"),
                                     numbers_of(norm, channels), data<Real>(result)});
  });
  return result;
}

// ---- TA and CA: their two matrices [R, D] and [D, R], and what is kept of D values a sample, the gate
// [N, D], its descriptors [2, N, D], the places of the maxima [N, D], the hidden values [2, N, R]. Nothing of
// a gate that is not there.

enum : size_t { kReduce, kExpand, kWeights };
enum : size_t { kGate, kInputs, kPlace, kHidden, kKept };

inline std::vector<Tensor> room_for_gate(const std::vector<Tensor>& weights, const Tensor& like,
                                         int64_t samples, int64_t size) {
  if (weights.empty()) return {};
  const ScalarType state = like.scalar_type();
  return {empty_flat(like, {samples, size}, state), empty_flat(like, {2, samples, size}, state),
          empty_flat(like, {samples, size}, ScalarType::Int),
          empty_flat(like, {2, samples, weights[kReduce].size(0)}, state)};
}

template <class Real>
Gate<Real> gate_of(const std::vector<Tensor>& weights, const std::vector<Tensor>& kept, int64_t samples,
                   int64_t size) {
  if (weights.empty()) return {};
  const int64_t width = weights[kReduce].size(0), values = samples * size;
  const auto writable = [](const Real* from) { return const_cast<Real*>(from); };
  Gate<Real> gate;
  gate.samples = samples;
  gate.size = size;
  gate.width = width;
  gate.reduce = small_data<Real>(weights[kReduce], width * size, "a gate's first matrix");
  gate.expand = small_data<Real>(weights[kExpand], width * size, "a gate's second matrix");
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

// The planes [T, N, C] as the pass that takes statistics leaves them.
struct Planes {
  Tensor moments, peak, place;
  int64_t steps, samples, channels;

  explicit Planes(const std::vector<Tensor>& planes)
      : moments(planes.at(0)), peak(planes.at(1)), place(planes.at(2)) {
    STD_TORCH_CHECK(peak.dim() == 3, "the planes' extrema must be [T, N, C]");
    steps = peak.size(0), samples = peak.size(1), channels = peak.size(2);
  }

  template <class Real>
  Gates<Real> gates() const {
    const int64_t count = steps * samples * channels;
    return {steps,
            samples,
            channels,
            small_data<double>(moments, 3 * count, "moments") + 2 * count,
            small_data<Real>(peak, count, "extrema"),
            {},
            {}};
  }
};

struct GateTensors {
  std::vector<Tensor> weights, kept;
};

// affine times the gates, [2, T or 1, N, C]; makes what is kept of both gates.
template <class Driver>
Tensor gates_forward(const Planes& planes, const Tensor& affine, GateTensors& time, GateTensors& channel) {
  const int64_t samples = planes.samples, channels = planes.channels;
  const Tensor& peak = planes.peak;
  time.kept = room_for_gate(time.weights, peak, samples, planes.steps);
  channel.kept = room_for_gate(channel.weights, peak, samples, channels);
  Tensor gated =
      empty_flat(peak, {2, time.weights.empty() ? 1 : planes.steps, samples, channels}, peak.scalar_type());
  dispatch_state(peak.scalar_type(), [&]<class Real>() {
    const Real* a = small_data<Real>(affine, 2 * channels, "affine");
    Gates<Real> gates = planes.gates<Real>();
    gates.time = gate_of<Real>(time.weights, time.kept, samples, planes.steps);
    gates.channel = gate_of<Real>(channel.weights, channel.kept, samples, channels);
    Driver::teams(peak, samples, values_of(gates),
                  GatesForward<Real>{gates, a, a + channels, data<Real>(gated)});
  });
  return gated;
}

// The gradients of the planes' means and extrema, [2, T, N, C], the sums that the norm sees, and the
// gradients of the gates' matrices, TA's first.
struct GatesGradient {
  Tensor planes, sums;
  std::vector<Tensor> weights;
};

template <class Driver>
GatesGradient gates_backward(const Planes& planes, const Tensor& sums, const Tensor& norm,
                             const GateTensors& time, const GateTensors& channel, int64_t pixels) {
  const int64_t steps = planes.steps, samples = planes.samples, channels = planes.channels;
  const Tensor& peak = planes.peak;
  const ScalarType state = peak.scalar_type();
  GatesGradient result{empty_flat(peak, {2, steps, samples, channels}, state),
                       empty_flat(peak, {2, steps, samples, channels}, ScalarType::Double),
                       {}};
  std::vector<Tensor> rooms;  // as long as the works run
  dispatch_state(state, [&]<class Real>() {
    const auto gate = [&](const GateTensors& tensors, int64_t size) {
      Gate<Real> found = gate_of<Real>(tensors.weights, tensors.kept, samples, size);
      if (!found.there()) return found;
      const int64_t width = found.width;
      result.weights.push_back(empty_flat(peak, {width, size}, state));
      found.by_reduce = data<Real>(result.weights.back());
      result.weights.push_back(empty_flat(peak, {size, width}, state));
      found.by_expand = data<Real>(result.weights.back());
      rooms.push_back(empty_flat(peak, {samples * (3 * size + 2 * width)}, state));
      found.by_sum = data<Real>(rooms.back());
      found.by_inputs = found.by_sum + samples * size;
      found.by_hidden = found.by_inputs + 2 * samples * size;
      return found;
    };
    Gates<Real> gates = planes.gates<Real>();
    gates.time = gate(time, steps);
    gates.channel = gate(channel, channels);
    Driver::teams(peak, samples, values_of(gates),
                  GatesBackward<Real>{gates, small_data<double>(sums, 2 * gates.planes(), "sums"),
                                      numbers_of(norm, channels), pixels, data<Real>(result.planes),
                                      data<double>(result.sums)});
    const GateWeights<Real> weights{gates.time, gates.channel};
    Driver::teams(peak, weights.tasks(), 3 * samples * std::max(steps, channels), weights);
  });
  return result;
}

// ---- SA

inline Framed framed(const Tensor& kernel, int64_t height, int64_t width) {
  STD_TORCH_CHECK(
      kernel.dim() == 4 && kernel.size(1) == 2 && kernel.size(2) == kernel.size(3) && kernel.size(2) % 2 == 1,
      "SA's kernel must be [1, 2, k, k], k odd");
  return {height, width, int(kernel.size(2))};
}

inline int64_t values_of(const Framed& frame) { return 4 * frame.taps() * frame.positions(); }

// What is kept of SA: its map [N, H, W], its descriptors in a frame of zeros, the places of their maxima.
enum : size_t { kMap, kPadded, kMaxima, kSpaceKept };

template <class Driver>
std::vector<Tensor> space_forward(const Tensor& p, const Tensor& affine, const Tensor& kernel) {
  const auto [descriptors, place] = squeeze_pass<Driver>(p, affine);
  const Framed frame = framed(kernel, p.size(3), p.size(4));
  const int64_t samples = p.size(1);
  const ScalarType state = descriptors.scalar_type();
  Tensor space = empty_flat(p, {samples, p.size(3), p.size(4)}, state);
  Tensor padded = empty_flat(p, {samples, 2, frame.size()}, state);
  dispatch_state(state, [&, descriptors = descriptors]<class Real>() {
    Driver::teams(
        p, samples, values_of(frame),
        SpaceForward<Real>{
            samples, frame, small_data<Real>(descriptors, 2 * samples * frame.pixels(), "descriptors"),
            small_data<Real>(kernel, 2 * frame.taps(), "kernel"), data<Real>(space), data<Real>(padded)});
  });
  return {space, padded, place};
}

// What pass C reads of SA, [3, N, pixels], and the gradient of its kernel.
struct SpaceGradient {
  Tensor spatial, kernel;
};

// grad: of SA's map. What its descriptors say of the planes is added to `sums`.
template <class Driver>
SpaceGradient space_backward(const Tensor& p, const Tensor& grad, const Tensor& sums, const Tensor& norm,
                             const Tensor& centre, const std::vector<Tensor>& kept, const Tensor& kernel) {
  const Maps maps = maps_of(p);
  const Framed frame = framed(kernel, maps.height, maps.width);
  const int64_t samples = maps.samples, pixels = samples * maps.pixels(), taps = frame.taps();
  const ScalarType state = state_type(p);
  const SpaceGradient result{empty_flat(p, {3, samples, maps.pixels()}, state),
                             empty_flat(p, {1, 2, frame.side, frame.side}, state)};
  const Tensor room = empty_flat(p, {samples, frame.size()}, state);
  const Tensor found = empty_flat(p, {samples * (1 + 2 * taps) + maps.planes()}, ScalarType::Double);
  double *total = data<double>(found), *by_sample = total + samples,
         *by_level = by_sample + samples * 2 * taps;
  double* by_plane = data<double>(sums);
  dispatch_type(p.scalar_type(), [&]<class Io, class Real>() {
    Real* spatial = data<Real>(result.spatial);
    Driver::teams(p, samples, values_of(frame),
                  SpaceBackward<Real>{samples, maps.steps * maps.channels, frame,
                                      small_data<Real>(grad, pixels, "grad"),
                                      small_data<Real>(kept[kMap], pixels, "SA"),
                                      small_data<Real>(kept[kPadded], 2 * samples * frame.size(), "padded"),
                                      small_data<Real>(kernel, 2 * taps, "kernel"), data<Real>(room), spatial,
                                      total, by_sample});
    const KernelSums<Real> kernels{samples, 2 * taps, by_sample, data<Real>(result.kernel)};
    Driver::teams(p, kernels.tiles().count(), samples * kChannelTile, kernels);
    if (maps.planes() == 0) return;
    Driver::project(p, ProjectCall<Io, Real>{maps, steps_of<const Io>(p), spatial + pixels,
                                             small_data<Real>(centre, maps.channels, "centre"), by_level});
    Driver::teams(p, samples, 4 * (maps.steps * maps.channels + maps.pixels()),
                  SpaceSums<Io, Real>{maps, steps_of<const Io>(p), spatial + 2 * pixels,
                                      small_data<int32_t>(kept[kMaxima], pixels, "SA's places"), total,
                                      by_level, numbers_of(norm, maps.channels), by_plane});
  });
  return result;
}

}  // namespace attsnn
