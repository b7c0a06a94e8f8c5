// The neurons' dispatcher ops, but for the loops: reads the arguments, allocates the results, hands typed
// calls to a driver (CPU or CUDA). The shape rule is that of attsnn/ops/neuron.py: the inner order of x is
// kept.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/shim_utils.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "core/call.h"
#include "tensor/dispatch.h"

namespace attsnn {

using torch::stable::Tensor;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// For a result that there is no memory for, as PyTorch says it: tools that look for a batch that fits know it
// by these words, and attsnn/ops makes PyTorch's class of error of them, which the stable ABI does not hand
// on.
inline std::runtime_error no_memory(bool cuda, const std::vector<int64_t>& sizes) {
  std::string shape;
  for (const int64_t size : sizes) shape += (shape.empty() ? "" : ", ") + std::to_string(size);
  return std::runtime_error((cuda ? "CUDA out of memory." : "DefaultCPUAllocator: can't allocate memory:") +
                            std::string(" attsnn wants a tensor of shape [") + shape +
                            "]; what the allocator says of it is on stderr");
}

// On the device of `like`. Not through the dispatcher: a seam needs dozens, most of a few hundred values,
// which take less time to compute than to come by there.
inline Tensor empty_strided(const Tensor& like, const std::vector<int64_t>& sizes,
                            const std::vector<int64_t>& strides, ScalarType type) {
  namespace detail = torch::stable::detail;
  int32_t device = 0, index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  AtenTensorHandle made = nullptr;
  if (aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides.data(),
                               detail::to<int32_t>(detail::from(type)), device, index,
                               &made) != AOTI_TORCH_SUCCESS)
    throw no_memory(device != aoti_torch_device_type_cpu(), sizes);
  return Tensor(made);
}

inline Tensor empty_flat(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t d = sizes.size(); d-- > 1;) strides[d - 1] = strides[d] * sizes[d];
  return empty_strided(like, sizes, strides, type);
}

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <class T>
const T* const_data(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

inline ScalarType state_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The sizes of [T, N, ...] and how one step lies in memory.
struct Geometry {
  std::vector<int64_t> sizes, inner_sizes, inner_strides;
  Shape shape;

  explicit Geometry(const Tensor& x, const std::optional<Tensor>& learned) {
    STD_TORCH_CHECK(x.dim() >= 2 && x.size(0) >= 1, "x must be [T, N, ...] with at least one time step");
    int64_t neurons = 1;
    for (int64_t d = 0; d < x.dim(); ++d) {
      sizes.push_back(x.size(d));
      if (d == 0) continue;
      inner_sizes.push_back(x.size(d));
      inner_strides.push_back(x.stride(d));
      neurons *= x.size(d);
    }
    STD_TORCH_CHECK(neurons == 0 || dense(), "x[t] must be dense: make x contiguous first");
    const int64_t channels = learned ? learned->size(1) : 1;
    STD_TORCH_CHECK(channels == 1 || (x.dim() > 2 && x.size(2) == channels),
                    "learned must be [constants, 1 or C], C the size of dimension 2 of x");
    shape = {x.size(0), neurons, channels, channels > 1 ? x.stride(2) : 1};
  }

  // [count, N, ...].
  Tensor steps(const Tensor& like, ScalarType type, int64_t count) const {
    std::vector<int64_t> counted = sizes, strides{shape.neurons};
    counted[0] = count;
    strides.insert(strides.end(), inner_strides.begin(), inner_strides.end());
    return empty_strided(like, counted, strides, type);
  }
  Tensor step(const Tensor& like, ScalarType type) const {
    return empty_strided(like, inner_sizes, inner_strides, type);
  }
  // Whether `other` is as many steps or one, or, a state, one without the dimension of time.
  bool are_steps(const Tensor& other, int64_t steps) const {
    return other.dim() == int64_t(sizes.size()) && (other.size(0) == steps || other.size(0) == 1) &&
           lies_like(other, 1);
  }
  bool is_state(const std::optional<Tensor>& other, ScalarType state) const {
    return !other || (other->scalar_type() == state && other->dim() + 1 == int64_t(sizes.size()) &&
                      lies_like(*other, 0));
  }

 private:
  bool lies_like(const Tensor& other, int64_t outer) const {
    for (size_t d = 0; d < inner_sizes.size(); ++d) {
      const int64_t at = outer + int64_t(d);
      if (other.size(at) != inner_sizes[d]) return false;
      if (inner_sizes[d] > 1 && other.stride(at) != inner_strides[d]) return false;
    }
    return true;
  }
  // Whether one step fills its memory without gaps or overlaps, in any order of its dimensions.
  bool dense() const {
    std::vector<std::pair<int64_t, int64_t>> left;  // stride, size
    for (size_t d = 0; d < inner_sizes.size(); ++d)
      if (inner_sizes[d] != 1) left.emplace_back(inner_strides[d], inner_sizes[d]);
    std::sort(left.begin(), left.end());
    int64_t expected = 1;
    for (const auto& [stride, size] : left) {
      if (stride != expected) return false;
      expected *= size;
    }
    return true;
  }
};

// What the way there leaves of a neuron for the way back: "bits", two a neuron and step; for the "input",
// from which it is walked again, the state at the checkpoints of a long walk; or "nothing".
class Kept {
 public:
  bool bits, checkpoints;

  Kept(const std::string& keep, int64_t steps, int64_t neurons, ScalarType state)
      : bits(keep == "bits"), checkpoints(keep == "input" && steps > kCheckpointAbove) {
    STD_TORCH_CHECK(bits || keep == "input" || keep == "nothing", "keep must be bits, input or nothing, got ",
                    keep);
    if (bits) sizes_ = {steps, bytes_of_bits(neurons)};
    if (checkpoints) sizes_ = {(steps - 1) / kCheckpointEvery, neurons};
    type_ = bits ? ScalarType::Byte : state;
  }
  bool any() const { return bits || checkpoints; }
  Tensor room(const Tensor& like) const { return empty_flat(like, sizes_, type_); }

  // Of the way back, which cannot go without.
  void check(const std::string& keep, const std::optional<Tensor>& kept) const {
    STD_TORCH_CHECK(keep != "nothing", "keep: nothing was kept for a backward pass");
    if (!any()) return;
    int64_t values = 1;
    for (const int64_t size : sizes_) values *= size;
    STD_TORCH_CHECK(kept && kept->scalar_type() == type_ && kept->numel() == values && kept->is_contiguous(),
                    "kept must be what the forward pass returned: ", values, " values");
  }

 private:
  std::vector<int64_t> sizes_{0};
  ScalarType type_;
};

// A tensor of one step stands for all.
template <class T>
Steps<T> steps_of(const std::optional<Tensor>& tensor) {
  if (!tensor) return {nullptr, 0};
  return {static_cast<T*>(const_cast<void*>(tensor->const_data_ptr())),
          tensor->size(0) == 1 ? 0 : tensor->stride(0)};
}

// Into `sum`, which has one step: it keeps its layout, which a sum made by torch would not.
inline void sum_over_steps(const Tensor& tensor, Tensor& sum) {
  const int64_t time = 0;
  torch::stable::copy_(sum, torch::stable::sum(tensor, Sizes(&time, 1), true));
}

// The order of `rules` and `numbers` is that in attsnn/ops/neuron.py.
struct Choices {
  bool hard_reset, own_amount, detach_reset, centred, start_at_reset;
  int64_t emit;
  double centre;
  Firing firing;
};

// Behind them stand those of a seam. A neuron alone may leave out the last ones, as programs do that were
// exported before there were any: its amount, levels and height are then 0, 0 and 1.
inline constexpr size_t kNeuronRules = 11, kFewestRules = 8;
template <class Cell>
inline constexpr size_t kNeuronNumbers = Cell::kConstants + 3;

template <class Cell>
Choices choices_of(const std::vector<int64_t>& rules, const std::vector<double>& numbers, ScalarType state) {
  STD_TORCH_CHECK(rules.size() >= kFewestRules, "rules: wanted ", kNeuronRules, " integers, got ",
                  rules.size());
  STD_TORCH_CHECK(numbers.size() + 1 >= kNeuronNumbers<Cell>, "numbers: wanted ", kNeuronNumbers<Cell>,
                  ", got ", numbers.size());
  const auto rule = [&](size_t i) { return i < rules.size() ? rules[i] : 0; };
  STD_TORCH_CHECK(rules[6] >= 0 && rules[6] < int64_t(std::size(kEmits)), "rules: there is no emit ",
                  rules[6]);
  STD_TORCH_CHECK(rules[7] >= 0 && rules[7] < Surrogates<float>::kSize, "rules: there is no surrogate ",
                  rules[7]);
  STD_TORCH_CHECK(rules[3] == 0 || state == ScalarType::Double,
                  "rules: soft spikes are computed in float64 only");
  STD_TORCH_CHECK(rule(9) == 0 || (rule(9) > 0 && rules[0] == 0 && Emit(rules[6]) == Emit::kSpike),
                  "rules: integer spikes have a soft reset, and are what is emitted");
  const double* surrogate = numbers.data() + Cell::kConstants;  // scale, centre, height
  return {.hard_reset = rules[0] != 0,
          .own_amount = rule(8) != 0,
          .detach_reset = rules[1] != 0,
          .centred = rules[4] != 0,
          .start_at_reset = rules[5] != 0,
          .emit = rules[6],
          .centre = surrogate[1],
          .firing = {.surrogate = rules[7],
                     .scale = surrogate[0],
                     .height = numbers.size() < kNeuronNumbers<Cell> ? 1 : surrogate[2],
                     .strict = rules[2] != 0,
                     .soft = rules[3] != 0,
                     .levels = rule(9),
                     .normalized = rule(10) != 0}};
}

template <class Cell, class Real>
Neuron<Cell, Real> neuron_of(const Choices& choices, const std::vector<double>& numbers,
                             const std::optional<Tensor>& learned, ScalarType state) {
  Neuron<Cell, Real> neuron{};
  Real* values = reinterpret_cast<Real*>(&neuron.constants);
  for (int k = 0; k < Cell::kConstants; ++k) values[k] = Real(numbers[k]);
  STD_TORCH_CHECK(!learned || (learned->scalar_type() == state && learned->size(0) == Cell::kConstants &&
                               learned->is_contiguous()),
                  "learned must be a contiguous tensor [constants, 1 or C] of the state's type");
  neuron.learned = const_data<Real>(learned);
  neuron.rules = {Real(choices.hard_reset), Real(choices.own_amount), Real(!choices.detach_reset),
                  Real(choices.centred),    choices.start_at_reset,   Emit(choices.emit)};
  neuron.centre = Real(choices.centre);
  return neuron;
}

// int64 [T + C]: what is emitted, by step and then by channel; of a driver that wants copies so many of them.
template <class Driver>
Tensor empty_counts(const Tensor& like, int64_t steps, int64_t channels) {
  const int64_t sizes[] = {Driver::kCountCopies, steps + channels};
  if constexpr (Driver::kCountCopies > 1) {
    return torch::stable::new_zeros(like, Sizes(sizes, 2), ScalarType::Long);
  } else {  // not through the dispatcher, as `empty_strided` says
    const Tensor counts = empty_flat(like, {sizes[1]}, ScalarType::Long);
    std::fill_n(data<int64_t>(counts), sizes[1], int64_t(0));
    return counts;
  }
}
inline Counts counts_in(const Tensor& counts, int64_t steps, int64_t channels, int64_t channel_stride) {
  int64_t* by_step = data<int64_t>(counts);
  const bool copies = counts.dim() == 2;
  return {by_step,
          by_step + steps,
          channels,
          channel_stride,
          copies ? counts.size(0) : 1,
          copies ? counts.size(1) : 0};
}
inline Tensor sum_of_copies(const Tensor& counts) {
  const int64_t copies = 0;
  if (counts.dim() == 1) return counts;
  return torch::stable::sum(counts, Sizes(&copies, 1), false);
}

// With `counted` a fourth result, the counts.
template <class Cell, class Driver>
std::tuple<Tensor, Tensor, Tensor, Tensor> neuron_forward_counting(
    bool counted, const Tensor& x, const std::optional<Tensor>& v0, const std::optional<Tensor>& learned,
    const std::vector<double>& numbers, const std::vector<int64_t>& rules, const std::string& keep,
    bool final_state, int64_t steps) {
  Geometry geometry(x, learned);
  STD_TORCH_CHECK(steps == 0 || x.size(0) == 1 || x.size(0) == steps,
                  "x must have one time step, or `steps`");
  if (steps > 0) geometry.shape.steps = steps;
  const Shape& shape = geometry.shape;
  const ScalarType state = state_type(x);
  STD_TORCH_CHECK(geometry.is_state(v0, state),
                  "v0 must lie in memory like one step of x, in the state's type");
  const Choices choices = choices_of<Cell>(rules, numbers, state);
  const Kept keeps(keep, shape.steps, shape.neurons, state);
  Tensor out = geometry.steps(x, x.scalar_type(), shape.steps);
  Tensor v = final_state ? geometry.step(x, state) : empty_flat(x, {0}, state);
  Tensor kept = keeps.room(x);
  const int64_t channels = x.dim() > 2 ? x.size(2) : 1, stride = x.dim() > 2 ? x.stride(2) : 1;
  Tensor counts = counted ? empty_counts<Driver>(x, shape.steps, channels) : kept;
  if (shape.neurons == 0) return {out, v, kept, counted ? sum_of_copies(counts) : counts};
  dispatch_type(x.scalar_type(), [&]<class Io, class Real>() {
    ForwardCall<Cell, Io, Real> call{};
    call.shape = shape;
    call.neuron = neuron_of<Cell, Real>(choices, numbers, learned, state);
    call.x = steps_of<const Io>(x);
    call.out = steps_of<Io>(out);
    call.v0 = const_data<Real>(v0);
    call.v = final_state ? data<Real>(v) : nullptr;
    call.checkpoints = keeps.checkpoints ? data<Real>(kept) : nullptr;
    call.bits = keeps.bits ? data<uint8_t>(kept) : nullptr;
    // Of one channel a stride means nothing.
    if (counted) call.counts = counts_in(counts, shape.steps, channels, channels > 1 ? stride : 1);
    Driver::forward(x, call, choices.firing);
  });
  return {out, v, kept, counted ? sum_of_copies(counts) : counts};
}

template <class Cell, class Driver>
std::tuple<Tensor, Tensor, Tensor> neuron_forward(const Tensor& x, const std::optional<Tensor>& v0,
                                                  const std::optional<Tensor>& learned,
                                                  const std::vector<double>& numbers,
                                                  const std::vector<int64_t>& rules, int64_t /*learns*/,
                                                  std::string keep, bool final_state, int64_t steps) {
  const auto [out, v, kept, counts] =
      neuron_forward_counting<Cell, Driver>(false, x, v0, learned, numbers, rules, keep, final_state, steps);
  return {out, v, kept};
}

template <class Cell, class Driver>
std::tuple<Tensor, Tensor, Tensor, Tensor> neuron_counted(const Tensor& x, const std::optional<Tensor>& v0,
                                                          const std::optional<Tensor>& learned,
                                                          const std::vector<double>& numbers,
                                                          const std::vector<int64_t>& rules,
                                                          int64_t /*learns*/, std::string keep,
                                                          bool final_state, int64_t steps) {
  return neuron_forward_counting<Cell, Driver>(true, x, v0, learned, numbers, rules, keep, final_state,
                                               steps);
}

template <class Cell, class Driver>
std::tuple<Tensor, Tensor, Tensor> neuron_backward(
    const Tensor& grad_out, const std::optional<Tensor>& grad_v, const std::optional<Tensor>& x,
    const std::optional<Tensor>& v0, const std::optional<Tensor>& learned, const Tensor& kept,
    const std::vector<double>& numbers, const std::vector<int64_t>& rules, int64_t learns, std::string keep,
    bool wants_v0, bool shared) {
  const Geometry geometry(grad_out, learned);
  const Shape& shape = geometry.shape;
  const ScalarType state = state_type(grad_out);
  const Choices choices = choices_of<Cell>(rules, numbers, state);
  const Kept keeps(keep, shape.steps, shape.neurons, state);
  keeps.check(keep, kept);
  const bool readable =
      x && x->scalar_type() == grad_out.scalar_type() && geometry.are_steps(*x, shape.steps);
  STD_TORCH_CHECK(keeps.bits || readable, "x must be given, in the steps, type and inner order of grad_out");
  STD_TORCH_CHECK(geometry.is_state(grad_v, state) && geometry.is_state(v0, state),
                  "grad_v and v0 must lie in memory like one step of grad_out, in the state's type");
  STD_TORCH_CHECK(!learns || learned, "learns: constants are learned, but `learned` is not given");
  // By the driver, else behind it; no neurons have no sum.
  const bool summed = shared && (Driver::kSumsSteps || shape.neurons == 0);
  Tensor grad_x = geometry.steps(grad_out, grad_out.scalar_type(), summed ? 1 : shape.steps);
  Tensor grad_v0 = wants_v0 ? geometry.step(grad_out, state) : empty_flat(grad_out, {0}, state);
  Tensor grad_learned =
      learns ? torch::stable::new_zeros(*learned, learned->sizes()) : empty_flat(grad_out, {0}, state);
  if (shape.neurons == 0) return {grad_x, grad_v0, grad_learned};
  Tensor sums = empty_flat(grad_out, {learns ? Cell::kConstants : 0, shape.neurons}, state);
  dispatch_type(grad_out.scalar_type(), [&]<class Io, class Real>() {
    BackwardCall<Cell, Io, Real> call{};
    call.shape = shape;
    call.neuron = neuron_of<Cell, Real>(choices, numbers, learned, state);
    call.grad_out = steps_of<const Io>(grad_out);
    call.grad_v = const_data<Real>(grad_v);
    if (!keeps.bits) call.x = steps_of<const Io>(x);
    call.v0 = const_data<Real>(v0);
    call.checkpoints = keeps.checkpoints ? const_data<Real>(kept) : nullptr;
    call.bits = keeps.bits ? const_data<uint8_t>(kept) : nullptr;
    call.grad_x = steps_of<Io>(grad_x);
    call.grad_v0 = wants_v0 ? data<Real>(grad_v0) : nullptr;
    call.sums = learns ? data<Real>(sums) : nullptr;
    Driver::backward(grad_out, call, choices.firing);
    if (learns) Driver::reduce(grad_out, call.shape, Cell::kConstants, call.sums, data<Real>(grad_learned));
  });
  if (!shared || summed) return {grad_x, grad_v0, grad_learned};
  Tensor sum = geometry.steps(grad_out, grad_out.scalar_type(), 1);
  sum_over_steps(grad_x, sum);
  return {sum, grad_v0, grad_learned};
}

}  // namespace attsnn
