// Columns of events to frames: counts [steps, 2, rows, columns], by bins of time or by number of events.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu/events.h"

namespace attsnn::events {

struct Grid {
  std::int64_t steps, dt;  // dt in microseconds; 0: as many events in each step
  Sensor sensor;
  int downsample;
  bool transposed = false;  // rows are x
  bool collapsed = false;   // both polarities are counted in channel 1

  std::int64_t plane() const {
    return std::int64_t{sensor.height / downsample} * (sensor.width / downsample);
  }
};

// Counts events in the frames of one sample, which hold zeros. A count that passes what `Count` holds wraps
// to its least value, which `wrapped` says.
template <class Count>
class Integrator {
 public:
  // `origin` is the time at which the first bin starts.
  Integrator(const Grid& grid, std::int64_t origin)
      : grid_(grid), plane_(grid.plane()), origin_(static_cast<std::uint64_t>(origin)) {
    const int height = grid.sensor.height / grid.downsample, width = grid.sensor.width / grid.downsample;
    for (int y = 0; y < grid.sensor.height; ++y)
      row_.push_back(y / grid.downsample * (grid.transposed ? 1 : width));
    for (int x = 0; x < grid.sensor.width; ++x)
      column_.push_back(x / grid.downsample * (grid.transposed ? height : 1));
  }

  void restart(std::int64_t origin) { origin_ = static_cast<std::uint64_t>(origin); }

  // Each returns -1, or the index of the first event outside the sensor; those before it are counted.
  std::int64_t add(const Events& events, Count* frames) {
    return grid_.dt > 0 ? by_time(events, frames) : by_number(events, frames);
  }

  bool wrapped() const { return wrapped_; }

 private:
  // Unsigned differences are right for any two times, and one comparison says whether an event lies in the
  // bin that is open.
  std::int64_t by_time(const Events& events, Count* frames) {
    const auto steps = static_cast<std::uint64_t>(grid_.steps), dt = static_cast<std::uint64_t>(grid_.dt);
    std::uint64_t floor = origin_;
    Count* bin = frames;
    for (std::int64_t i = 0; i < events.number; ++i) {
      if (outside(events, i)) return i;
      const auto t = static_cast<std::uint64_t>(events.t[i]);
      if (t - floor >= dt) {
        const std::uint64_t k = (t - origin_) / dt;
        if (k >= steps) continue;
        floor = origin_ + k * dt;
        bin = frames + k * 2 * plane_;
      }
      count(events, i, bin);
    }
    return -1;
  }

  // Step k has the events k * (number / steps) and on, the last all that are left.
  std::int64_t by_number(const Events& events, Count* frames) {
    const std::int64_t share = events.number / grid_.steps;
    for (std::int64_t k = 0, i = 0; k < grid_.steps; ++k) {
      const std::int64_t last = k + 1 < grid_.steps ? i + share : events.number;
      for (Count* const bin = frames + k * 2 * plane_; i < last; ++i) {
        if (outside(events, i)) return i;
        count(events, i, bin);
      }
    }
    return -1;
  }

  bool outside(const Events& events, std::int64_t i) const {
    const auto width = static_cast<unsigned>(grid_.sensor.width),
               height = static_cast<unsigned>(grid_.sensor.height);
    const unsigned x = static_cast<std::uint16_t>(events.x[i]), y = static_cast<std::uint16_t>(events.y[i]);
    return (x >= width) | (y >= height) | (events.p[i] > 1);
  }

  void count(const Events& events, std::int64_t i, Count* bin) {
    const std::int64_t channel = (events.p[i] | grid_.collapsed) * plane_;
    Count& cell = bin[channel + row_[events.y[i]] + column_[events.x[i]]];
    cell = static_cast<Count>(cell + 1u);
    wrapped_ |= cell == std::numeric_limits<Count>::min();
  }

  Grid grid_;
  std::int64_t plane_;
  std::uint64_t origin_;
  bool wrapped_ = false;
  std::vector<std::int32_t> row_, column_;  // where a row and a column of the sensor lie in a frame
};

struct Batch {
  std::int64_t samples;
  const std::int64_t *first, *last;  // [samples]: which events are a sample's
  const std::int64_t* origin;        // [samples]: the time at which its first bin starts
};

struct Framed {
  std::int64_t bad = -1;  // the first event outside the sensor of some sample
  bool wrapped = false;   // a count passed what its type holds
};

// The frames [samples, steps, 2, rows, columns] of a batch, by so many threads.
template <class Count>
Framed frame_batch(const Events& events, const Batch& batch, const Grid& grid, Count* frames, int threads) {
  const std::int64_t size = grid.steps * 2 * grid.plane();
  std::atomic<std::int64_t> next{0}, bad{-1};
  std::atomic<bool> wrapped{false};
  const auto work = [&] {
    Integrator<Count> integrator(grid, 0);
    for (std::int64_t i; (i = next.fetch_add(1)) < batch.samples && !integrator.wrapped();) {
      const std::int64_t a = batch.first[i];
      integrator.restart(batch.origin[i]);
      std::fill_n(frames + i * size, size, Count{0});
      const std::int64_t found = integrator.add(
          {events.t + a, events.x + a, events.y + a, events.p + a, batch.last[i] - a}, frames + i * size);
      if (found >= 0) bad = a + found;
    }
    if (integrator.wrapped()) wrapped = true;
  };
  std::vector<std::thread> others;
  try {
    for (int k = 1; k < std::min<std::int64_t>(threads, batch.samples); ++k) others.emplace_back(work);
  } catch (const std::system_error&) {
    // A machine that gives no more threads: those that there are do the work.
  }
  work();
  for (std::thread& other : others) other.join();
  return {bad, wrapped};
}

}  // namespace attsnn::events
