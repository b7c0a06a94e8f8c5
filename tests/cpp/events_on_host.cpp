// The decoders of recordings under the sanitizers: 20,000 files with bytes changed, put in and lost, each in
// memory that ends where the file does, decoded into columns that are as long as promised; and batches of
// frames by several threads, against one.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cpu/events_aedat3.h"
#include "cpu/events_frames.h"
#include "cpu/events_records.h"
#include "cpu/events_text.h"

using namespace attsnn::events;

namespace {

std::mt19937 rng(0);

int below(int n) { return static_cast<int>(rng() % static_cast<unsigned>(n)); }

struct Table {
  explicit Table(std::int64_t n) : t(n), x(n), y(n), p(n) {}
  Columns columns() { return {t.data(), x.data(), y.data(), p.data(), static_cast<std::int64_t>(t.size())}; }

  std::vector<std::int64_t> t;
  std::vector<std::int16_t> x, y;
  std::vector<std::uint8_t> p;
};

void append(std::string& bytes, std::uint32_t word, bool big_endian) {
  for (int k = 0; k < 4; ++k) bytes += static_cast<char>(word >> 8 * (big_endian ? 3 - k : k));
}

std::string aedat3_file() {
  std::string bytes;
  for (int packet = 0; packet < 3; ++packet) {
    const int number = below(9);
    for (const int field : {1 | 1 << 16, 8, 4, 0, number, number, number}) append(bytes, field, false);
    for (int k = 0; k < number; ++k) {
      append(bytes, 1u | below(2) << 1 | below(128) << 2 | below(128) << 17, false);
      append(bytes, 100 * packet + k, false);
    }
  }
  return bytes;
}

std::string records(bool aedat2) {
  std::string bytes;
  for (int k = below(20); k > 0; --k) {
    if (aedat2) {
      append(bytes, below(1 << 15), true);
      append(bytes, 1000 - k, true);
    } else {
      for (const int byte : {below(240), below(182), below(2) << 7, 4, 100 - k})
        bytes += static_cast<char>(byte);
    }
  }
  return bytes;
}

std::string text() {
  std::string bytes;
  for (int k = below(12); k > 0; --k)
    bytes += std::to_string(100 - k) + " " + std::to_string(below(128)) + "\t" + std::to_string(below(128)) +
             " 1\n";
  return bytes;
}

void mutate(std::string& bytes) {
  for (int k = below(4); k > 0 && !bytes.empty(); --k) {
    const int at = below(static_cast<int>(bytes.size())), way = below(4);
    if (way == 0) bytes[at] = static_cast<char>(below(256));
    if (way == 1) bytes.erase(at, 1 + below(3));
    if (way == 2) bytes.insert(at, 1, "0123456789 \n.-e#,\xff"[below(18)]);
    if (way == 3) bytes.resize(at);
  }
}

// Decodes a file of each kind; the number of events of all, so that nothing is optimised away.
std::int64_t decode_one() {
  std::int64_t events = 0;
  for (int kind = 0; kind < 4; ++kind) {
    std::string file = kind == 0 ? aedat3_file() : kind == 3 ? text() : records(kind == 1);
    mutate(file);
    const std::unique_ptr<std::uint8_t[]> memory(new std::uint8_t[file.size()]);  // not one byte more
    std::copy(file.begin(), file.end(), memory.get());
    const Bytes bytes(memory.get(), file.size());
    const auto size = static_cast<std::int64_t>(file.size());
    Decoded decoded;
    if (kind == 0) {
      std::int64_t number = 0;
      if (scan_packets(bytes, 0, number)) continue;
      Table table(number);
      decoded = decode_packets(bytes, 0, {128, 128}, table.columns());
      Table block(4);
      std::vector<std::int32_t> frames(3 * 2 * 16 * 16);
      decode_frames(bytes, 0, {3, 100, {128, 128}, 8}, block.columns(), frames.data());
    } else if (kind == 3) {
      const std::int64_t lines = std::count(bytes.begin(), bytes.end(), '\n') + 1;
      Table table(std::min(lines, size / 8 + 1));
      unsigned polarities = 0;
      const Row row{4, 0, 1, 2, 3, " ,"[below(2)], 1 + 999 * below(2), below(2) == 0};
      decoded = decode_text(bytes, 0, row, {128, 128}, table.columns(), polarities);
    } else {
      Table table(size / (kind == 1 ? kAedat2Bytes : kAtisBytes));
      const auto decoder = kind == 1 ? &decode_aedat2 : &decode_atis;
      decoded = decoder(bytes, 0, {128 + 52 * (kind == 2), 128 + 112 * (kind == 2)}, table.columns());
    }
    events += decoded.number;
  }
  return events;
}

template <class Count>
bool frames_are_equal() {
  constexpr std::int64_t kSamples = 13, kEvents = 4000;
  Table table(kEvents);
  std::vector<std::int64_t> first, last, origin;
  for (std::int64_t i = 0; i < kEvents; ++i) {
    table.t[i] = 10 * i;
    table.x[i] = static_cast<std::int16_t>(below(12));
    table.y[i] = static_cast<std::int16_t>(below(20));
    table.p[i] = static_cast<std::uint8_t>(below(2));
  }
  for (std::int64_t s = 0; s < kSamples; ++s) {
    first.push_back(300 * s);
    last.push_back(std::min<std::int64_t>(kEvents, 300 * s + below(900)));
    origin.push_back(table.t[first.back()]);
  }
  const Events events{table.t.data(), table.x.data(), table.y.data(), table.p.data(), kEvents};
  const Batch batch{kSamples, first.data(), last.data(), origin.data()};
  for (const std::int64_t dt : {0, 700}) {
    const Grid grid{5, dt, {20, 12}, 4, dt == 0, dt != 0};
    const std::size_t size = kSamples * 5 * 2 * grid.plane();
    std::vector<Count> one(size, 77), many(size, 88);
    const Framed alone = frame_batch(events, batch, grid, one.data(), 1);
    const Framed together = frame_batch(events, batch, grid, many.data(), 4);
    if (one != many || alone.bad != -1 || together.bad != -1 || alone.wrapped || together.wrapped)
      return false;
  }
  return true;
}

}  // namespace

int main() {
  std::int64_t events = 0;
  for (int trial = 0; trial < 5000; ++trial) events += decode_one();
  if (events < 50'000) return std::printf("only %ld events\n", static_cast<long>(events)), 1;
  if (!frames_are_equal<std::uint8_t>() || !frames_are_equal<std::int16_t>() ||
      !frames_are_equal<std::int32_t>())
    return std::printf("frames differ\n"), 1;
  std::printf("equal\n");
}
