// AEDAT 3.1: packets to columns, or straight to frames. See attsnn/data/formats/aedat3.py for the format.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "cpu/events.h"
#include "cpu/events_frames.h"

namespace attsnn::events {

inline constexpr std::int64_t kHeaderBytes = 28;
inline constexpr std::int64_t kEventBytes = 8;
inline constexpr std::int64_t kTimeOffset = 4;
inline constexpr int kPolarity = 1;

struct Packet {
  bool polarity = false;
  std::int64_t overflow = 0, number = 0, payload = 0, end = 0;  // payload and end are offsets
};

// Reads the header at `at`; the packet lies inside `bytes` unless a fault is returned.
inline Fault read_packet(Bytes bytes, std::int64_t at, Packet& packet) {
  const auto left = static_cast<std::int64_t>(bytes.size()) - at;
  if (left < kHeaderBytes) return {Problem::kHeaderCut, at, left};
  const std::int64_t size = load<std::int32_t>(bytes, at + 4);
  const std::int64_t time_offset = load<std::int32_t>(bytes, at + 8);
  const std::int64_t capacity = load<std::int32_t>(bytes, at + 16);
  packet.polarity = load<std::int16_t>(bytes, at) == kPolarity;
  packet.overflow = load<std::int32_t>(bytes, at + 12);
  packet.number = load<std::int32_t>(bytes, at + 20);
  packet.payload = at + kHeaderBytes;
  if (size <= 0) return {Problem::kEventSize, at + 4, size};
  if (packet.number < 0) return {Problem::kNumber, at + 20, packet.number};
  if (capacity < packet.number) return {Problem::kCapacity, at + 16, capacity};
  if (packet.polarity && size != kEventBytes) return {Problem::kPolaritySize, at + 4, size};
  if (packet.polarity && time_offset != kTimeOffset) return {Problem::kTimeOffset, at + 8, time_offset};
  if (packet.polarity && packet.overflow < 0) return {Problem::kOverflow, at + 12, packet.overflow};
  if (packet.number * size > left - kHeaderBytes)
    return {Problem::kPayloadCut, at + 20, packet.number * size};
  packet.end = packet.payload + packet.number * size;
  return {};
}

// Counts the polarity events from `at` to the end, an upper bound of what `decode_packets` writes.
inline Fault scan_packets(Bytes bytes, std::int64_t at, std::int64_t& number) {
  number = 0;
  for (Packet packet; at < static_cast<std::int64_t>(bytes.size()); at = packet.end) {
    if (const Fault fault = read_packet(bytes, at, packet)) return fault;
    if (packet.polarity) number += packet.number;
  }
  return {};
}

// What is wrong with the event at byte `at`, if anything; invalid events are never wrong.
inline Fault check_event(Bytes bytes, std::int64_t at, Sensor sensor) {
  const auto data = load<std::uint32_t>(bytes, at);
  const auto time = load<std::int32_t>(bytes, at + kTimeOffset);
  const auto x = static_cast<int>(data >> 17), y = static_cast<int>(data >> 2 & 0x7fff);
  if (!(data & 1)) return {};
  if (time < 0) return {Problem::kTimeSign, at + kTimeOffset, time};
  if (x >= sensor.width) return {Problem::kColumn, at, x};
  if (y >= sensor.height) return {Problem::kRow, at, y};
  return {};
}

// Appends the valid events of bytes first .. last of a packet to out, at out[state.number]. Stores come
// before the test of the valid bit, which an invalid event's successor overwrites: the loop's only branch is
// for time that decreases.
inline void decode_part(Bytes bytes, std::int64_t first, std::int64_t last, std::int64_t overflow,
                        Sensor sensor, const Columns& out, Decoded& state) {
  const auto width = static_cast<std::uint32_t>(sensor.width),
             height = static_cast<std::uint32_t>(sensor.height);
  const std::int64_t base = overflow << 31;
  std::int64_t k = state.number, before = state.time;
  std::uint32_t bad = 0;
  for (std::int64_t at = first; at < last; at += kEventBytes) {
    const auto data = load<std::uint32_t>(bytes, at);
    const auto time = load<std::uint32_t>(bytes, at + kTimeOffset);
    const std::uint32_t x = data >> 17, y = data >> 2 & 0x7fff, valid = data & 1;
    const std::int64_t t = base + time;
    bad |= valid & (static_cast<std::uint32_t>(x >= width) | (y >= height) | time >> 31);
    out.t[k] = t;
    out.x[k] = static_cast<std::int16_t>(x);
    out.y[k] = static_cast<std::int16_t>(y);
    out.p[k] = static_cast<std::uint8_t>(data >> 1 & 1);
    if (t < before && valid) {
      if (state.descents++ == 0) state.first_descent = at;
    }
    before = valid ? t : before;
    k += valid;
  }
  state.number = k;
  state.time = before;
  for (std::int64_t at = first; bad && !state.fault && at < last; at += kEventBytes)
    state.fault = check_event(bytes, at, sensor);
}

// Writes the valid polarity events from `at` to the end and stops at the first fault. The headers are checked
// again: a mapped file may have changed since it was scanned.
inline Decoded decode_packets(Bytes bytes, std::int64_t at, Sensor sensor, const Columns& out) {
  Decoded state;
  Packet packet;
  for (; at < static_cast<std::int64_t>(bytes.size()) && !state.fault; at = packet.end) {
    state.fault = read_packet(bytes, at, packet);
    if (state.fault || !packet.polarity) continue;
    if (packet.number > out.capacity - state.number)
      state.fault = {Problem::kNumber, at + 20, packet.number};
    else
      decode_part(bytes, packet.payload, packet.end, packet.overflow, sensor, out, state);
  }
  return state;
}

struct FileFrames {
  Decoded decoded;
  std::int64_t number = 0, first = 0;  // events of the file, and the time of the first
};

// A file straight to frames, whose first bin starts at the first valid event. Events pass through `block`, so
// that columns of the whole file are never written. The frames are of use only without a fault and without
// descents.
inline FileFrames decode_frames(Bytes bytes, std::int64_t at, const Grid& grid, const Columns& block,
                                std::int32_t* frames) {
  FileFrames all;
  Decoded& state = all.decoded;
  std::optional<Integrator<std::int32_t>> integrator;
  Packet packet;
  for (; at < static_cast<std::int64_t>(bytes.size()) && !state.fault; at = packet.end) {
    state.fault = read_packet(bytes, at, packet);
    if (state.fault || !packet.polarity) continue;
    for (std::int64_t first = packet.payload, last; first < packet.end && !state.fault; first = last) {
      last = std::min(packet.end, first + block.capacity * kEventBytes);
      state.number = 0;
      decode_part(bytes, first, last, packet.overflow, grid.sensor, block, state);
      if (state.fault || state.number == 0) continue;
      if (!integrator) integrator.emplace(grid, all.first = block.t[0]);
      all.number += state.number;
      integrator->add({block.t, block.x, block.y, block.p, state.number}, frames);
    }
  }
  return all;
}

}  // namespace attsnn::events
