// Chooses the kernel of a call and launches it. Torch-free but for the dispatch; `launch` and `Stream` come
// from cuda/launch.cuh, or from the shim of the host-run tests, which so cover the choice as well.
#pragma once
#include "core/neurons.h"
#include "cuda/grid.cuh"
#include "cuda/neuron_kernel.cuh"
#include "cuda/neuron_launch.h"
#include "tensor/dispatch.h"

namespace attsnn {

// Whether every row of neurons can be reached by accesses of that many bytes.
template <class T>
bool rows_aligned(const Steps<T>& steps, size_t bytes) {
  if (steps.data == nullptr) return true;
  const bool strides = steps.stride * sizeof(T) % bytes == 0;
  return strides && reinterpret_cast<uintptr_t>(steps.data) % bytes == 0;
}

template <class Io, int kVector>
inline constexpr size_t kAccess = sizeof(Io) * kVector < 16 ? sizeof(Io) * kVector : 16;

template <class Cell, class Io, class Real, class Source, class Fire>
void launch_forward_with(const Forward<Cell, Real, Source, Steps<Io>>& call, const Fire& fire,
                         const Firing& firing, Stream stream) {
  constexpr int kVector = kWideVector<Io>;
  const bool aligned =
      rows_aligned(call.x, kAccess<Io, kVector>) && rows_aligned(call.out, kAccess<Io, kVector>);
  const auto go = [&]<bool kLearned, bool kCount>() {
    constexpr int kThreads = kLearned && kCount ? kRegisterThreads : kForwardThreads;  // else it would spill
    launch(stream, neuron_forward_kernel<Cell, Io, Real, Source, Fire, kVector, kLearned, kCount>,
           blocks_for(call.shape.neurons, kVector * kThreads), kThreads, 0, call, fire,
           Rectangular<Real>(firing.scale, firing.height), aligned);
  };
  const bool counted = call.counts.wanted();
  if (call.neuron.learned)
    counted ? go.template operator()<true, true>() : go.template operator()<true, false>();
  else
    counted ? go.template operator()<false, true>() : go.template operator()<false, false>();
}

template <class Cell, class Io, class Real>
void launch_forward(const ForwardCall<Cell, Io, Real>& call, const Firing& firing, Stream stream) {
  dispatch_fire<Real>(
      firing, [&](const auto& fire) { launch_forward_with<Cell, Io, Real>(call, fire, firing, stream); });
}

// f(call, blocks) for every launch: what a sink needs of them. Those that sum over a block have their own.
template <int kVector, class Cell, class Real, class Source, class Io, class F>
void with_sink(const Backward<Cell, Real, Source, Steps<const Io>, Steps<Io>>& call, int threads, Stream,
               const F& f) {
  f(call, blocks_for(call.shape.neurons, kVector * threads));
}

template <class Cell, class Io, class Real, class Source, class Sink>
void launch_backward_from_bits(const Backward<Cell, Real, Source, Steps<const Io>, Sink>& call,
                               const Firing& firing, Stream stream) {
  constexpr int kVector = kBackwardWide<Io, Source>;
  const bool aligned =
      rows_aligned(call.grad_out, kAccess<Io, kVector>) && rows_aligned(call.grad_x, kAccess<Io, kVector>);
  const auto kernel = call.neuron.learned
                          ? neuron_backward_from_bits_kernel<Cell, Io, Real, Source, Sink, kVector, true>
                          : neuron_backward_from_bits_kernel<Cell, Io, Real, Source, Sink, kVector, false>;
  with_sink<kVector>(call, kForwardThreads, stream, [&](const auto& whole, int64_t blocks) {
    launch(stream, kernel, blocks, kForwardThreads, 0, whole, Rectangular<Real>(firing.scale, firing.height),
           aligned);
  });
}

// kSteps > 0: that many steps in registers; 0: in shared memory.
template <int kSteps, bool kLearned, class Cell, class Io, class Real, class Source, class Sink, class Fire,
          class Surrogate>
void launch_backward_from_input(const Backward<Cell, Real, Source, Steps<const Io>, Sink>& call,
                                const Fire& fire, const Surrogate& surrogate, Stream stream) {
  constexpr int kVector = kBackwardVector<Io, kSteps, Source>;
  constexpr int kThreads = kSteps > 0 ? kRegisterThreads : kSharedThreads;
  constexpr size_t kBytes = kAccess<Io, kVector>;
  const bool aligned = rows_aligned(call.x, kBytes) && rows_aligned(call.grad_out, kBytes) &&
                       rows_aligned(call.grad_x, kBytes);
  const size_t shared = kSteps > 0 ? 0 : chunk_of(call.shape.steps) * kVector * kThreads * sizeof(Real);
  with_sink<kVector>(call, kThreads, stream, [&](const auto& whole, int64_t blocks) {
    launch(stream,
           neuron_backward_kernel<Cell, Io, Real, Source, Sink, Fire, Surrogate, kSteps, kVector, kLearned>,
           blocks, kThreads, shared, whole, fire, surrogate, aligned);
  });
}

template <class Cell, class Io, class Real, class Source, class Sink, class Fire, class Surrogate>
void launch_backward_with(const Backward<Cell, Real, Source, Steps<const Io>, Sink>& call, const Fire& fire,
                          const Surrogate& surrogate, Stream stream) {
  const int64_t steps = call.shape.steps;
  if (call.neuron.learned) return launch_backward_from_input<0, true>(call, fire, surrogate, stream);
  if constexpr (sizeof(Real) == sizeof(float)) {
    if (steps == 1) return launch_backward_from_input<1, false>(call, fire, surrogate, stream);
    if (steps <= 4) return launch_backward_from_input<4, false>(call, fire, surrogate, stream);
    if (steps <= 8) return launch_backward_from_input<8, false>(call, fire, surrogate, stream);
    if constexpr (kStepsInRegisters<Source> > 8)
      if (steps <= kStepsInRegisters<Source>)
        return launch_backward_from_input<kStepsInRegisters<Source>, false>(call, fire, surrogate, stream);
  }
  launch_backward_from_input<0, false>(call, fire, surrogate, stream);
}

template <class Cell, class Io, class Real>
void launch_backward(const BackwardCall<Cell, Io, Real>& call, const Firing& firing, Stream stream) {
  if (call.bits != nullptr) return launch_backward_from_bits(call, firing, stream);
  dispatch_firing<Real>(firing, [&](const auto& fire, const auto& surrogate) {
    launch_backward_with(call, fire, surrogate, stream);
  });
}

// Names the launchers of one type for every neuron. `template void attsnn::instantiate<float, float>();`
// compiles them in a file of its own, side by side with those of the other types.
template <class Io, class Real>
void instantiate() {
  Neurons::for_each([](auto type) {
    using Cell = typename decltype(type)::type;
    [[maybe_unused]] static void (*volatile forward)(const ForwardCall<Cell, Io, Real>&, const Firing&,
                                                     Stream) = &launch_forward<Cell, Io, Real>;
    [[maybe_unused]] static void (*volatile backward)(const BackwardCall<Cell, Io, Real>&, const Firing&,
                                                      Stream) = &launch_backward<Cell, Io, Real>;
  });
}

}  // namespace attsnn
