// From run-time types and names to the templates: input and state type, surrogate, fire.
#pragma once
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include "core/fire.h"
#include "core/surrogate.h"

namespace attsnn {

using torch::headeronly::ScalarType;

// f.operator()<Io, Real>(): the type of the input, and that of the state.
template <class F>
void dispatch_type(ScalarType type, const F& f) {
  switch (type) {
    case ScalarType::Double:
      return f.template operator()<double, double>();
    case ScalarType::Float:
      return f.template operator()<float, float>();
    case ScalarType::BFloat16:
      return f.template operator()<torch::headeronly::BFloat16, float>();
    case ScalarType::Half:
      return f.template operator()<torch::headeronly::Half, float>();
    default:
      STD_TORCH_CHECK(false, "x must be float64, float32, bfloat16 or float16");
  }
}

// How the neurons fire: the surrogate, an index into Surrogates, with its scale and height; > or >=; the step
// or the soft spike; or, where there are levels, integer spikes, whose slope is their own.
struct Firing {
  int64_t surrogate;
  double scale, height;
  bool strict, soft;
  int64_t levels;
  bool normalized;  // the emitted is divided by the levels
};

// What follows raises nothing, for it may run in threads that could not say what: tensor/neuron_op.h checks
// before them that there is such a surrogate, and that soft spikes are float64.

// f(surrogate).
template <class Real, class F>
void dispatch_surrogate(const Firing& firing, const F& f) {
  Surrogates<Real>::at(int(firing.surrogate),
                       [&](auto type) { f(typename decltype(type)::type(firing.scale, firing.height)); });
}

// f(fire, surrogate) with the surrogate's soft spike, in float64 alone, or with the spike that goes with it.
template <class Real, class Surrogate, class F>
void with_fire(const Firing& firing, const Surrogate& surrogate, const F& f) {
  if constexpr (sizeof(Real) == sizeof(double))
    if (firing.soft) return f(SoftFire<Real, Surrogate>{surrogate}, surrogate);
  if constexpr (std::is_same_v<Surrogate, Levels<Real>>)
    f(LevelFire<Real>{surrogate}, surrogate);
  else
    f(HardFire<Real>{firing.strict}, surrogate);
}

// f(levels), where there are any: whether there are.
template <class Real, class F>
bool dispatch_levels(const Firing& firing, const F& f) {
  if (firing.levels == 0) return false;
  f(Levels<Real>{Real(firing.levels), firing.normalized ? Real(firing.levels) : Real(1)});
  return true;
}

// f(fire): what a forward pass needs. The surrogate is that of the soft spike.
template <class Real, class F>
void dispatch_fire(const Firing& firing, const F& f) {
  const auto fire_of = [&](const auto& surrogate) {
    with_fire<Real>(firing, surrogate, [&](const auto& fire, const auto&) { f(fire); });
  };
  if (dispatch_levels<Real>(firing, fire_of)) return;
  if constexpr (sizeof(Real) == sizeof(double))
    if (firing.soft) return dispatch_surrogate<Real>(firing, fire_of);
  f(HardFire<Real>{firing.strict});
}

// f(fire, surrogate): what a backward pass needs.
template <class Real, class F>
void dispatch_firing(const Firing& firing, const F& f) {
  const auto both = [&](const auto& surrogate) { with_fire<Real>(firing, surrogate, f); };
  if (!dispatch_levels<Real>(firing, both)) dispatch_surrogate<Real>(firing, both);
}

}  // namespace attsnn
