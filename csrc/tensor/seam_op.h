// The seams' dispatcher ops. Each way there are two, for between them processes share the sums of a norm:
// seam_statistics and <neuron>_seam_forward, <neuron>_seam_backward and seam_gradient. What they do is said
// in csrc/README.md; attsnn/ops/seam.py calls them, attsnn/ops/seam_shapes.py has their shapes.
//
// Lists hold what there is, in a fixed order: `weights` TA's and CA's two matrices, SA's kernel; `planes`
// what seam_statistics returns of them; `small` what the way back needs of the way there, as `Small` says.
#pragma once
#include <torch/csrc/stable/library.h>

#include "core/neurons.h"
#include "tensor/gates_op.h"

namespace attsnn {

using Tensors = std::vector<Tensor>;

// The pooled map, where there is a pool; of the planes, where extrema are wanted, moments, extrema and their
// places; where wanted the totals of the batch.
template <class Driver>
std::tuple<Tensors, Tensors, Tensors> seam_statistics(const Tensor& z, const std::optional<Tensor>& gamma,
                                                      int64_t pool, bool extrema, bool totals) {
  const Statistics found = statistics_pass<Driver>(z, gamma, pool, extrema);
  Tensors of_batch;
  if (totals) of_batch = {totals_of<Driver>(found.planes[0], z.size(3) * z.size(4))};
  return {found.pooled, extrema ? found.planes : Tensors{}, of_batch};
}

// Takes tensors off a list, one kind after the other.
class Parts {
 public:
  Parts(const Tensors& all, const char* name) : all_(all), name_(name) {}
  Tensors take(size_t count, bool there = true) {
    if (!there) return {};
    STD_TORCH_CHECK(at_ + count <= all_.size(), name_, " holds too few tensors: ", int64_t(all_.size()));
    const auto first = all_.begin() + at_;
    at_ += count;
    return {first, first + count};
  }
  std::optional<Tensor> take_rest() {
    const Tensors rest = take(all_.size() - at_);
    STD_TORCH_CHECK(rest.size() <= 1, name_, " holds too many tensors: ", int64_t(all_.size()));
    return rest.empty() ? std::nullopt : std::optional(rest[0]);
  }

 private:
  const Tensors& all_;
  const char* name_;
  size_t at_ = 0;
};

// A and B with the gates in them; the norm; what is kept of the gates; bits or checkpoints of the neuron.
struct Small {
  Tensor affine, norm, centre, unbiased;
  GateTensors time, channel;
  Tensors space;
  std::optional<Tensor> kernel, kept;

  explicit Small(const NormAsRead& read)
      : affine(read.affine), norm(read.norm), centre(read.centre), unbiased(read.unbiased) {}
  Small(const Tensors& small, const Tensors& weights, const SeamRules& rules)
      : Small(Parts(small, "small"), weights, rules) {}

  void take_weights(const Tensors& weights, const SeamRules& rules) {
    Parts parts(weights, "weights");
    time.weights = parts.take(kWeights, rules.time);
    channel.weights = parts.take(kWeights, rules.channel);
    kernel = parts.take_rest();
    STD_TORCH_CHECK(kernel.has_value() == rules.space, "weights must be those of the gates that rules name");
  }
  std::optional<Tensor> map() const { return space.empty() ? std::nullopt : std::optional(space[kMap]); }

  Tensors list() const {
    Tensors all{affine, norm, centre, unbiased};
    for (const Tensors* some : {&time.kept, &channel.kept, &space})
      all.insert(all.end(), some->begin(), some->end());
    if (kept) all.push_back(*kept);
    return all;
  }

 private:
  Small(Parts parts, const Tensors& weights, const SeamRules& rules) : Small(read(parts.take(4))) {
    take_weights(weights, rules);
    time.kept = parts.take(kKept, rules.time);
    channel.kept = parts.take(kKept, rules.channel);
    space = parts.take(kSpaceKept, rules.space);
    kept = parts.take_rest();
  }
  static NormAsRead read(const Tensors& four) { return {four[0], four[1], four[2], four[3]}; }
};

// What the neuron emits, where `rules` want them the membrane it reads, its state after the last step and, in
// the same list, the counts, and `small`. statistics: as in norm_of; numbers: behind the neuron's the norm's
// epsilon.
template <class Cell, class Driver>
std::tuple<Tensor, Tensors, Tensors, Tensors> seam_forward(
    const Tensor& p, const std::optional<Tensor>& shortcut, const std::optional<Tensor>& v0,
    const Tensors& planes, const Tensors& statistics, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias, const Tensors& weights, const std::optional<Tensor>& learned,
    const std::vector<double>& numbers, const std::vector<int64_t>& rules, std::string keep) {
  const SeamRules seam(rules);
  STD_TORCH_CHECK(numbers.size() == kNeuronNumbers<Cell> + 1, "numbers: wanted ", kNeuronNumbers<Cell> + 1,
                  ", got ", numbers.size());
  Small small(norm_of<Driver>(p, statistics, weight, bias, numbers.back(), seam.repeats));
  small.take_weights(weights, seam);
  if (seam.by_plane())
    small.affine = gates_forward<Driver>(Planes(planes), small.affine, small.time, small.channel);
  if (seam.space) small.space = space_forward<Driver>(p, small.affine, *small.kernel);
  const Applied applied =
      apply_pass<Cell, Driver>(p, small.affine, small.map(), shortcut, v0, learned, numbers, rules, keep);
  if (!applied.kept.empty()) small.kept = applied.kept[0];
  Tensors states = applied.state;
  states.insert(states.end(), applied.counts.begin(), applied.counts.end());
  return {applied.out, applied.membrane, states, small.list()};
}

// `up`, the gradient of what the neuron reads, unless it is grad_out; where there is a norm the sums of the
// gradients of beta and gamma over this process [2, C], in float64, and those gradients; the gradients of
// `weights`, of the planes and of the pixels, which seam_gradient reads; those of the given state and of the
// learned constants. states: the one that was given, and the gradient of the one after the last step.
template <class Cell, class Driver>
std::tuple<Tensors, Tensors, Tensors, Tensors, Tensors, Tensors, Tensors> seam_backward(
    const Tensor& grad_out, const std::optional<Tensor>& grad_membrane, const Tensor& p,
    const std::optional<Tensor>& membrane, const Tensors& planes, const Tensors& weights,
    const Tensors& small, const Tensors& states, const std::optional<Tensor>& learned,
    const std::vector<double>& numbers, const std::vector<int64_t>& rules, std::string keep) {
  const SeamRules seam(rules);
  const Small of(small, weights, seam);
  Parts of_time(states, "states");
  const Tensors given = of_time.take(1, seam.given);
  const std::optional<Tensor> v0 = given.empty() ? std::nullopt : std::optional(given[0]);
  const std::optional<Tensor> grad_v = of_time.take_rest();
  const Risen risen =
      neuron_backward_pass<Cell, Driver>(grad_out, grad_membrane, p, membrane, of.affine, of.map(), of.centre,
                                         of.kept, v0, grad_v, learned, numbers, rules, keep);
  // From here in float64: the gradient of what SA reads, by plane, summed against 1 and against p - mean; not
  // against y, which is no help where gamma is 0.
  Tensor sums = risen.sums;
  Tensors by_weights, by_planes, by_pixels, by_norm;
  std::optional<Tensor> by_kernel;
  if (seam.space) {
    const SpaceGradient found =
        space_backward<Driver>(p, risen.spatial[0], sums, of.norm, of.centre, of.space, *of.kernel);
    by_pixels = {found.spatial};
    by_kernel = found.kernel;
  }
  if (seam.by_plane()) {
    const Planes read(planes);
    const GatesGradient found =
        gates_backward<Driver>(read, sums, of.norm, of.time, of.channel, p.size(3) * p.size(4));
    by_planes = {found.planes};
    by_weights = found.weights;
    sums = found.sums;
  }
  if (by_kernel) by_weights.push_back(*by_kernel);
  if (seam.normed) by_norm = norm_gradients<Driver>(sums, of.norm, state_type(p));
  return {risen.up, by_norm, by_weights, by_planes, by_pixels, risen.state, risen.learned};
}

// Writes the gradient of z. by_planes, by_pixels: each with the places of its maxima behind it, or
// nothing; batch: the sums of the gradients of beta and gamma, the totals and the norm, where the statistics
// are the batch's.
template <class Driver>
void gradient_into(const Tensor& grad_z, const Tensor& up, const Tensor& z, const std::optional<Tensor>& p,
                   const Tensor& affine, const Tensors& by_planes, const Tensors& by_pixels,
                   const Tensors& batch, int64_t pool, bool relu) {
  STD_TORCH_CHECK(batch.empty() || batch.size() == 3, "batch must hold sums, totals and norm, or nothing");
  std::optional<Tensor> channels;
  if (!batch.empty()) channels = batch_gradient<Driver>(batch[0], batch[1], batch[2], state_type(z));
  gradient_pass<Driver>(up, z, p, affine, by_planes, by_pixels, channels, pool, relu, grad_z);
}

template <class Driver>
Tensor seam_gradient(const Tensor& up, const Tensor& z, const std::optional<Tensor>& p, const Tensor& affine,
                     const Tensors& by_planes, const Tensors& by_pixels, const Tensors& batch, int64_t pool,
                     bool relu) {
  const Tensor grad_z = empty_maps(z, maps_of(z));
  gradient_into<Driver>(grad_z, up, z, p, affine, by_planes, by_pixels, batch, pool, relu);
  return grad_z;
}

// In the place of `up`, where nobody else reads that and z has no pool.
template <class Driver>
void seam_gradient_(const Tensor& up, const Tensor& z, const Tensor& affine, const Tensors& by_planes,
                    const Tensors& by_pixels, const Tensors& batch, bool relu) {
  gradient_into<Driver>(up, up, z, std::nullopt, affine, by_planes, by_pixels, batch, 1, relu);
}

template <class Driver, class Library>
void implement_seams(Library& m) {
  m.impl("seam_statistics", TORCH_BOX((&seam_statistics<Driver>)));
  m.impl("seam_gradient", TORCH_BOX((&seam_gradient<Driver>)));
  m.impl("seam_gradient_", TORCH_BOX((&seam_gradient_<Driver>)));
  m.impl("update_running", TORCH_BOX((&update_running<Driver>)));
  Neurons::for_each([&](auto type) {
    using Cell = typename decltype(type)::type;
    const std::string name = Cell::kName;
    m.impl((name + "_seam_forward").c_str(), TORCH_BOX((&seam_forward<Cell, Driver>)));
    m.impl((name + "_seam_backward").c_str(), TORCH_BOX((&seam_backward<Cell, Driver>)));
  });
}

}  // namespace attsnn
