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
    case ScalarType::Double: return f.template operator()<double, double>();
    case ScalarType::Float: return f.template operator()<float, float>();
    case ScalarType::BFloat16: return f.template operator()<torch::headeronly::BFloat16, float>();
    case ScalarType::Half: return f.template operator()<torch::headeronly::Half, float>();
    default: STD_TORCH_CHECK(false, "x must be float64, float32, bfloat16 or float16");
  }
}

// f(surrogate) with the surrogate of that index.
template <class Real, class F>
void dispatch_surrogate(int64_t kind, double scale, const F& f) {
  const bool known = Surrogates<Real>::at(int(kind), [&](auto type) { f(typename decltype(type)::type(scale)); });
  STD_TORCH_CHECK(known, "rules: there is no surrogate ", kind);
}

// f(fire) with the step, or, in float64 alone, with the surrogate's soft spike.
template <class Real, class Surrogate, class F>
void dispatch_fire(bool soft, bool strict, const Surrogate& surrogate, const F& f) {
  if constexpr (sizeof(Real) == sizeof(double))
    if (soft) return f(SoftFire<Real, Surrogate>{surrogate});
  STD_TORCH_CHECK(!soft, "soft spikes are computed in float64 only");
  f(HardFire<Real>{Real(strict ? 0 : 1)});
}

}  // namespace attsnn
