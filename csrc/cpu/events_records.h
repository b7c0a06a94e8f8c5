// Recordings of records of one size: AEDAT 2.0 (attsnn/data/formats/aedat2.py) and ATIS (formats/atis.py).
#pragma once

#include <bit>
#include <cstdint>

#include "cpu/events.h"

namespace attsnn::events {

inline constexpr std::int64_t kAedat2Bytes = 8, kAtisBytes = 5;
inline constexpr std::uint32_t kExternal = 0x8000;  // bit of an AEDAT 2.0 address: no pixel's event
inline constexpr int kOverflowRow = 240;            // of ATIS: no event, time goes on by kOverflowTime
inline constexpr std::int64_t kOverflowTime = 1 << 13;

inline std::uint32_t load_big_endian(Bytes bytes, std::int64_t at) {
  const auto word = load<std::uint32_t>(bytes, at);
  return word << 24 | (word & 0xff00) << 8 | (word >> 8 & 0xff00) | word >> 24;
}

// What a loop over records keeps. Stores come before it is known whether they count: the next record
// overwrites what does not.
struct Tape {
  const Columns& out;
  Decoded& state;

  void put(std::int64_t t, std::uint32_t x, std::uint32_t y, std::uint32_t p, bool counts, std::int64_t at) {
    const std::int64_t k = state.number;
    out.t[k] = t;
    out.x[k] = static_cast<std::int16_t>(x);
    out.y[k] = static_cast<std::int16_t>(y);
    out.p[k] = static_cast<std::uint8_t>(p);
    if (t < state.time && counts && state.descents++ == 0) state.first_descent = at;
    state.time = counts ? t : state.time;
    state.number += counts;
  }
};

inline Fault cut_record(Bytes bytes, std::int64_t start, std::int64_t size) {
  const std::int64_t left = (static_cast<std::int64_t>(bytes.size()) - start) % size;
  if (left == 0) return {};
  return {Problem::kRecordCut, static_cast<std::int64_t>(bytes.size()) - left, left};
}

// x, y and p as the address has them: the file's reader turns them. out has room for every record.
inline Decoded decode_aedat2(Bytes bytes, std::int64_t start, Sensor sensor, const Columns& out) {
  Decoded state{.fault = cut_record(bytes, start, kAedat2Bytes)};
  const auto width = static_cast<std::uint32_t>(sensor.width),
             height = static_cast<std::uint32_t>(sensor.height);
  Tape tape{out, state};
  for (std::int64_t at = start; at < static_cast<std::int64_t>(bytes.size()) && !state.fault;
       at += kAedat2Bytes) {
    const std::uint32_t address = load_big_endian(bytes, at);
    const std::uint32_t x = address >> 1 & 0x7f, y = address >> 8 & 0x7f;
    const bool pixel = !(address & kExternal);
    if (address >> 16) [[unlikely]]
      state.fault = {Problem::kAddress, at, address};
    else if (pixel && (x >= width || y >= height)) [[unlikely]]
      state.fault = {x >= width ? Problem::kColumn : Problem::kRow, at, x >= width ? x : y};
    tape.put(load_big_endian(bytes, at + 4), x, y, address & 1, pixel, at);
  }
  return state;
}

inline Decoded decode_atis(Bytes bytes, std::int64_t start, Sensor sensor, const Columns& out) {
  Decoded state{.fault = cut_record(bytes, start, kAtisBytes)};
  std::int64_t overflow = 0;
  Tape tape{out, state};
  for (std::int64_t at = start; at < static_cast<std::int64_t>(bytes.size()) && !state.fault;
       at += kAtisBytes) {
    const std::uint8_t* const b = bytes.data() + at;
    const bool event = b[1] != kOverflowRow;
    overflow += event ? 0 : kOverflowTime;
    if (event && (b[0] >= sensor.width || b[1] >= sensor.height)) [[unlikely]] {
      const bool column = b[0] >= sensor.width;
      state.fault = {column ? Problem::kColumn : Problem::kRow, at + !column, column ? b[0] : b[1]};
    }
    const std::int64_t t = (b[2] & 0x7f) << 16 | b[3] << 8 | b[4];
    tape.put(overflow + t, b[0], b[1], b[2] >> 7, event, at);
  }
  return state;
}

}  // namespace attsnn::events
