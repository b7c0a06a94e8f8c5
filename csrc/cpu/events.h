// Event recordings on the CPU: what their decoders share.
//
// Every count in a file is checked against the bytes that are there before it is used, and none decides what
// is allocated: callers size the columns by the bytes of the file.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <span>

namespace attsnn::events {

using Bytes = std::span<const std::uint8_t>;

// In the order of PROBLEMS in attsnn/data/core/decoding.py, which holds the sentences.
enum class Problem : int {
  kNone,
  kHeaderCut,
  kEventSize,
  kNumber,
  kCapacity,
  kPolaritySize,
  kTimeOffset,
  kOverflow,
  kPayloadCut,
  kTimeSign,
  kColumn,
  kRow,
  kRecordCut,
  kAddress,
  kFields,
  kField,
  kPolarity,
};

struct Fault {
  Problem problem = Problem::kNone;
  std::int64_t offset = 0;  // the byte it was found at
  std::int64_t found = 0;   // the offending number
  explicit operator bool() const { return problem != Problem::kNone; }
};

struct Columns {  // where events are written
  std::int64_t* t;
  std::int16_t* x;
  std::int16_t* y;
  std::uint8_t* p;
  std::int64_t capacity;
};

struct Events {  // where they are read
  const std::int64_t* t;
  const std::int16_t* x;
  const std::int16_t* y;
  const std::uint8_t* p;
  std::int64_t number;
};

struct Decoded {
  Fault fault;
  std::int64_t number = 0;          // events written
  std::int64_t time = 0;            // of the last of them
  std::int64_t descents = 0;        // events earlier than the one before
  std::int64_t first_descent = -1;  // the byte of the first of them
};

struct Sensor {
  int height, width;
};

template <class Word>
Word load(Bytes bytes, std::int64_t at) {
  Word word;
  std::memcpy(&word, bytes.data() + at, sizeof(Word));
  static_assert(std::endian::native == std::endian::little, "files are little-endian; swap the bytes here");
  return word;
}

}  // namespace attsnn::events
