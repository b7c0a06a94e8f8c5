// The CUDA kernels of the neurons, run on the host, against the CPU's: equal bits. `neuron_on_host CASE` runs
// one named case, without a name it lists them.
#include "cuda_on_host.h"  // first: the kernels need its words

#include <cmath>
#include <cstdio>
#include <functional>
#include <map>
#include <string>

#include "buffer.h"
#include "core/neurons.h"
#include "cpu/loop.h"
#include "cpu/memory.h"
#include "cuda/neuron_driver.cuh"
#include "cuda/reduce.cuh"

namespace {

using namespace attsnn;

struct Case {
  int64_t steps, neurons;
  int64_t channels = 1, channel_stride = 1;
  bool hard = true, detach = false, strict = false, start_at_reset = false, centred = true, soft = false;
  bool given_state = false, learned = false, bits = false, repeated = false, misaligned = false;
  Emit emit = Emit::kSpike;
  int surrogate = 0;
  bool own_amount = false;  // of the soft reset
  int levels = 0;
  bool normalized = false, counted = false;
};

template <class T>
void same(const char* what, const Buffer<T>& ours, const Buffer<T>& theirs) {
  for (int64_t i = 0; i < ours.size(); ++i) {
    const double a = double(ours.data()[i]), b = double(theirs.data()[i]);
    if (a == b || (std::isnan(a) && std::isnan(b))) continue;
    std::printf("%s: element %ld of %ld is %.17g, the CPU kernel says %.17g\n", what, long(i),
                long(ours.size()), a, b);
    std::exit(1);
  }
}

// All tensors of one call, of one side: the device's or the CPU's.
template <class Io, class Real>
struct Sides {
  Buffer<Io> out, grad_x;
  Buffer<Real> v, checkpoints, grad_v0, sums;
  Buffer<uint8_t> bits;
  Buffer<int64_t> counts;
  Sides(const Case& c, int64_t n)
      : out(c.steps * n, c.misaligned, Io(NAN)),
        grad_x(c.steps * n, c.misaligned, Io(NAN)),
        v(n, false, Real(NAN)),
        checkpoints(std::max<int64_t>(1, (c.steps - 1) / kCheckpointEvery) * n, false, Real(NAN)),
        grad_v0(n, false, Real(NAN)),
        sums(Lif::kConstants * n, false, Real(NAN)),
        bits(c.steps * bytes_of_bits(n), false, 0xaa),
        counts(4 * (c.steps + c.channels)) {}
};

template <class Io, class Real>
void run(const Case& c) {
  const int64_t n = c.neurons, x_stride = c.repeated ? 0 : n;
  const auto x = normal<Io>(c.repeated ? n : c.steps * n, 1, c.misaligned);
  const auto grad_out = normal<Io>(c.steps * n, 2, c.misaligned);
  const auto v0 = normal<Real>(n, 3, false), grad_v = normal<Real>(n, 4, false);
  auto learned = normal<Real>(Lif::kConstants * c.channels, 5, false, 0.05);
  const Real base[] = {Real(0.7), Real(0.9), Real(0.05), Real(0.4), Real(-0.1)};
  for (int64_t i = 0; i < learned.size(); ++i) learned.data()[i] += base[i / c.channels];

  const Shape shape{c.steps, n, c.channels, c.channel_stride};
  const Neuron<Lif, Real> neuron{{base[0], base[1], base[2], base[3], base[4]},
                                 c.learned ? learned.data() : nullptr,
                                 {Real(c.hard), Real(c.own_amount), Real(!c.detach),
                                  Real(c.levels == 0 && c.centred), c.start_at_reset, c.emit},
                                 Real(0.1)};
  const Firing firing{c.surrogate, 0.8, 1.5, c.strict, c.soft, c.levels, c.normalized};
  const bool checkpoints = !c.bits && c.steps > kCheckpointAbove;
  Sides<Io, Real> device(c, n), cpu(c, n);
  const auto forward_call = [&](Sides<Io, Real>& side) {
    ForwardCall<Lif, Io, Real> call;
    call.shape = shape;
    call.neuron = neuron;
    call.x = {x.data(), x_stride};
    call.out = {side.out.data(), n};
    call.v0 = c.given_state ? v0.data() : nullptr;
    call.v = side.v.data();
    call.checkpoints = checkpoints ? side.checkpoints.data() : nullptr;
    call.bits = c.bits ? side.bits.data() : nullptr;
    if (c.counted) {
      int64_t* by_step = side.counts.data();
      call.counts = {by_step, by_step + c.steps, c.channels, c.channel_stride, 4, c.steps + c.channels};
    }
    return call;
  };
  const auto backward_call = [&](Sides<Io, Real>& side) {
    BackwardCall<Lif, Io, Real> call;
    call.shape = shape;
    call.neuron = neuron;
    call.grad_out = {grad_out.data(), n};
    call.grad_v = grad_v.data();
    if (!c.bits) call.x = {x.data(), x_stride};
    call.v0 = c.given_state ? v0.data() : nullptr;
    call.checkpoints = checkpoints ? side.checkpoints.data() : nullptr;
    call.bits = c.bits ? side.bits.data() : nullptr;
    call.grad_x = {side.grad_x.data(), n};
    call.grad_v0 = side.grad_v0.data();
    call.sums = c.learned ? side.sums.data() : nullptr;
    return call;
  };
  with_rows(forward_call(cpu), [&](const auto& rows) { forward_tiles(rows, firing, 0, n); });
  with_rows(backward_call(cpu), [&](const auto& rows) { backward_tiles(rows, firing, 0, n); });
  launch_forward(forward_call(device), firing, Stream{});
  launch_backward(backward_call(device), firing, Stream{});

  const int64_t counted = c.steps + c.channels;
  for (int64_t i = 0; i < counted; ++i)  // of all copies
    for (Sides<Io, Real>* side : {&device, &cpu})
      for (int copy = 1; copy < 4; ++copy) {
        side->counts[i] += side->counts[copy * counted + i];
        side->counts[copy * counted + i] = 0;
      }
  same("counts", device.counts, cpu.counts);
  if (c.counted && cpu.counts[0] == 0) std::printf("nothing was counted\n"), std::exit(1);

  same("out", device.out, cpu.out);
  same("v", device.v, cpu.v);
  if (checkpoints) same("checkpoints", device.checkpoints, cpu.checkpoints);
  if (c.bits) same("bits", device.bits, cpu.bits);
  same("grad_x", device.grad_x, cpu.grad_x);
  same("grad_v0", device.grad_v0, cpu.grad_v0);
  if (c.learned) same("sums", device.sums, cpu.sums);
}

// Every way a chunk of steps is held on chip, over three blocks; sizes around a warp and a vector.
template <class Io, class Real>
void of_type() {
  const int64_t forward = 2 * kWideVector<Io> * kForwardThreads + 5;
  const int64_t registers = 2 * kWideVector<Io> * kRegisterThreads + 5;
  const int64_t shared = 2 * kBackwardVector<Io, 0> * kSharedThreads + 5;
  for (const auto& [steps, n] : std::vector<std::pair<int64_t, int64_t>>{
           {1, registers}, {3, 1}, {3, forward}, {7, registers}, {16, registers}, {21, 31}, {70, shared}})
    run<Io, Real>({.steps = steps, .neurons = n});
  run<Io, Real>({.steps = 5, .neurons = 257, .detach = true, .strict = true, .bits = true});
  run<Io, Real>({.steps = 5, .neurons = 257, .given_state = true, .misaligned = true});
}

template <class Io, class Real>
void launch_every_kernel(const Firing& firing, int64_t steps, const Real* learned) {
  const Shape shape{steps, 1, 1, 1};
  ForwardCall<Lif, Io, Real> forward{};
  forward.shape = shape;
  forward.neuron.learned = learned;
  launch_forward(forward, firing, Stream{});
  int64_t count = 0;
  forward.counts.by_step = &count;
  launch_forward(forward, firing, Stream{});
  BackwardCall<Lif, Io, Real> backward{};
  backward.shape = shape;
  backward.neuron.learned = learned;
  launch_backward(backward, firing, Stream{});
  const uint8_t bits = 0;
  backward.bits = &bits;
  launch_backward(backward, firing, Stream{});
}

void launch_all() {
#ifndef ATTSNN_FLOAT_ONLY
  const auto of_type = []<class Io, class Real>(const Firing& firing) {
    const Real learned = 0;
    for (int64_t steps = 1; steps <= kCheckpointAbove + 1; ++steps)
      for (const Real* constants : {&learned, static_cast<const Real*>(nullptr)})
        launch_every_kernel<Io, Real>(firing, steps, constants);
  };
  for (int64_t surrogate = 0; surrogate < Surrogates<float>::kSize; ++surrogate)
    for (const bool soft : {false, true})
      for (const ScalarType type :
           {ScalarType::Double, ScalarType::Float, ScalarType::BFloat16, ScalarType::Half})
        dispatch_type(type, [&]<class Io, class Real>() {
          of_type.template operator()<Io, Real>({surrogate, 1, 1, false, soft, 0, false});
          of_type.template operator()<Io, Real>({surrogate, 1, 1, false, soft, 4, false});
        });
  launch_reduce<float>(nullptr, Shape{1, 1, 1, 1}, 1, nullptr, nullptr, Stream{});
  launch_reduce<double>(nullptr, Shape{1, 1, 1, 1}, 1, nullptr, nullptr, Stream{});
#endif
}

const std::map<std::string, std::function<void()>> kCases = {
    {"float", of_type<float, float>},
    {"double", of_type<Double, Double>},
    {"bfloat16", of_type<BFloat16, float>},
    {"half", of_type<Half, float>},
    {"emits",
     [] {
       for (const Emit emit : {Emit::kMembrane, Emit::kReluMembrane, Emit::kReluOvershoot})
         for (const bool hard : {true, false})
           run<float, float>({.steps = 6, .neurons = 257, .hard = hard, .emit = emit});
     }},
    {"surrogates",
     [] {
       for (int s = 0; s < Surrogates<float>::kSize; ++s)
         for (const int64_t steps : {6, 20})
           run<float, float>(
               {.steps = steps, .neurons = 257, .centred = s % 2 == 0, .given_state = true, .surrogate = s});
     }},
    {"soft spikes",
     [] {
       for (int s = 0; s < Surrogates<double>::kSize; ++s)
         run<Double, Double>(
             {.steps = 6, .neurons = 65, .hard = s % 2 == 0, .soft = true, .learned = true, .surrogate = s});
     }},
    {"own amount",
     [] {
       const Case c{.steps = 6, .neurons = 257, .hard = false, .own_amount = true};
       for (const bool learned : {false, true}) {
         Case own = c;
         own.learned = learned;
         run<float, float>(own);
         own.detach = own.bits = true;
         run<float, float>(own);
       }
     }},
    {"counts",
     [] {
       for (const int64_t n : {5 * 43, 5 * 431})
         for (const int64_t stride : {1, 43}) {
           Case c{.steps = 6, .neurons = n, .channels = 5, .channel_stride = stride, .counted = true};
           run<float, float>(c);
           c.detach = c.bits = true;
           run<Half, float>(c);
           c.bits = false, c.learned = true, c.emit = Emit::kMembrane;
           run<BFloat16, float>(c);
           c.emit = Emit::kSpike, c.hard = false, c.levels = 4, c.normalized = true;
           run<float, float>(c);
           run<Double, Double>(c);
         }
     }},
    {"levels",
     [] {
       for (const int64_t steps : {1, 4, 6, 13, 70})
         for (const bool normalized : {false, true}) {
           Case c{.steps = steps, .neurons = 259, .hard = false, .detach = !normalized, .levels = 4};
           c.normalized = normalized;
           c.given_state = steps == 6;
           run<float, float>(c);
           c.neurons = 65;
           c.own_amount = c.learned = true;
           run<Half, float>(c);
           run<BFloat16, float>(c);
           c.soft = normalized;
           run<Double, Double>(c);
         }
     }},
    {"bits",
     [] {
       for (const int64_t n : {1, 31, 33, 2053}) {
         run<float, float>({.steps = 6, .neurons = n, .detach = true, .bits = true, .misaligned = true});
         run<Half, float>({.steps = 1, .neurons = n, .hard = false, .given_state = true, .bits = true});
       }
       run<Double, Double>({.steps = 70, .neurons = 33, .detach = true, .bits = true});
       run<float, float>({.steps = 6,
                          .neurons = 6 * 43,
                          .channels = 6,
                          .channel_stride = 43,
                          .detach = true,
                          .learned = true,
                          .bits = true});
     }},
    {"learned",
     [] {
       run<float, float>({.steps = 6, .neurons = 400, .learned = true});
       run<float, float>({.steps = 70,
                          .neurons = 6 * 43,
                          .channels = 6,
                          .channel_stride = 43,
                          .start_at_reset = true,
                          .learned = true});
       run<Double, Double>({.steps = 20, .neurons = 5 * 31, .channels = 5, .hard = false, .learned = true});
       run<BFloat16, float>({.steps = 16,
                             .neurons = 5 * 31,
                             .channels = 5,
                             .channel_stride = 31,
                             .given_state = true,
                             .learned = true});
     }},
    {"repeated",
     [] {
       for (const int64_t steps : {4, 70})
         run<float, float>({.steps = steps, .neurons = 257, .repeated = true});
     }},
};

}  // namespace

int main(int count, char** arguments) {
  if (on_host::lists_launches(count, arguments, launch_all)) return 0;
  if (count < 2) {
    for (const auto& [name, body] : kCases) std::printf("%s\n", name.c_str());
    return 0;
  }
  const auto found = kCases.find(arguments[1]);
  if (found == kCases.end()) return std::printf("no case %s\n", arguments[1]), 2;
  found->second();
  std::printf("equal\n");
}
