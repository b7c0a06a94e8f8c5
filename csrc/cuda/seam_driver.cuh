// Chooses the kernels of a seam and launches them. Torch-free but for the dispatch; `launch` and `Stream`
// come from cuda/launch.cuh, or from the shim of the host-run tests, which so cover the choice as well.
#pragma once
#include "cuda/any_surrogate.cuh"
#include "cuda/grid.cuh"
#include "cuda/neuron_driver.cuh"
#include "cuda/seam_grad_kernel.cuh"
#include "cuda/seam_kernel.cuh"
#include "cuda/seam_launch.h"
#include "cuda/seam_statistics_kernel.cuh"
#include "cuda/seam_sums.cuh"

namespace attsnn {

// f(std::bool_constant<kLast>, std::integral_constant<int, kV>): the layout, and the widest vector that all
// accesses allow: `along` elements lie side by side.
template <class Io, class F, class... Rows>
void dispatch_layout(const Maps& maps, int64_t along, const F& f, const Rows&... rows) {
  constexpr int kV = kWideVector<Io>;
  const bool wide =
      (maps.channels_last ? maps.channels : along) % kV == 0 && (rows_aligned(rows, kAccess<Io, kV>) && ...);
  const auto of_width = [&](auto last) {
    wide ? f(last, std::integral_constant<int, kV>{}) : f(last, std::integral_constant<int, 1>{});
  };
  maps.channels_last ? of_width(std::true_type{}) : of_width(std::false_type{});
}

template <class Fold, class... Parameters, class... Rest>
void launch_fold(void (*kernel)(Fold, Maps, int64_t, Parameters...), int64_t blocks, const Fold& fold,
                 const Maps& maps, Stream stream, const Rest&... rest) {
  in_launches(blocks, limits().x, [&](int64_t first, int64_t count) {
    launch(stream, kernel, count, kFoldThreads, 0, fold, maps, first, rest...);
  });
}

template <bool kLast, class Fold>
void launch_plane_fold(const Fold& fold, const Maps& maps, Stream stream) {
  if constexpr (kLast) {
    const int64_t rows = maps.steps * maps.samples;
    launch_fold(fold_channels_kernel<Fold>, rows * blocks_for(maps.channels, kFoldChannels), fold, maps,
                stream);
  } else {
    const int lanes = fold.items() >= 2 * kFoldThreads ? kFoldThreads : 32;
    launch_fold(fold_planes_kernel<Fold>, blocks_for(maps.planes(), kFoldThreads / lanes), fold, maps, stream,
                lanes);
  }
}

template <bool kLast, class Fold>
void launch_pixel_fold(const Fold& fold, const Maps& maps, Stream stream) {
  const int64_t pixels = maps.samples * maps.pixels();
  if constexpr (kLast)
    launch_fold(fold_rows_kernel<Fold>, blocks_for(pixels, kFoldWarps), fold, maps, stream);
  else
    launch_fold(fold_steps_kernel<Fold>, blocks_for(pixels, 32 * Fold::kStates), fold, maps, stream);
}

template <class Io, class Real>
void launch_statistics(const StatisticsCall<Io, Real>& call, Stream stream) {
  const int64_t along = call.pool == 1 ? call.maps.pixels() : call.maps.width;
  dispatch_layout<Io>(
      call.maps, along,
      [&](auto last, auto width) {
        constexpr bool kLast = decltype(last)::value;
        constexpr int kV = decltype(width)::value;
        const auto of_pool = [&](auto fold) { launch_plane_fold<kLast>(fold, call.maps, stream); };
        if (call.pool == 1) return of_pool(StatisticsFold<Io, Real, 1, kV, kLast>{call});
        if constexpr (kV > 1)
          if (call.pool == 2) return of_pool(StatisticsFold<Io, Real, 2, kV, kLast>{call});
        of_pool(StatisticsFold<Io, Real, 0, 1, kLast>{call});
      },
      call.z, call.pooled);
}

template <class Io, class Real>
void launch_squeeze(const SqueezeCall<Io, Real>& call, Stream stream) {
  const auto with_layout = [&](auto last, auto width) {
    constexpr bool kLast = decltype(last)::value;
    launch_pixel_fold<kLast>(SqueezeFold<Io, Real, decltype(width)::value, kLast>{call}, call.maps, stream);
  };
  dispatch_layout<Io>(call.maps, call.maps.pixels(), with_layout, call.p);
}

template <class Io, class Real>
void launch_project(const ProjectCall<Io, Real>& call, Stream stream) {
  const auto with_layout = [&](auto last, auto width) {
    constexpr bool kLast = decltype(last)::value;
    launch_plane_fold<kLast>(ProjectFold<Io, Real, decltype(width)::value, kLast>{call}, call.maps, stream);
  };
  dispatch_layout<Io>(call.maps, call.maps.pixels(), with_layout, call.p);
}

// As many threads as keep a large device busy, and beyond that longer walks.
inline constexpr int kLongestWalk = 8;
inline constexpr int64_t kBusyThreads = int64_t(1) << 18;

template <int kPool, int kV, bool kLast, class Io, class Real>
void launch_grad_items(const GradCall<Io, Real>& call, int64_t busy_threads, Stream stream) {
  const GradItems<Io, Real, kPool, kV, kLast> of(call);
  const int64_t threads = call.maps.samples * of.vectors(call.maps) * of.walked(call.maps);
  if (threads * call.maps.steps == 0) return;
  const int64_t times = threads * call.maps.steps / busy_threads;
  const int walk = int(times < 1 ? 1 : times < kLongestWalk ? times : kLongestWalk);
  const int64_t of_step = call.maps.samples * of.vectors(call.maps) * of.chunks(call.maps, walk);
  in_launches(call.maps.steps, limits().y, [&](int64_t first, int64_t steps) {
    launch(stream, grad_kernel<Io, Real, kPool, kV, kLast>, Grid(blocks_for(of_step, kGradThreads), steps),
           kGradThreads, 0, call, walk, uint32_t(first));
  });
}

template <class Io, class Real>
void launch_grad_walking(const GradCall<Io, Real>& call, int64_t busy_threads, Stream stream) {
  const int64_t along = call.pool == 1 ? call.maps.pixels() : call.maps.width;
  dispatch_layout<Io>(
      call.maps, along,
      [&](auto last, auto width) {
        constexpr bool kLast = decltype(last)::value;
        constexpr int kV = decltype(width)::value;
        if (call.pool == 1) return launch_grad_items<1, kV, kLast>(call, busy_threads, stream);
        if constexpr (kV > 1)
          if (call.pool == 2) return launch_grad_items<2, kV, kLast>(call, busy_threads, stream);
        launch_grad_items<0, 1, kLast>(call, busy_threads, stream);
      },
      call.up, call.p, call.z, call.grad_z);
}

template <class Io, class Real>
void launch_grad(const GradCall<Io, Real>& call, Stream stream) {
  launch_grad_walking(call, kBusyThreads, stream);
}

// f(fire, surrogate) with any surrogate in one type.
template <class Real, class F>
void dispatch_any(const Firing& firing, const F& f) {
  const auto both = [&](const auto& surrogate) { with_fire<Real>(firing, surrogate, f); };
  if (!dispatch_levels<Real>(firing, both))
    both(AnySurrogate<Real>(firing.surrogate, firing.scale, firing.height));
}

template <class Cell, class Io, class Real>
void launch_seam_forward(const SeamForward<Cell, Io, Real>& call, const Firing& firing, Stream stream) {
  dispatch_any<Real>(firing, [&](const auto& fire, const auto&) {
    launch_forward_with<Cell, Io, Real>(call, fire, firing, stream);
  });
}

// The same call, its gradient going elsewhere.
template <class Cell, class Real, class Source, class Gradient, class Sink, class Other>
Backward<Cell, Real, Source, Gradient, Other> with_gradient_to(
    const Backward<Cell, Real, Source, Gradient, Sink>& call, const Other& sink) {
  return {call.shape,       call.neuron, call.grad_out, call.grad_v,  call.x,   call.v0,
          call.checkpoints, call.bits,   sink,          call.grad_v0, call.sums};
}

// Whether every row of the tiles can be reached by accesses of that many bytes.
template <class Io, class Real>
bool rows_aligned(const SummingSink<Io, Real>& sink, size_t bytes) {
  const int64_t row = sink.maps.channels_last ? sink.maps.channels : sink.maps.pixels();
  return row * sizeof(Io) % bytes == 0 && rows_aligned(sink.up, bytes) &&
         rows_aligned(sink.grad_membrane, bytes) && rows_aligned(sink.p, bytes);
}

template <int kVector, class Cell, class Real, class Source, class Io, class F>
void with_sink(const Backward<Cell, Real, Source, Steps<const Io>, SummingSink<Io, Real>>& call, int threads,
               Stream stream, const F& f) {
  SummingSink<Io, Real> sink = call.grad_x;
  const Maps& maps = sink.maps;
  const SumTiles<Io, kVector> tiles(maps, threads);
  const int64_t planes = 2 * maps.planes(), pixels = maps.samples * maps.pixels();
  sink.by_plane = (*sink.scratch)(tiles.pixel_tiles * planes);
  sink.by_pixel = sink.grad_spatial == nullptr ? nullptr : (*sink.scratch)(tiles.channel_tiles * pixels);
  in_launches(tiles.blocks(maps), limits().x, [&](int64_t first, int64_t blocks) {
    sink.first_block = first;
    f(with_gradient_to(call, sink), blocks);
  });
  const auto add = [&](const Real* of_tile, int64_t count, int64_t size, auto* to) {
    launch(stream, add_tiles_kernel<Real, std::remove_pointer_t<decltype(to)>>,
           blocks_for(size, kFoldThreads), kFoldThreads, 0, of_tile, count, size, to);
  };
  add(sink.by_plane, tiles.pixel_tiles, planes, sink.sums);
  if (sink.by_pixel != nullptr) add(sink.by_pixel, tiles.channel_tiles, pixels, sink.grad_spatial);
}

template <class Cell, class Io, class Real>
void launch_seam_backward(const SeamBackward<Cell, Io, Real>& given, const Firing& firing,
                          const Scratch<Real>& scratch, Stream stream) {
  const SummingSink<Io, Real> sink{given.grad_x, nullptr, nullptr, &scratch, 0};
  const auto call = with_gradient_to(given, sink);
  if (call.bits != nullptr) return launch_backward_from_bits(call, firing, stream);
  dispatch_any<Real>(firing, [&](const auto& fire, const auto& surrogate) {
    launch_backward_with(call, fire, surrogate, stream);
  });
}

// Names the launchers of one type, as `instantiate` does for the neurons.
template <class Io, class Real>
void instantiate_seam() {
  const auto name = [](auto launcher) { [[maybe_unused]] static auto volatile named = launcher; };
  name(&launch_statistics<Io, Real>);
  name(&launch_squeeze<Io, Real>);
  name(&launch_project<Io, Real>);
  name(&launch_grad<Io, Real>);
  Neurons::for_each([&](auto type) {
    using Cell = typename decltype(type)::type;
    name(&launch_seam_forward<Cell, Io, Real>);
    name(&launch_seam_backward<Cell, Io, Real>);
  });
}

}  // namespace attsnn
