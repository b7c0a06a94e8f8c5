// What a device would refuse is refused on the host: `launch_on_host CASE` is one launch broken on purpose
// and must fail with a sentence, but for "at the limits"; without a name it lists them.
#include "cuda_on_host.h"  // first: the kernels need its words

#include <functional>
#include <type_traits>

namespace {

using namespace attsnn;

// What may have been cut to 32 bits is no count of blocks.
static_assert(std::is_constructible_v<Grid, int64_t> && std::is_constructible_v<Grid, int64_t, int64_t>);
static_assert(!std::is_constructible_v<Grid, unsigned> && !std::is_constructible_v<Grid, int>);
static_assert(!std::is_constructible_v<Grid, int64_t, unsigned> && !std::is_constructible_v<Grid, dim3>);

__global__ void __launch_bounds__(1024) count_kernel(int64_t* launched) {
  if (threadIdx.x + threadIdx.y + threadIdx.z == 0) ++*launched;
}

Grid grid(int64_t x, int64_t y = 1, int64_t z = 1) { return {x, y, z}; }

void try_launch(const Grid& blocks, dim3 threads, int64_t shared = 0) {
  int64_t launched = 0;
  launch(Stream{}, count_kernel, blocks, threads, size_t(shared), &launched);
  if (launched == blocks.x * blocks.y * blocks.z || on_host::noted != nullptr) return;
  std::printf("%ld blocks ran\n", long(launched));
  std::exit(1);
}

void at_the_limits() {
  const Limits most;
  try_launch(grid(2), 1024, most.shared);
  try_launch(grid(2, 3, 4), dim3(1, 2, 64));
  std::map<const void*, on_host::Asked> found;
  on_host::noted = &found;  // so many blocks would run for long
  try_launch(grid(most.x, most.y, most.z), 1);
  int64_t next = 0;
  const int64_t blocks = 2 * most.x + 5;
  in_launches(blocks, limits().x, [&](int64_t first, int64_t count) {
    try_launch(grid(count), 1);
    if (first != next) std::exit(1);
    next = first + count;
  });
  if (next != blocks) std::exit(1);
}

const std::map<std::string, std::function<void()>> kCases = {
    {"at the limits", at_the_limits},
    {"no threads", [] { try_launch(grid(1), 0); }},
    {"too many threads", [] { try_launch(grid(1), 1025); }},
    {"too many threads in all", [] { try_launch(grid(1), dim3(32, 33)); }},
    {"a block too deep", [] { try_launch(grid(1), dim3(1, 1, 65)); }},
    {"an empty grid", [] { try_launch(grid(3, 0), 1); }},
    {"x too long", [] { try_launch(grid(int64_t(1) << 31), 1); }},
    {"x that dim3 would cut to one", [] { try_launch(grid((int64_t(1) << 32) + 1), 1); }},
    {"y too long", [] { try_launch(grid(1, 65536), 1); }},
    {"z too long", [] { try_launch(grid(1, 1, 65536), 1); }},
    {"too much shared memory", [] { try_launch(grid(1), 1, 163 * 1024 + 1); }},
    {"longer than a test allows",
     [] {
       on_host::limits.x = 2;
       try_launch(grid(3), 1);
     }},
};

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) {
    for (const auto& [name, body] : kCases) std::printf("%s\n", name.c_str());
    return 0;
  }
  const auto found = kCases.find(arguments[1]);
  if (found == kCases.end()) return std::printf("no case %s\n", arguments[1]), 2;
  found->second();
  std::printf("equal\n");
}
