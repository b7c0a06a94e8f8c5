// What a launch asks for, what a device takes, and how more than that becomes several launches. Torch-free;
// cuda/launch.cuh and the shim of the host-run tests, which have dim3, bring it.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

namespace attsnn {

// Blocks, in 64 bits until `launch` has compared them with what a device takes: cut to the 32 of dim3, too
// many are some other number.
struct Grid {
  int64_t x, y, z;
  Grid(int64_t x_, int64_t y_ = 1, int64_t z_ = 1) : x(x_), y(y_), z(z_) {}
  template <class... Counts>
    requires((sizeof(Counts) < sizeof(int64_t)) || ...)
  Grid(Counts...) = delete;  // may have been cut before

  dim3 cut() const { return dim3(unsigned(x), unsigned(y), unsigned(z)); }
};

struct Limits {
  int64_t x = INT32_MAX, y = 65535, z = 65535;  // of a grid, in blocks
  int64_t threads = 1024, threads_z = 64;       // of a block
  int64_t shared = 163 * 1024;  // bytes of a block, those that sm_80 gives; its static arrays are a part
};

// Those of the device. The host-run tests change theirs.
inline Limits limits();

// A sentence about what a device would refuse, empty where there is nothing.
inline std::string refusal(const Grid& blocks, const dim3& threads, size_t shared, const Limits& limits) {
  const struct {
    const char* what;
    int64_t asked, least, most;
  } rows[] = {
      {"blocks along x", blocks.x, 1, limits.x},
      {"blocks along y", blocks.y, 1, limits.y},
      {"blocks along z", blocks.z, 1, limits.z},
      {"threads a block along x", threads.x, 1, limits.threads},
      {"threads a block along y", threads.y, 1, limits.threads},
      {"threads a block along z", threads.z, 1, limits.threads_z},
      {"threads a block", int64_t(threads.x) * threads.y * threads.z, 1, limits.threads},
      {"bytes of shared memory a block", int64_t(shared), 0, limits.shared},
  };
  for (const auto& row : rows)
    if (row.asked < row.least || row.asked > row.most)
      return "a launch asks for " + std::to_string(row.asked) + " " + row.what + ", a device takes " +
             std::to_string(row.least) + " to " + std::to_string(row.most);
  return {};
}

inline int64_t blocks_for(int64_t tasks, int64_t per_block) { return (tasks + per_block - 1) / per_block; }

// f(first, blocks) for every launch that so many blocks in a row take, `most` at a time; none where there are
// none. So goes every grid whose blocks may hold a single row, plane, sample or step: its kernel adds `first`
// to its place in the grid. A grid along x whose blocks hold 64 numbers has filled the memory of any device
// before it is too long, and `launch` refuses it.
template <class F>
void in_launches(int64_t blocks, int64_t most, const F& f) {
  for (int64_t first = 0; first < blocks; first += most) f(first, std::min(most, blocks - first));
}

}  // namespace attsnn
