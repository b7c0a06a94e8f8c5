// A seam's passes over the maps, but for the loops: reads the arguments, allocates the results, hands typed
// calls to a driver (CPU or CUDA). tensor/seam_op.h joins them.
#pragma once
#include <limits>

#include "core/seam_call.h"
#include "tensor/neuron_op.h"

namespace attsnn {

// What `rules` holds behind the neuron's own: which gates there are (1 TA, 2 CA, 4 SA), whether x has a type
// before the neuron reads it, whether it is a result, whether there is a norm, how many inputs each stands
// for, whether the neuron hands on x of one step as it is, and so its gradient: a seam that is a norm alone;
// whether its state is given, and whether it is a result; whether what it emits is counted.
struct SeamRules {
  bool time, channel, space, rounded, membrane, normed, alone, given, final_state, counted;
  int64_t repeats;

  explicit SeamRules(const std::vector<int64_t>& rules) {
    STD_TORCH_CHECK(rules.size() == kNeuronRules + 9, "rules: wanted ", kNeuronRules + 9, " integers, got ",
                    rules.size());
    const int64_t* own = rules.data() + kNeuronRules;
    time = own[0] & 1, channel = own[0] & 2, space = own[0] & 4;
    rounded = own[1] != 0, membrane = own[2] != 0, normed = own[3] != 0, repeats = own[4];
    alone = own[5] != 0, given = own[6] != 0, final_state = own[7] != 0;
    counted = own[8] != 0;
  }
  bool by_plane() const { return time || channel; }
  bool relu() const { return by_plane() || space; }
};

// [T, N, C, H, W], pixels or channels innermost in every sample; steps and samples at any distance.
inline Maps samples_of(const Tensor& z) {
  STD_TORCH_CHECK(z.dim() == 5 && z.size(0) >= 1, "z must be [T, N, C, H, W] with at least one time step");
  Maps maps{z.size(0), z.size(1), z.size(2), z.size(3), z.size(4), false};
  const bool empty = maps.planes() * maps.pixels() == 0;  // whatever its strides
  const auto lies = [&](int64_t c, int64_t h, int64_t w) {
    const int64_t strides[] = {c, h, w};
    for (int d = 2; d < 5; ++d)
      if (!empty && z.size(d) > 1 && z.stride(d) != strides[d - 2]) return false;
    return true;
  };
  const bool planes = lies(maps.pixels(), maps.width, 1);
  maps.channels_last = !planes;
  STD_TORCH_CHECK(planes || lies(1, maps.width * maps.channels, maps.channels),
                  "a sample z[t, n] must be contiguous or channels-last");
  return maps.laid();
}

// The same where the samples of a step lie side by side.
inline Maps maps_of(const Tensor& z) {
  const Maps maps = samples_of(z);
  const bool dense = maps.samples <= 1 || maps.sample_size() == 0 || z.stride(1) == maps.sample_size();
  STD_TORCH_CHECK(dense, "z[t] must be contiguous or channels-last");
  return maps;
}

inline bool same_maps(const Maps& a, const Maps& b) {
  return a.steps == b.steps && a.samples == b.samples && a.channels == b.channels && a.height == b.height &&
         a.width == b.width && a.channels_last == b.channels_last;
}

inline void check_maps(const std::optional<Tensor>& tensor, const Tensor& like, const Maps& maps) {
  if (!tensor) return;
  STD_TORCH_CHECK(tensor->scalar_type() == like.scalar_type() && same_maps(maps_of(*tensor), maps),
                  "the maps of a seam must agree in type, shape and layout");
}

inline Tensor empty_maps(const Tensor& like, const Maps& m) {
  const int64_t c = m.channels_last ? 1 : m.pixels(), w = m.channels_last ? m.channels : 1;
  return empty_strided(like, {m.steps, m.samples, m.channels, m.height, m.width},
                       {m.samples * m.sample_size(), m.sample_size(), c, m.width * w, w}, like.scalar_type());
}

inline Tensor empty_planes(const Tensor& like, const Maps& maps, ScalarType type) {
  return empty_flat(like, {maps.steps, maps.samples, maps.channels}, type);
}

// A contiguous small tensor's data, of that many values.
template <class T>
const T* small_data(const std::optional<Tensor>& tensor, int64_t size, const char* name) {
  if (!tensor) return nullptr;
  STD_TORCH_CHECK(tensor->is_contiguous() && tensor->numel() == size, name, " must be contiguous and hold ",
                  size, " values, got ", tensor->numel());
  constexpr ScalarType kType = std::is_same_v<T, double>    ? ScalarType::Double
                               : std::is_same_v<T, int32_t> ? ScalarType::Int
                                                            : ScalarType::Float;
  STD_TORCH_CHECK(tensor->scalar_type() == kType, name, " must have the type of the state, and places int32");
  return const_data<T>(tensor);
}

// affine: [2, T or 1, N or 1, C].
template <class Real>
Affine<Real> affine_of(const Tensor& affine, const Maps& maps) {
  const auto fits = [&](int64_t d, int64_t size) { return affine.size(d) == 1 || affine.size(d) == size; };
  STD_TORCH_CHECK(affine.dim() == 4 && affine.size(0) == 2 && fits(1, maps.steps) && fits(2, maps.samples) &&
                      affine.size(3) == maps.channels,
                  "affine must be [2, T or 1, N or 1, C]");
  const Real* a = small_data<Real>(affine, affine.numel(), "affine");
  const int64_t sample = affine.size(2) > 1 ? maps.channels : 0;
  const int64_t step = affine.size(1) > 1 ? affine.size(2) * maps.channels : 0;
  return {a, a + affine.numel() / 2, step, sample};
}

template <class Real>
Real floor_of(bool relu) {
  return relu ? Real(0) : -std::numeric_limits<Real>::infinity();
}

inline void check_pool(int64_t pool, int64_t height, int64_t width) {
  STD_TORCH_CHECK(pool >= 1 && pool <= height && pool <= width,
                  "pool must be from 1 to the side of the maps");
}

// The pooled map where there is a pool; the planes' moments, and where wanted their extrema and places.
struct Statistics {
  std::vector<Tensor> pooled, planes;
};

template <class Driver>
Statistics statistics_pass(const Tensor& z, const std::optional<Tensor>& gamma, int64_t pool, bool extrema) {
  const Maps maps = maps_of(z);
  check_pool(pool, maps.height, maps.width);
  Statistics found{{}, {empty_flat(z, {3, maps.steps, maps.samples, maps.channels}, ScalarType::Double)}};
  if (pool > 1) found.pooled = {empty_maps(z, maps.pooled(pool).laid())};
  if (extrema) {
    found.planes.push_back(empty_planes(z, maps, state_type(z)));
    found.planes.push_back(empty_planes(z, maps, ScalarType::Int));
  }
  if (maps.planes() == 0) return found;
  dispatch_type(z.scalar_type(), [&]<class Io, class Real>() {
    StatisticsCall<Io, Real> call{};
    call.maps = maps;
    call.pool = pool;
    call.z = steps_of<const Io>(z);
    call.gamma = small_data<Real>(gamma, maps.channels, "gamma");
    if (pool > 1) call.pooled = steps_of<Io>(found.pooled[0]);
    call.mean = data<double>(found.planes[0]);
    call.moment = call.mean + maps.planes();
    call.pooled_mean = call.moment + maps.planes();
    if (extrema) call.extremum = data<Real>(found.planes[1]), call.place = data<int32_t>(found.planes[2]);
    Driver::statistics(z, call);
  });
  return found;
}

template <class Driver>
std::tuple<Tensor, Tensor> squeeze_pass(const Tensor& p, const Tensor& affine) {
  const Maps maps = maps_of(p);
  Tensor descriptors = empty_flat(p, {2, maps.samples, maps.pixels()}, state_type(p));
  Tensor place = empty_flat(p, {maps.samples, maps.pixels()}, ScalarType::Int);
  if (maps.planes() == 0) return {descriptors, place};
  dispatch_type(p.scalar_type(), [&]<class Io, class Real>() {
    Real* mean = data<Real>(descriptors);
    Driver::squeeze(p, SqueezeCall<Io, Real>{maps, steps_of<const Io>(p), affine_of<Real>(affine, maps), mean,
                                             mean + maps.samples * maps.pixels(), data<int32_t>(place)});
  });
  return {descriptors, place};
}

// grad_z may be `up`: each value is read before it is written.
template <class Driver>
void gradient_pass(const Tensor& up, const Tensor& z, const std::optional<Tensor>& p, const Tensor& affine,
                   const std::vector<Tensor>& planes, const std::vector<Tensor>& spatial,
                   const std::optional<Tensor>& channels, int64_t pool, bool relu, const Tensor& grad_z) {
  const Maps maps = maps_of(z), p_maps = maps.pooled(pool).laid();
  STD_TORCH_CHECK(p.has_value() == (pool > 1), "p is given where z is pooled, and only there");
  const bool gated = !planes.empty(), spaced = !spatial.empty();
  STD_TORCH_CHECK((!gated || planes.size() == 2) && (!spaced || spatial.size() == 2),
                  "the gradients of planes and of pixels come with the places of the maxima");
  check_maps(up, z, p_maps);
  check_maps(p, z, p_maps);
  if (maps.planes() == 0 || maps.pixels() == 0) return;
  dispatch_type(z.scalar_type(), [&]<class Io, class Real>() {
    const int64_t pixels = maps.samples * p_maps.pixels();
    GradCall<Io, Real> call{};
    call.maps = maps;
    call.pool = pool;
    call.up = steps_of<const Io>(up);
    call.z = steps_of<const Io>(z);
    call.p = p ? steps_of<const Io>(p) : call.z;
    call.affine = affine_of<Real>(affine, maps);
    call.floor = floor_of<Real>(relu);
    if (spaced) {
      call.spatial = small_data<Real>(spatial[0], 3 * pixels, "spatial");
      call.level = call.spatial + pixels, call.point = call.level + pixels;
      call.spatial_place = small_data<int32_t>(spatial[1], pixels, "spatial's places");
    }
    if (gated) {
      call.uniform = small_data<Real>(planes[0], 2 * maps.planes(), "planes");
      call.at_peak = call.uniform + maps.planes();
      call.place = small_data<int32_t>(planes[1], maps.planes(), "planes' places");
    }
    call.offset = small_data<Real>(channels, 3 * maps.channels, "channels");
    if (channels) call.slope = call.offset + maps.channels, call.centre = call.slope + maps.channels;
    call.grad_z = steps_of<Io>(grad_z);
    Driver::gradient(z, call);
  });
}

inline Shape seam_shape(const Maps& maps, const std::optional<Tensor>& learned) {
  const int64_t channels = learned ? learned->size(1) : 1;
  STD_TORCH_CHECK(channels == 1 || channels == maps.channels, "learned must be [constants, 1 or C]");
  return {maps.steps, maps.samples * maps.sample_size(), channels, maps.channels_last ? 1 : maps.pixels()};
}

// [N, C, H, W], in memory like one step of the maps.
inline Tensor empty_state(const Tensor& like, const Maps& m, ScalarType state) {
  const int64_t c = m.channels_last ? 1 : m.pixels(), w = m.channels_last ? m.channels : 1;
  return empty_strided(like, {m.samples, m.channels, m.height, m.width}, {m.sample_size(), c, m.width * w, w},
                       state);
}

template <class Real>
const Real* state_data(const std::optional<Tensor>& tensor, const Maps& m, ScalarType state) {
  if (!tensor) return nullptr;
  const int64_t c = m.channels_last ? 1 : m.pixels(), w = m.channels_last ? m.channels : 1;
  const int64_t sizes[] = {m.samples, m.channels, m.height, m.width};
  const int64_t strides[] = {m.sample_size(), c, m.width * w, w};
  bool fits = tensor->dim() == 4 && tensor->scalar_type() == state;
  for (int d = 0; fits && d < 4; ++d)
    fits = tensor->size(d) == sizes[d] && (sizes[d] <= 1 || tensor->stride(d) == strides[d]);
  STD_TORCH_CHECK(fits, "a state must lie in memory like one step of the maps, in the state's type");
  return const_data<Real>(tensor);
}

// What the neuron emits, and where wanted what it reads, its state, what was counted, and what of it is kept:
// bits or checkpoints.
struct Applied {
  Tensor out;
  std::vector<Tensor> membrane, state, counts, kept;
};

template <class Cell, class Driver>
Applied apply_pass(const Tensor& p, const Tensor& affine, const std::optional<Tensor>& spatial,
                   const std::optional<Tensor>& shortcut, const std::optional<Tensor>& v0,
                   const std::optional<Tensor>& learned, const std::vector<double>& numbers,
                   const std::vector<int64_t>& rules, const std::string& keep) {
  const Maps maps = maps_of(p);
  const SeamRules seam(rules);
  check_maps(shortcut, p, maps);
  const ScalarType state = state_type(p);
  const Choices choices = choices_of<Cell>(rules, numbers, state);
  const int64_t neurons = maps.samples * maps.sample_size();
  const Kept keeps(keep, maps.steps, neurons, state);
  STD_TORCH_CHECK(!keeps.bits || maps.samples <= 1 || maps.sample_size() % kNeuronsPerByte == 0,
                  "bits: a sample's neurons must fill whole bytes");
  STD_TORCH_CHECK(seam.given == v0.has_value(), "v0 is given where rules say so, and only there");
  Applied result{empty_maps(p, maps), {}, {}, {}, {}};
  if (seam.membrane) result.membrane = {empty_maps(p, maps)};
  if (seam.final_state) result.state = {empty_state(p, maps, state)};
  if (seam.counted) result.counts = {empty_counts<Driver>(p, maps.steps, maps.channels)};
  if (keeps.any()) result.kept = {keeps.room(p)};
  if (neurons == 0) {
    if (seam.counted) result.counts = {sum_of_copies(result.counts[0])};
    return result;
  }
  dispatch_type(p.scalar_type(), [&]<class Io, class Real>() {
    SeamForward<Cell, Io, Real> call{};
    call.shape = seam_shape(maps, learned);
    call.neuron = neuron_of<Cell, Real>(choices, numbers, learned, state);
    call.x = {maps,
              steps_of<const Io>(p),
              affine_of<Real>(affine, maps),
              small_data<Real>(spatial, maps.samples * maps.pixels(), "spatial"),
              floor_of<Real>(seam.relu()),
              seam.rounded,
              steps_of<const Io>(shortcut),
              seam.membrane ? steps_of<Io>(result.membrane[0]) : Steps<Io>{}};
    call.out = steps_of<Io>(result.out);
    call.v0 = state_data<Real>(v0, maps, state);
    call.v = seam.final_state ? data<Real>(result.state[0]) : nullptr;
    call.checkpoints = keeps.checkpoints ? data<Real>(result.kept[0]) : nullptr;
    call.bits = keeps.bits ? data<uint8_t>(result.kept[0]) : nullptr;
    if (seam.counted)
      call.counts = counts_in(result.counts[0], maps.steps, maps.channels,
                              maps.channels_last || maps.channels == 1 ? 1 : maps.pixels());
    Driver::forward(p, call, choices.firing);
  });
  if (seam.counted) result.counts = {sum_of_copies(result.counts[0])};
  return result;
}

// The gradient of what the neuron reads, unless it is grad_out; its sums by plane and, with SA, by pixel; and
// those of the given state and of the constants.
struct Risen {
  std::vector<Tensor> up;
  Tensor sums;
  std::vector<Tensor> spatial, state, learned;
};

// kept: as the way there left it; grad_v: of the state after the last step.
template <class Cell, class Driver>
Risen neuron_backward_pass(const Tensor& grad_out, const std::optional<Tensor>& grad_membrane,
                           const Tensor& p, const std::optional<Tensor>& membrane, const Tensor& affine,
                           const std::optional<Tensor>& spatial, const Tensor& centre,
                           const std::optional<Tensor>& kept, const std::optional<Tensor>& v0,
                           const std::optional<Tensor>& grad_v, const std::optional<Tensor>& learned,
                           const std::vector<double>& numbers, const std::vector<int64_t>& rules,
                           const std::string& keep) {
  const Maps maps = maps_of(p);
  const SeamRules seam(rules);
  check_maps(grad_out, p, maps);
  check_maps(grad_membrane, p, maps);
  check_maps(membrane, p, maps);
  const ScalarType state = state_type(p);
  const Choices choices = choices_of<Cell>(rules, numbers, state);
  const int64_t neurons = maps.samples * maps.sample_size(), pixels = maps.samples * maps.pixels();
  const Kept keeps(keep, maps.steps, neurons, state);
  keeps.check(keep, kept);
  STD_TORCH_CHECK(!seam.alone || (maps.steps == 1 && !grad_membrane && !learned && !v0 && !grad_v),
                  "rules: a norm alone is of one step and has neither membrane nor state");
  Risen result{
      {}, empty_flat(p, {2, maps.steps, maps.samples, maps.channels}, ScalarType::Double), {}, {}, {}};
  if (!seam.alone) result.up = {empty_maps(p, maps)};
  if (spatial) result.spatial = {empty_flat(p, {pixels}, state)};
  if (v0) result.state = {empty_state(p, maps, state)};
  if (learned) result.learned = {torch::stable::new_zeros(*learned, learned->sizes())};
  if (neurons == 0) return result;
  dispatch_type(p.scalar_type(), [&]<class Io, class Real>() {
    std::optional<Tensor> by_neuron;
    if (learned) by_neuron = empty_flat(p, {Cell::kConstants, neurons}, state);
    SeamBackward<Cell, Io, Real> call{};
    call.shape = seam_shape(maps, learned);
    call.neuron = neuron_of<Cell, Real>(choices, numbers, learned, state);
    call.grad_out = steps_of<const Io>(grad_out);
    call.grad_v = state_data<Real>(grad_v, maps, state);
    call.v0 = state_data<Real>(v0, maps, state);
    call.grad_v0 = v0 ? data<Real>(result.state[0]) : nullptr;
    call.x = {maps,
              steps_of<const Io>(p),
              affine_of<Real>(affine, maps),
              small_data<Real>(spatial, pixels, "spatial"),
              floor_of<Real>(seam.relu()),
              seam.rounded,
              {},
              steps_of<Io>(membrane)};
    call.checkpoints = keeps.checkpoints ? const_data<Real>(kept) : nullptr;
    call.bits = keeps.bits ? const_data<uint8_t>(kept) : nullptr;
    call.grad_x = {maps,
                   seam.alone ? Steps<Io>{} : steps_of<Io>(result.up[0]),
                   steps_of<const Io>(grad_membrane),
                   call.x.p,
                   call.x.affine,
                   call.x.spatial,
                   small_data<Real>(centre, maps.channels, "centre"),
                   call.x.floor,
                   data<double>(result.sums),
                   spatial ? data<Real>(result.spatial[0]) : nullptr};
    call.sums = learned ? data<Real>(*by_neuron) : nullptr;
    Driver::backward(p, call, choices.firing);
    if (learned) Driver::reduce(p, call.shape, Cell::kConstants, call.sums, data<Real>(result.learned[0]));
  });
  return result;
}

}  // namespace attsnn
