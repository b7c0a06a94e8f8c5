// A tile through all steps: neurons inside, time outside, so that a row vectorises and a tile's state stays
// in the nearest cache. neuron.cpp gives it memory and threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "core/neurons.h"
#include "cpu/isa.h"
#include "cpu/rows.h"
#include "cpu/tiles.h"

namespace attsnn {

// The rows of kSteps neighbouring steps from t on.
template <int kSteps, class Real>
Rows<const Real, kSteps> read_rows(const Source<Real>& from, int64_t t, int64_t first, int64_t count,
                                   Real (*buffer)[kTile]) {
  Rows<const Real, kSteps> rows;
  for (int k = 0; k < kSteps; ++k) rows.of[k] = from.row(t + k, first, count, &buffer[k][0]);
  return rows;
}

// Where rows of results are computed, and what brings them to their place.
template <int kSteps, class Real>
Rows<Real, kSteps> rows_for(const Sink<Real>& to, int64_t t, int64_t first, Real (*buffer)[kTile]) {
  Rows<Real, kSteps> rows;
  for (int k = 0; k < kSteps; ++k) rows.of[k] = to.place(t + k, first, &buffer[k][0]);
  return rows;
}
template <int kSteps, class Real>
void write_rows(const Rows<Real, kSteps>& rows, const Sink<Real>& to, int64_t t, int64_t first,
                int64_t count) {
  for (int k = 0; k < kSteps; ++k) to.take(t + k, first, count, rows.of[k]);
}

// The two bits of rows, four neurons a byte.
template <int kSteps, class Byte>
Rows<Byte, kSteps> packed_rows(Byte* bits, const Shape& shape, int64_t t, int64_t first) {
  Rows<Byte, kSteps> rows;
  for (int k = 0; k < kSteps; ++k)
    rows.of[k] = bits + (t + k) * bytes_of_bits(shape.neurons) + first / kNeuronsPerByte;
  return rows;
}

// f(fire) with the comparison known to the compiler: a loop does not vectorise around the choice.
template <class Real, class F>
void with_step(const HardFire<Real>& fire, const F& f) {
  fire.strict ? f(StepFire<Real, true>{}) : f(StepFire<Real, false>{});
}
template <class Fire, class F>
void with_step(const Fire& soft, const F& f) {
  f(soft);
}

// Steps that are taken together; float64 and soft spikes, which exist to be checked, are not worth the code.
template <class Fire>
inline constexpr int kGroup = 1;
template <bool kStrict>
inline constexpr int kGroup<StepFire<float, kStrict>> = kRowSteps;
template <>
inline constexpr int kGroup<LevelFire<float>> = kRowSteps;

// Integer spikes are emitted, and nothing else is, and two bits do not hold them.
template <class Fire>
inline constexpr bool kSpikesAlone = false;
template <class Real>
inline constexpr bool kSpikesAlone<LevelFire<Real>> = true;

// f.operator()<kSteps>(t) for steps [begin, end) in groups, and one by one where they fill none; and the same
// from the last to the first.
template <int kSteps, class F>
void forward_in_groups(int64_t begin, int64_t end, const F& f) {
  int64_t t = begin;
  for (; end - t >= kSteps; t += kSteps) f.template operator()<kSteps>(t);
  if constexpr (kSteps > 1)
    for (; t < end; ++t) f.template operator()<1>(t);
}
template <int kSteps, class F>
void back_in_groups(int64_t begin, int64_t end, const F& f) {
  int64_t t = end;
  if constexpr (kSteps > 1)
    while ((t - begin) % kSteps != 0) f.template operator()<1>(--t);
  while (t > begin) f.template operator()<kSteps>(t -= kSteps);
}

// What a tile works in.
template <class Cell, class Real, bool kArrays>
struct Workspace {
  RowTerms<Cell, Real, kArrays> terms;
  alignas(64) Real arrays[kArrays ? Cell::kTerms * kTile : 1];
  alignas(64) Real v[kTile], grad_v[kTile], sums[Cell::kConstants * kTile], counted[kTile];
  alignas(64) Real in[kRowSteps][kTile], out[kRowSteps][kTile], x[kRowSteps][kTile];
  alignas(64) Real slope[kRowSteps][kTile], before[kRowSteps][kTile];
  alignas(64) Real h[kCheckpointAbove][kTile];  // of one chunk of steps

  void load(const Neuron<Cell, Real>& neuron, const Shape& shape, int64_t first, int64_t count) {
    terms = {neuron.terms(0, shape.channels), arrays};
    if constexpr (kArrays)
      for (int64_t j = 0; j < count; ++j) {
        const auto own = neuron.terms(shape.channel(first + j), shape.channels);
        for (int k = 0; k < Cell::kTerms; ++k) arrays[k * kTile + j] = reinterpret_cast<const Real*>(&own)[k];
      }
  }
};

// The state before a tile's first step, into w.v; 0 where the sequence starts there from nothing, else 1
// (`carried`).
template <class Cell, class Real, bool kArrays>
Real start_state(const Neuron<Cell, Real>& neuron, const Real* given, int64_t count,
                 Workspace<Cell, Real, kArrays>& w) {
  if (given != nullptr) {
    std::copy_n(given, count, w.v);
    return 1;
  }
  for (int64_t j = 0; j < count; ++j) w.v[j] = Cell::rest(w.terms[j], neuron.rules);
  return neuron.rules.start_at_reset ? 1 : 0;
}

// What the tiles of a range count, before it is added to what all do.
class Tally {
 public:
  Tally(const Counts& counts, int64_t steps) : counts_(counts) {
    if (counts.wanted()) by_step_.assign(steps, 0), by_channel_.assign(counts.channels, 0);
  }
  int64_t* at(int64_t t) { return by_step_.data() + t; }

  // The neurons from `first` on, of which each counted so much.
  template <class Real>
  void take(int64_t first, int64_t count, const Real* by_neuron) {
    const int64_t stride = counts_.channel_stride;
    for (int64_t j = 0; j < count;) {
      const int64_t place = (first + j) / stride, c = place % counts_.channels;
      if (stride == 1) {
        const int64_t run = std::min(count - j, counts_.channels - c);
        with_isa<add_counts<Real>>(run, by_neuron + j, &by_channel_[c]);
        j += run;
      } else {
        const int64_t run = std::min(count - j, (place + 1) * stride - first - j);
        with_isa<sum_counts<Real>>(run, by_neuron + j, &by_channel_[c]);
        j += run;
      }
    }
  }

  // Other ranges do the same at the same time.
  ~Tally() {
    const auto add = [](const std::vector<int64_t>& from, int64_t* to) {
      for (size_t i = 0; i < from.size(); ++i)
        if (from[i] != 0) std::atomic_ref(to[i]).fetch_add(from[i], std::memory_order_relaxed);
    };
    add(by_step_, counts_.by_step);
    add(by_channel_, counts_.by_channel);
  }

 private:
  Counts counts_;
  std::vector<int64_t> by_step_, by_channel_;
};

inline constexpr int64_t kCountedSteps = 4096;  // after which a neuron's float is emptied: it stays exact

template <class Cell, class Real, bool kArrays, class Fire>
void forward_tile(const ForwardTiles<Cell, Real>& call, const Fire& fire, const Rectangular<Real>& window,
                  int64_t first, int64_t count, Workspace<Cell, Real, kArrays>& w, Tally& tally) {
  const Rules<Real> rules = call.neuron.rules;
  w.load(call.neuron, call.shape, first, count);
  const auto terms = w.terms;
  const Real start = start_state(call.neuron, call.v0 ? call.v0 + first : nullptr, count, w);
  const auto run = [&]<Emit kEmit, bool kBits, bool kCount>() {
    if constexpr (kCount) std::fill_n(w.counted, count, Real(0));
    forward_in_groups<kGroup<Fire>>(0, call.shape.steps, [&]<int kSteps>(int64_t t) {
      if (call.checkpoints != nullptr && t > 0 && t % kCheckpointEvery == 0)
        std::copy_n(w.v, count, call.checkpoints + (t / kCheckpointEvery - 1) * call.shape.neurons + first);
      const auto x = read_rows<kSteps>(*call.x, t, first, count, w.in);
      const auto out = rows_for<kSteps>(*call.out, t, first, w.out);
      Rows<uint8_t, kSteps> packed{};
      if constexpr (kBits) packed = packed_rows<kSteps>(call.bits, call.shape, t, first);
      constexpr bool kWithin = kCount && !kSpikesAlone<Fire>;
      with_isa<forward_rows<Cell, Real, kArrays, kEmit, kBits, kWithin, kSteps, Fire>>(
          count, terms, rules, fire, window, t > 0 ? Real(1) : start, x, &w.v[0], out, packed,
          kCount ? &w.counted[0] : nullptr, kCount ? tally.at(t) : nullptr);
      if constexpr (kCount && kSpikesAlone<Fire>)
        with_isa<count_rows<Real, kSteps>>(count, out, fire.surrogate.portion, &w.counted[0], tally.at(t));
      write_rows(out, *call.out, t, first, count);
      if (kCount && (t + kSteps) % kCountedSteps < kSteps) {
        tally.take(first, count, w.counted);
        std::fill_n(w.counted, count, Real(0));
      }
    });
    if constexpr (kCount) tally.take(first, count, w.counted);
  };
  const auto choose = [&]<bool kCount>() {
    const auto emits = [&]<Emit kEmit>() { run.template operator()<kEmit, false, kCount>(); };
    if constexpr (kSpikesAlone<Fire>)
      return emits.template operator()<Emit::kSpike>();
    else if (call.bits != nullptr)
      return run.template operator()<Emit::kSpike, true, kCount>();
    else if (rules.emit == Emit::kSpike)
      return emits.template operator()<Emit::kSpike>();
    else if (rules.emit == Emit::kMembrane)
      return emits.template operator()<Emit::kMembrane>();
    else if (rules.emit == Emit::kReluMembrane)
      return emits.template operator()<Emit::kReluMembrane>();
    emits.template operator()<Emit::kReluOvershoot>();
  };
  call.counts.wanted() ? choose.template operator()<true>() : choose.template operator()<false>();
  if (call.v != nullptr) std::copy_n(w.v, count, call.v + first);
}

// Steps back from t on: f(rows) computes them, from the gradients of what was emitted to those of x.
template <int kSteps, class Cell, class Real, bool kLearned, class F>
void step_back(const BackwardTiles<Cell, Real>& call, int64_t t, int64_t first, int64_t count,
               Workspace<Cell, Real, kLearned>& w, const F& f) {
  BackRows<Real, kSteps> rows{};
  rows.grad_out = read_rows<kSteps>(*call.grad_out, t, first, count, w.in);
  rows.grad_x = rows_for<kSteps>(*call.grad_x, t, first, w.out);
  if (kLearned && call.bits == nullptr) rows.x = read_rows<kSteps>(*call.x, t, first, count, w.x);
  for (int k = 0; k < kSteps; ++k) rows.before.of[k] = w.before[k];
  rows.grad_v = w.grad_v;
  rows.sums = w.sums;
  f(rows);
  write_rows(rows.grad_x, *call.grad_x, t, first, count);
}

// From two bits a neuron and step.
template <class Cell, class Real, bool kLearned>
void backward_from_bits(const BackwardTiles<Cell, Real>& call, const Rectangular<Real>& window, int64_t first,
                        int64_t count, Workspace<Cell, Real, kLearned>& w) {
  const Real start = call.v0 != nullptr || call.neuron.rules.start_at_reset ? 1 : 0;
  back_in_groups<kGroup<StepFire<Real, true>>>(0, call.shape.steps, [&]<int kSteps>(int64_t t) {
    step_back<kSteps>(call, t, first, count, w, [&](const BackRows<Real, kSteps>& rows) {
      with_isa<back_rows_from_bits<Cell, Real, kLearned, kSteps>>(
          count, w.terms, call.neuron.rules, window, t > 0 ? Real(1) : start,
          packed_rows<kSteps>(call.bits, call.shape, t, first), rows);
    });
  });
}

// From x: a chunk of steps at a time, forward to get h, then back.
template <class Cell, class Real, bool kLearned, class Fire, class Surrogate>
void backward_from_input(const BackwardTiles<Cell, Real>& call, const Fire& fire, const Surrogate& surrogate,
                         int64_t first, int64_t count, Workspace<Cell, Real, kLearned>& w) {
  const Rules<Real> rules = call.neuron.rules;
  const int64_t steps = call.shape.steps, chunk = chunk_of(steps);
  const auto terms = w.terms;
  for (int64_t t0 = (steps - 1) / chunk * chunk; t0 >= 0; t0 -= chunk) {
    const int64_t t1 = std::min(t0 + chunk, steps);
    const Real* given = t0 > 0 ? call.checkpoints + (t0 / chunk - 1) * call.shape.neurons : call.v0;
    if (given != nullptr) given += first;
    const Real start = start_state(call.neuron, given, count, w);
    const auto h_of = [&]<int kSteps>(int64_t t) {
      Rows<Real, kSteps> rows;
      for (int k = 0; k < kSteps; ++k) rows.of[k] = w.h[t - t0 + k];
      return rows;
    };
    forward_in_groups<kGroup<Fire>>(t0, t1, [&]<int kSteps>(int64_t t) {
      with_isa<charge_rows<Cell, Real, kLearned, kSteps, Fire>>(
          count, terms, rules, fire, t > t0 ? Real(1) : start,
          read_rows<kSteps>(*call.x, t, first, count, w.in), &w.v[0], h_of.template operator()<kSteps>(t));
    });
    back_in_groups<kGroup<Fire>>(t0, t1, [&]<int kSteps>(int64_t t) {
      FromMembrane<Real, kSteps, Fire, Surrogate> fired{fire, surrogate, {}, {}};
      for (int k = 0; k < kSteps; ++k) {
        const Real* h = w.h[t - t0 + k];
        fired.h.of[k] = h;
        fired.slope.of[k] = w.slope[k];
        if constexpr (CallsAFunction<Surrogate>)
          with_isa<slope_row<Cell, Real, kLearned, Surrogate>>(count, terms, surrogate, h, &w.slope[k][0]);
        if (kLearned && t + k > t0) {
          const Real* h_before = w.h[t - t0 + k - 1];
          with_isa<reset_row<Cell, Real, kLearned, Fire>>(count, terms, rules, fire, h_before,
                                                          &w.before[k][0]);
        } else if (kLearned) {
          start_state(call.neuron, given, count, w);
          std::copy_n(w.v, count, w.before[k]);
        }
      }
      step_back<kSteps>(call, t, first, count, w, [&](const BackRows<Real, kSteps>& rows) {
        const Real by = t > t0 ? Real(1) : start;
        if (kSpikesAlone<Fire> || rules.emit == Emit::kSpike)
          with_isa<back_rows_from_input<Cell, Real, kLearned, true, kSteps, decltype(fired)>>(
              count, terms, rules, by, fired, rows);
        else if constexpr (!kSpikesAlone<Fire>)
          with_isa<back_rows_from_input<Cell, Real, kLearned, false, kSteps, decltype(fired)>>(
              count, terms, rules, by, fired, rows);
      });
    });
  }
}

template <class Cell, class Real, bool kLearned, class Fire, class Surrogate>
void backward_tile(const BackwardTiles<Cell, Real>& call, const Fire& fire, const Surrogate& surrogate,
                   int64_t first, int64_t count, Workspace<Cell, Real, kLearned>& w) {
  w.load(call.neuron, call.shape, first, count);
  if (call.grad_v != nullptr)
    std::copy_n(call.grad_v + first, count, w.grad_v);
  else
    std::fill_n(w.grad_v, count, Real(0));
  if constexpr (kLearned) std::fill_n(w.sums, Cell::kConstants * kTile, Real(0));
  if (call.bits == nullptr)
    backward_from_input(call, fire, surrogate, first, count, w);
  else if constexpr (std::is_same_v<Surrogate, Rectangular<Real>>)
    backward_from_bits(call, surrogate, first, count, w);
  if (call.grad_v0 != nullptr) std::copy_n(w.grad_v, count, call.grad_v0 + first);
  if (call.sums == nullptr) return;
  for (int64_t j = 0; j < count; ++j) {
    typename Cell::template Sums<Real> own{};
    Real* values = reinterpret_cast<Real*>(&own);
    for (int k = 0; k < Cell::kConstants; ++k) values[k] = w.sums[k * kTile + j];
    if (call.v0 == nullptr) Cell::back_rest(call.neuron.rules, w.grad_v[j], own);
    for (int k = 0; k < Cell::kConstants; ++k) call.sums[k * call.shape.neurons + first + j] = values[k];
  }
}

// A thread keeps its workspace, under 1 MB, for the next call.
template <class Cell, class Real, bool kArrays>
Workspace<Cell, Real, kArrays>& workspace_of_thread() {
  thread_local const auto workspace = std::make_unique<Workspace<Cell, Real, kArrays>>();
  return *workspace;
}

// f(first, count, workspace) for the tiles of a range.
template <class Cell, class Real, bool kArrays, class F>
void over_tiles(int64_t begin, int64_t end, const F& f) {
  auto& workspace = workspace_of_thread<Cell, Real, kArrays>();
  for (int64_t first = begin; first < end; first += kTile) f(first, std::min(kTile, end - first), workspace);
}

template <class Cell, class Real>
void forward_tiles(const ForwardTiles<Cell, Real>& call, const Firing& firing, int64_t begin, int64_t end) {
  const Rectangular<Real> window(firing.scale, firing.height);
  Tally tally(call.counts, call.shape.steps);
  const auto run = [&]<bool kArrays>() {
    dispatch_fire<Real>(firing, [&](const auto& chosen) {
      with_step(chosen, [&](const auto& fire) {
        over_tiles<Cell, Real, kArrays>(begin, end, [&](int64_t first, int64_t count, auto& workspace) {
          forward_tile(call, fire, window, first, count, workspace, tally);
        });
      });
    });
  };
  call.neuron.learned ? run.template operator()<true>() : run.template operator()<false>();
}

template <class Cell, class Real>
void backward_tiles(const BackwardTiles<Cell, Real>& call, const Firing& firing, int64_t begin, int64_t end) {
  const auto run = [&]<bool kLearned>() {
    dispatch_firing<Real>(firing, [&](const auto& chosen, const auto& surrogate) {
      with_step(chosen, [&](const auto& fire) {
        over_tiles<Cell, Real, kLearned>(begin, end, [&](int64_t first, int64_t count, auto& workspace) {
          backward_tile(call, fire, surrogate, first, count, workspace);
        });
      });
    });
  };
  call.neuron.learned ? run.template operator()<true>() : run.template operator()<false>();
}

// Names the tiles of one state type for every neuron, so that a file of its own compiles them.
template <class Real>
void instantiate_tiles() {
  Neurons::for_each([](auto type) {
    using Cell = typename decltype(type)::type;
    [[maybe_unused]] static void (*volatile forward)(const ForwardTiles<Cell, Real>&, const Firing&, int64_t,
                                                     int64_t) = &forward_tiles<Cell, Real>;
    [[maybe_unused]] static void (*volatile backward)(const BackwardTiles<Cell, Real>&, const Firing&,
                                                      int64_t, int64_t) = &backward_tiles<Cell, Real>;
  });
}

}  // namespace attsnn
