// NumPy's door to events.h. Arrays are taken as they are (a wrong dtype or layout is a TypeError, never a
// copy), and the GIL is released while events are walked.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <tuple>
#include <vector>

#include "cpu/events.h"

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

// (fault, columns or None, events written, events earlier than the one before, byte of the first of these)
py::tuple decode(const Array<std::uint8_t>& file, std::int64_t start, int height, int width) {
  const Bytes bytes = bytes_of(file, start);
  std::int64_t number = 0;
  Fault fault;
  {
    py::gil_scoped_release release;
    fault = scan_packets(bytes, start, number);
  }
  if (fault) return py::make_tuple(found(fault), py::none(), 0, 0, -1);

  py::array_t<std::int64_t> t(number);
  py::array_t<std::int16_t> x(number), y(number);
  py::array_t<std::uint8_t> p(number);
  const Columns columns{t.mutable_data(), x.mutable_data(), y.mutable_data(), p.mutable_data(), number};
  Decoded decoded;
  {
    py::gil_scoped_release release;
    decoded = decode_packets(bytes, start, {height, width}, columns);
  }
  return py::make_tuple(found(decoded.fault), py::make_tuple(t, x, y, p), decoded.number, decoded.descents,
                        decoded.first_descent);
}

py::array_t<std::int32_t> make_frames(const Grid& grid) {
  const auto [height, width] = grid.sensor;
  const int downsample = grid.downsample;
  if (grid.steps < 1 || grid.dt < 1 || downsample < 1 || height < downsample || width < downsample ||
      height % downsample != 0 || width % downsample != 0 || height > 1 << 15 || width > 1 << 15)
    throw py::value_error("steps, dt and downsample must be positive, and downsample divide the sensor");
  const std::array<py::ssize_t, 4> shape{grid.steps, 2, height / downsample, width / downsample};
  py::array_t<std::int32_t> frames(shape);
  std::fill_n(frames.mutable_data(), frames.size(), 0);
  return frames;
}

// (frames [steps, 2, height / downsample, width / downsample], -1 or the index of the first event outside the
// sensor)
py::tuple integrate(const Array<std::int64_t>& t, const Array<std::int16_t>& x, const Array<std::int16_t>& y,
                    const Array<std::uint8_t>& p, std::int64_t steps, std::int64_t dt, int height, int width,
                    int downsample) {
  if (x.size() != t.size() || y.size() != t.size() || p.size() != t.size())
    throw py::value_error("columns of different lengths");
  const Grid grid{steps, dt, {height, width}, downsample};
  const Events events{t.data(), x.data(), y.data(), p.data(), t.size()};
  py::array_t<std::int32_t> frames = make_frames(grid);
  std::int32_t* const counts = frames.mutable_data();
  std::int64_t bad;
  {
    py::gil_scoped_release release;
    bad = Integrator(grid, events.number > 0 ? events.t[0] : 0, counts).add(events);
  }
  return py::make_tuple(frames, bad);
}

// The frames of a whole file, or None where there is a fault to report or there are events to sort.
py::object file_frames(const Array<std::uint8_t>& file, std::int64_t start, std::int64_t steps,
                       std::int64_t dt, int height, int width, int downsample) {
  const Bytes bytes = bytes_of(file, start);
  const Grid grid{steps, dt, {height, width}, downsample};
  py::array_t<std::int32_t> frames = make_frames(grid);
  std::int32_t* const counts = frames.mutable_data();
  Decoded decoded;
  {
    py::gil_scoped_release release;
    constexpr std::int64_t kBlock = 2048;  // its columns stay in the first-level cache
    std::vector<std::int64_t> t(kBlock);
    std::vector<std::int16_t> x(kBlock), y(kBlock);
    std::vector<std::uint8_t> p(kBlock);
    decoded = decode_frames(bytes, start, grid, {t.data(), x.data(), y.data(), p.data(), kBlock}, counts);
  }
  if (decoded.fault || decoded.descents > 0) return py::none();
  return frames;
}

}  // namespace
}  // namespace attsnn::events

void bind_events(py::module_& m) {
  using namespace attsnn::events;
  m.def("decode_events", &decode, py::arg("file").noconvert(), py::arg("start"), py::arg("height"),
        py::arg("width"));
  m.def("file_frames", &file_frames, py::arg("file").noconvert(), py::arg("start"), py::arg("steps"),
        py::arg("dt"), py::arg("height"), py::arg("width"), py::arg("downsample"));
  m.def("integrate_frames", &integrate, py::arg("t").noconvert(), py::arg("x").noconvert(),
        py::arg("y").noconvert(), py::arg("p").noconvert(), py::arg("steps"), py::arg("dt"),
        py::arg("height"), py::arg("width"), py::arg("downsample"));
}
