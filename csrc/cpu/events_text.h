// Recordings as text, an event a row: attsnn/data/formats/text.py.
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string_view>

#include "cpu/events.h"
#include "cpu/events_records.h"

namespace attsnn::events {

struct Row {
  int fields;              // numbers in a row
  int t, x, y, p;          // which of them is what
  char separator;          // ' ': any run of blanks
  std::int64_t time_unit;  // microseconds
  bool integers;           // refuse 1.5 and 1e3
};

// Walks the bytes of a text. A field is a number: a sign, digits, perhaps a fraction and an exponent.
class Reader {
 public:
  Reader(Bytes bytes, std::int64_t at)
      : begin_(reinterpret_cast<const char*>(bytes.data())), end_(begin_ + bytes.size()), c_(begin_ + at) {}

  std::int64_t at() const { return c_ - begin_; }
  bool done() const { return c_ == end_; }
  bool row_ends() const { return c_ == end_ || *c_ == '\n' || *c_ == '#'; }

  void skip_blanks() {
    while (c_ != end_ && (*c_ == ' ' || *c_ == '\t' || *c_ == '\r')) ++c_;
  }
  bool skip(char separator) {
    if (c_ == end_ || *c_ != separator) return false;
    ++c_;
    return true;
  }
  void skip_row() {
    c_ = std::find(c_, end_, '\n');
    if (c_ != end_) ++c_;
  }

  // What pandas and R write for a polarity.
  bool truth(std::int64_t& value) {
    for (const std::string_view word : {"True", "true", "TRUE", "False", "false", "FALSE"}) {
      if (std::string_view(c_, end_ - c_).substr(0, word.size()) != word) continue;
      value = word[0] == 'T' || word[0] == 't';
      c_ += word.size();
      return true;
    }
    return false;
  }
  // A field that nobody reads.
  void skip_field(char separator) {
    while (!row_ends() && *c_ != separator && (separator != ' ' || (*c_ != '\t' && *c_ != '\r'))) ++c_;
  }

  // A number times `unit`; a fraction of it is rounded away where `rounds`, else refused. False leaves c_
  // there.
  bool number(std::int64_t unit, bool rounds, bool integers, std::int64_t& value) {
    const char* c = c_;
    const bool minus = c != end_ && *c == '-';
    if (c != end_ && (*c == '-' || *c == '+')) ++c;
    const char* const first = c;
    std::uint64_t digits = 0;
    for (; c != end_ && static_cast<unsigned>(*c - '0') < 10; ++c) digits = digits * 10 + (*c - '0');
    const bool whole = c == end_ || *c == ' ' || *c == '\n' || *c == '\t' || *c == '\r' || *c == ',' ||
                       *c == ';' || *c == '#';
    if (!whole) return !integers && real(first, minus, unit, rounds, value);
    // 18 digits fit an int64, times the unit perhaps not.
    if (c == first || c - first > 18) return false;
    if (digits > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max() / unit)) return false;
    value = static_cast<std::int64_t>(digits) * unit * (minus ? -1 : 1);
    c_ = c;
    return true;
  }

 private:
  bool real(const char* first, bool minus, std::int64_t unit, bool rounds, std::int64_t& value) {
    if (first == end_ || (*first != '.' && static_cast<unsigned>(*first - '0') >= 10)) return false;
    double parsed = 0;
    const auto [stop, error] = std::from_chars(first, end_, parsed);
    if (error != std::errc{} || stop == first) return false;
    parsed *= static_cast<double>(unit);
    const double rounded = std::nearbyint(parsed);
    if (!(rounded < 0x1p53) || (!rounds && rounded != parsed)) return false;
    value = static_cast<std::int64_t>(rounded) * (minus ? -1 : 1);
    c_ = stop;
    return true;
  }

  const char *begin_, *end_, *c_;
};

inline constexpr int kMostFields = 16;

// One row, up to its end; `event`: it holds one, whose numbers are in `values`. A fault is at its first byte.
inline Fault read_row(Reader& reader, const Row& row, std::int64_t (&values)[kMostFields], bool& event) {
  const std::int64_t start = reader.at();
  reader.skip_blanks();
  event = !reader.row_ends();
  if (!event) return {};
  int found = 0;
  for (bool more = true; more; ++found) {
    if (found == row.fields) return {Problem::kFields, start, found + 1};
    const bool time = found == row.t, named = time || found == row.x || found == row.y || found == row.p;
    if (!named) reader.skip_field(row.separator);
    // A time of 1.5 in microseconds is one in another unit, so its fraction is not rounded away.
    const bool rounds = time && row.time_unit > 1;
    if (named && !reader.number(time ? row.time_unit : 1, rounds, row.integers, values[found]) &&
        (row.integers || found != row.p || !reader.truth(values[found])))
      return {Problem::kField, start, found + 1};
    const std::int64_t stop = reader.at();
    reader.skip_blanks();
    more = row.separator == ' ' ? !reader.row_ends() : reader.skip(row.separator);
    if (row.separator == ' ' && more && reader.at() == stop) return {Problem::kField, start, found + 1};
    reader.skip_blanks();
  }
  if (!reader.row_ends()) return {Problem::kField, start, found};
  if (found != row.fields) return {Problem::kFields, start, found};
  return {};
}

// The events of all rows from `start`; `polarities` gets bit 0, 1, 2 for a -1, 0, 1 among them. out has room
// for a row a line.
inline Decoded decode_text(Bytes bytes, std::int64_t start, const Row& row, Sensor sensor, const Columns& out,
                           unsigned& polarities) {
  Decoded state;
  Tape tape{out, state};
  Reader reader(bytes, start);
  std::int64_t values[kMostFields] = {};
  polarities = 0;
  for (; !reader.done() && !state.fault; reader.skip_row()) {
    const std::int64_t at = reader.at();
    bool event = false;
    state.fault = read_row(reader, row, values, event);
    if (state.fault || !event) continue;
    const std::int64_t t = values[row.t], x = values[row.x], y = values[row.y], p = values[row.p];
    if (t < 0) state.fault = {Problem::kTimeSign, at, t};
    if (x < 0 || x >= sensor.width) state.fault = {Problem::kColumn, at, x};
    if (y < 0 || y >= sensor.height) state.fault = {Problem::kRow, at, y};
    if (p < -1 || p > 1) state.fault = {Problem::kPolarity, at, p};
    if (state.fault || state.number == out.capacity) continue;
    polarities |= 1u << (p + 1);
    tape.put(t, static_cast<std::uint32_t>(x), static_cast<std::uint32_t>(y), p > 0, true, at);
  }
  return state;
}

}  // namespace attsnn::events
