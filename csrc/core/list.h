// A list of types, walked at compile time.
#pragma once
#include <type_traits>

namespace attsnn {

template <class... Ts>
struct List {
  static constexpr int kSize = sizeof...(Ts);

  // f(std::type_identity<T>{}) for every T, in order.
  template <class F>
  static void for_each(const F& f) {
    (f(std::type_identity<Ts>{}), ...);
  }

  // The same for the one T at `index`; false where there is none.
  template <class F>
  static bool at(int index, const F& f) {
    int i = 0;
    return ((i++ == index ? (f(std::type_identity<Ts>{}), true) : false) || ...);
  }
};

}  // namespace attsnn
