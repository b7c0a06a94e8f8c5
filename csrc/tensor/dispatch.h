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

// How the neurons fire: the surrogate, an index into Surrogates, with its scale; > or >=; the step or the
// soft spike.
struct Firing {
  int64_t surrogate;
  double scale;
  bool strict, soft;
};

// What follows raises nothing, for it may run in threads that could not say what: tensor/neuron_op.h checks
// before them that there is such a surrogate, and that soft spikes are float64.

// f(surrogate).
template <class Real, class F>
void dispatch_surrogate(const Firing& firing, const F& f) {
  Surrogates<Real>::at(int(firing.surrogate),
                       [&](auto type) { f(typename decltype(type)::type(firing.scale)); });
}

// f(fire) with the step, or, in float64 alone, with the surrogate's soft spike.
template <class Real, class F>
void dispatch_fire(const Firing& firing, const F& f) {
  if constexpr (sizeof(Real) == sizeof(double))
    if (firing.soft)
      return dispatch_surrogate<Real>(firing, [&](const auto& surrogate) {
        f(SoftFire<Real, std::remove_cvref_t<decltype(surrogate)>>{surrogate});
      });
  f(HardFire<Real>{firing.strict});
}

// f(fire, surrogate): what a backward pass needs.
template <class Real, class F>
void dispatch_firing(const Firing& firing, const F& f) {
  dispatch_surrogate<Real>(firing, [&](const auto& surrogate) {
    using Surrogate = std::remove_cvref_t<decltype(surrogate)>;
    if constexpr (sizeof(Real) == sizeof(double))
      if (firing.soft) return f(SoftFire<Real, Surrogate>{surrogate}, surrogate);
    f(HardFire<Real>{firing.strict}, surrogate);
  });
}

}  // namespace attsnn
