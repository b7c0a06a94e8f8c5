// The deterministic sums of reduce.cuh on the host, against a plain loop.
#include "cuda_on_host.h"  // first: the kernels need its words

#include <cmath>
#include <cstdio>

#include "cuda/reduce.cuh"

int main() {
  using namespace attsnn;
  const struct {
    Shape shape;
    int64_t blocks = INT32_MAX;  // of a launch
  } cases[] = {{{1, 1, 1, 1}},
               {{1, 3 * kReduceTile + 7, 1, 1}},
               {{1, 4 * 3 * 31, 3, 31}},
               {{1, 257 * 2, 2, 1}},
               {{1, 2 * (kReduceTile + 3), 2, 1}, 3}};
  for (const auto& [shape, blocks] : cases) {
    on_host::limits.x = blocks;
    constexpr int kConstants = 2;
    std::vector<float> sums(kConstants * shape.neurons), result(kConstants * shape.channels, NAN);
    for (size_t i = 0; i < sums.size(); ++i) sums[i] = float(int(i * 2654435761u % 2001) - 1000) / 1024;
    std::vector<double> partial(result.size() * reduce_tiles(shape), NAN);
    launch_reduce(static_cast<const float*>(sums.data()), shape, kConstants, partial.data(), result.data(),
                  Stream{});
    for (size_t row = 0; row < result.size(); ++row) {
      double sum = 0;
      for (int64_t k = 0; k < shape.neurons / shape.channels; ++k)
        sum += sums[row / shape.channels * shape.neurons + shape.member(row % shape.channels, k)];
      if (float(sum) == result[row]) continue;  // multiples of 1/1024: every order sums to the same bits
      std::printf("%ld neurons, row %zu: %.9g, wanted %.9g\n", long(shape.neurons), row, result[row], sum);
      return 1;
    }
  }
  std::printf("equal\n");
}
