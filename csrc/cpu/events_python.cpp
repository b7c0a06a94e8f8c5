// NumPy's door to the events_*.h. Arrays are taken as they are (a wrong dtype or layout is a TypeError, never
// a copy), and the GIL is released while events are walked.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <tuple>
#include <vector>

#include "cpu/events.h"
#include "cpu/events_aedat3.h"
#include "cpu/events_frames.h"
#include "cpu/events_records.h"
#include "cpu/events_text.h"

namespace py = pybind11;

namespace attsnn::events {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;
using Found = std::tuple<int, std::int64_t, std::int64_t>;

Found found(const Fault& fault) { return {static_cast<int>(fault.problem), fault.offset, fault.found}; }

Bytes bytes_of(const Array<std::uint8_t>& file, std::int64_t start) {
  if (start < 0 || start > file.size()) throw py::value_error("start is outside the file");
  return {file.data(), static_cast<std::size_t>(file.size())};
}

// Columns for at most so many events, and what a decoder wrote there:
// (fault, columns, events written, events earlier than the one before, byte of the first of these)
template <class Decode>
py::tuple decode_into(std::int64_t capacity, const Decode& decode) {
  py::array_t<std::int64_t> t(capacity);
  py::array_t<std::int16_t> x(capacity), y(capacity);
  py::array_t<std::uint8_t> p(capacity);
  const Columns columns{t.mutable_data(), x.mutable_data(), y.mutable_data(), p.mutable_data(), capacity};
  Decoded decoded;
  {
    py::gil_scoped_release release;
    decoded = decode(columns);
  }
  return py::make_tuple(found(decoded.fault), py::make_tuple(t, x, y, p), decoded.number, decoded.descents,
                        decoded.first_descent);
}

py::tuple aedat3(const Array<std::uint8_t>& file, std::int64_t start, int height, int width) {
  const Bytes bytes = bytes_of(file, start);
  std::int64_t number = 0;
  Fault fault;
  {
    py::gil_scoped_release release;
    fault = scan_packets(bytes, start, number);
  }
  if (fault) return py::make_tuple(found(fault), py::none(), 0, 0, -1);
  return decode_into(
      number, [&](const Columns& columns) { return decode_packets(bytes, start, {height, width}, columns); });
}

template <class Decoder>
auto records(std::int64_t size, Decoder decoder) {
  return [=](const Array<std::uint8_t>& file, std::int64_t start, int height, int width) {
    const Bytes bytes = bytes_of(file, start);
    return decode_into((file.size() - start) / size, [&](const Columns& columns) {
      return decoder(bytes, start, {height, width}, columns);
    });
  };
}

// As above, and bits 0, 1, 2 for a polarity of -1, 0, 1 among the rows.
py::tuple text(const Array<std::uint8_t>& file, std::int64_t start, int height, int width,
               const std::array<int, 5>& fields, char separator, std::int64_t time_unit, bool integers) {
  const Bytes bytes = bytes_of(file, start);
  const auto [number, t, x, y, p] = fields;
  const Row row{number, t, x, y, p, separator, time_unit, integers};
  if (number > kMostFields || time_unit < 1 || std::min({t, x, y, p}) < 0 || std::max({t, x, y, p}) >= number)
    throw py::value_error("a field is not in the row");
  std::int64_t lines = 0;
  {
    py::gil_scoped_release release;
    lines = std::count(bytes.begin() + start, bytes.end(), '\n') + 1;
  }
  // A row with an event takes eight bytes at least, but for the last.
  lines = std::min<std::int64_t>(lines, (file.size() - start) / 8 + 1);
  unsigned polarities = 0;
  const py::tuple decoded = decode_into(lines, [&](const Columns& columns) {
    return decode_text(bytes, start, row, {height, width}, columns, polarities);
  });
  return py::make_tuple(decoded, polarities);
}

void check(const Grid& grid) {
  const auto [height, width] = grid.sensor;
  const int downsample = grid.downsample;
  if (grid.steps < 1 || grid.dt < 0 || downsample < 1 || height < downsample || width < downsample ||
      height % downsample != 0 || width % downsample != 0 || height > 1 << 15 || width > 1 << 15)
    throw py::value_error("steps, dt and downsample must be positive, and downsample divide the sensor");
}

// Frames of samples first .. last of the columns into `frames`: (the index of an event outside the sensor or
// -1, whether a count passed what the type of `frames` holds).
template <class Count>
py::tuple frames_of(const Array<std::int64_t>& t, const Array<std::int16_t>& x, const Array<std::int16_t>& y,
                    const Array<std::uint8_t>& p, const Array<std::int64_t>& first,
                    const Array<std::int64_t>& last, const Array<std::int64_t>& origin, const Grid& grid,
                    Array<Count>& frames, int threads) {
  const std::int64_t samples = first.size(), number = t.size();
  if (x.size() != number || y.size() != number || p.size() != number || last.size() != samples ||
      origin.size() != samples)
    throw py::value_error("columns of different lengths");
  for (std::int64_t i = 0; i < samples; ++i)
    if (first.data()[i] < 0 || first.data()[i] > last.data()[i] || last.data()[i] > number)
      throw py::value_error("a sample is outside of the columns");
  check(grid);
  if (frames.size() != samples * grid.steps * 2 * grid.plane())
    throw py::value_error("frames of another size");
  const Events events{t.data(), x.data(), y.data(), p.data(), number};
  const Batch batch{samples, first.data(), last.data(), origin.data()};
  Count* const counts = frames.mutable_data();
  Framed framed;
  {
    py::gil_scoped_release release;
    framed = frame_batch(events, batch, grid, counts, threads);
  }
  return py::make_tuple(framed.bad, framed.wrapped);
}

// The frames of a whole file, its events, and the times of the first and the last; or None where there is a
// fault to report or there are events to sort.
py::object file_frames(const Array<std::uint8_t>& file, std::int64_t start, std::int64_t steps,
                       std::int64_t dt, int height, int width, int downsample) {
  const Bytes bytes = bytes_of(file, start);
  const Grid grid{steps, dt, {height, width}, downsample};
  check(grid);
  const std::array<py::ssize_t, 4> shape{steps, 2, height / downsample, width / downsample};
  py::array_t<std::int32_t> frames(shape);
  std::fill_n(frames.mutable_data(), frames.size(), 0);
  std::int32_t* const counts = frames.mutable_data();
  FileFrames all;
  {
    py::gil_scoped_release release;
    constexpr std::int64_t kBlock = 2048;  // its columns stay in the first-level cache
    std::vector<std::int64_t> t(kBlock);
    std::vector<std::int16_t> x(kBlock), y(kBlock);
    std::vector<std::uint8_t> p(kBlock);
    all = decode_frames(bytes, start, grid, {t.data(), x.data(), y.data(), p.data(), kBlock}, counts);
  }
  if (all.decoded.fault || all.decoded.descents > 0) return py::none();
  return py::make_tuple(frames, all.number, all.first, all.decoded.time);
}

}  // namespace
}  // namespace attsnn::events

void bind_events(py::module_& m) {
  using namespace attsnn::events;
  const auto file = py::arg("file").noconvert();
  const auto of_a_file = [&](const char* name, auto decoder) {
    m.def(name, decoder, file, py::arg("start"), py::arg("height"), py::arg("width"));
  };
  of_a_file("decode_aedat3", &aedat3);
  of_a_file("decode_aedat2", records(kAedat2Bytes, &decode_aedat2));
  of_a_file("decode_atis", records(kAtisBytes, &decode_atis));
  m.def("decode_text", &text, file, py::arg("start"), py::arg("height"), py::arg("width"), py::arg("fields"),
        py::arg("separator"), py::arg("time_unit"), py::arg("integers"));
  m.def("file_frames", &file_frames, file, py::arg("start"), py::arg("steps"), py::arg("dt"),
        py::arg("height"), py::arg("width"), py::arg("downsample"));
  const auto into = [&]<class Count>(Count) {
    m.def(
        "frame_events",
        [](const Array<std::int64_t>& t, const Array<std::int16_t>& x, const Array<std::int16_t>& y,
           const Array<std::uint8_t>& p, const Array<std::int64_t>& first, const Array<std::int64_t>& last,
           const Array<std::int64_t>& origin, std::int64_t steps, std::int64_t dt, int height, int width,
           int downsample, bool transposed, bool collapsed, Array<Count>& frames, int threads) {
          const Grid grid{steps, dt, {height, width}, downsample, transposed, collapsed};
          return frames_of(t, x, y, p, first, last, origin, grid, frames, threads);
        },
        py::arg("t").noconvert(), py::arg("x").noconvert(), py::arg("y").noconvert(),
        py::arg("p").noconvert(), py::arg("first").noconvert(), py::arg("last").noconvert(),
        py::arg("origin").noconvert(), py::arg("steps"), py::arg("dt"), py::arg("height"), py::arg("width"),
        py::arg("downsample"), py::arg("transposed"), py::arg("collapsed"), py::arg("frames").noconvert(),
        py::arg("threads"));
  };
  into(std::uint8_t{});
  into(std::int16_t{});
  into(std::int32_t{});
}
