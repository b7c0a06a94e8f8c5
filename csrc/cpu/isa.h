// Runs a function compiled for the widest instruction set of this machine: one build runs anywhere.
// ATTSNN_ISA=baseline|avx2|avx512 chooses a narrower one; the results have the same bits.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <optional>
#include <string_view>

namespace attsnn {

enum class Isa { kBaseline, kAvx2, kAvx512 };

#if defined(__x86_64__) && !defined(ATTSNN_SANITIZED)
#define ATTSNN_ISA_DISPATCH 1
#endif

inline Isa widest_isa() {
#ifdef ATTSNN_ISA_DISPATCH
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx512 && avx2) return Isa::kAvx512;
  if (avx2) return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

inline const char* name(Isa isa) {
  return isa == Isa::kAvx512 ? "avx512" : isa == Isa::kAvx2 ? "avx2" : "baseline";
}

inline std::optional<Isa> isa_named(std::string_view asked) {
  for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512})
    if (asked == name(isa)) return isa;
  return std::nullopt;
}

// The choice is made once a process; a wider set than the machine has is not taken. ops.cpp refuses other
// names.
inline Isa isa() {
  static const Isa chosen = [] {
    const char* asked = std::getenv("ATTSNN_ISA");
    const Isa widest = widest_isa();
    return asked == nullptr ? widest : std::min(widest, isa_named(asked).value_or(widest));
  }();
  return chosen;
}

// The clones inline everything below them (flatten), so that no code of a wider set is shared with another
// clone. GCC leaves lambdas out that it has met in two of them: those of rows are ATTSNN_INLINED.
#ifdef ATTSNN_ISA_DISPATCH
#define ATTSNN_INLINED __attribute__((always_inline))
#else
#define ATTSNN_INLINED
#endif
#ifdef ATTSNN_ISA_DISPATCH
template <auto kFunction, class... Args>
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"), flatten,
               noinline)) void on_avx512(Args... args) {
  kFunction(args...);
}
template <auto kFunction, class... Args>
__attribute__((target("avx2"), flatten, noinline)) void on_avx2(Args... args) {
  kFunction(args...);
}
#endif

template <auto kFunction, class... Args>
inline void with_isa(Args... args) {
#ifdef ATTSNN_ISA_DISPATCH
  if (isa() == Isa::kAvx512) return on_avx512<kFunction>(args...);
  if (isa() == Isa::kAvx2) return on_avx2<kFunction>(args...);
#endif
  kFunction(args...);
}

// The same for loops that may contract a product and a sum into a multiply-add, where there are such: their
// bits differ between instruction sets. Loops::run<kBytes>, kBytes being those of a vector.
#ifdef ATTSNN_ISA_DISPATCH
#ifdef __clang__
#define ATTSNN_CONTRACTED
#else
#define ATTSNN_CONTRACTED optimize("fp-contract=fast"),
#endif
template <class Loops, class... Args>
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"), ATTSNN_CONTRACTED flatten,
               noinline)) void on_avx512_contracted(Args... args) {
  Loops::template run<64>(args...);
}
template <class Loops, class... Args>
__attribute__((target("avx2,fma"), ATTSNN_CONTRACTED flatten, noinline)) void on_avx2_contracted(
    Args... args) {
  Loops::template run<32>(args...);
}
#endif

template <class Loops, class... Args>
inline void with_vectors(Args... args) {
#ifdef ATTSNN_ISA_DISPATCH
  if (isa() == Isa::kAvx512) return on_avx512_contracted<Loops>(args...);
  if (isa() == Isa::kAvx2) return on_avx2_contracted<Loops>(args...);
#endif
  Loops::template run<16>(args...);
}

}  // namespace attsnn
