// Any surrogate of the list, chosen at run time: one kernel where one for each would be long to compile and
// the choice, the same for every thread, costs a kernel that waits for memory nothing.
#pragma once
#include "core/fire.h"
#include "core/surrogate.h"

namespace attsnn {

template <class All>
struct AnyOf;

template <class... All>
struct AnyOf<List<All...>> : private All... {
  int kind;  // the index into the list
  AnyOf(int64_t surrogate, double scale, double height) : All(scale, height)..., kind(int(surrogate)) {}

  template <class Real>
  ATTSNN_INLINE Real slope(Real z) const {
    Real result = 0;
    int i = 0;
    ((i++ == kind && (result = All::slope(z), true)) || ...);
    return result;
  }
  template <class Real>
  ATTSNN_INLINE Real value(Real z) const {
    Real result = 0;
    int i = 0;
    ((i++ == kind && (result = All::value(z), true)) || ...);
    return result;
  }
};

template <class Real>
using AnySurrogate = AnyOf<Surrogates<Real>>;

}  // namespace attsnn
