// Tensors of the host-run tests.
#pragma once
#include <cstdint>
#include <random>
#include <vector>

namespace attsnn {

// A buffer that starts one element off the 16-byte boundary where asked to, and is exactly as long as it
// says.
template <class T>
struct Buffer {
  std::vector<T> memory;
  size_t offset;
  explicit Buffer(int64_t size, bool misaligned = false, T fill = T(0))
      : memory(size + misaligned, fill), offset(misaligned) {}
  T* data() { return memory.data() + offset; }
  const T* data() const { return memory.data() + offset; }
  T& operator[](int64_t i) { return memory[i + offset]; }
  const T& operator[](int64_t i) const { return memory[i + offset]; }
  int64_t size() const { return int64_t(memory.size() - offset); }
};

template <class T>
Buffer<T> normal(int64_t size, unsigned seed, bool misaligned = false, double scale = 0.7) {
  Buffer<T> buffer(size, misaligned);
  std::mt19937 random(seed);
  std::normal_distribution<double> draw(0.1, scale);
  for (int64_t i = 0; i < size; ++i) buffer[i] = T(float(draw(random)));
  return buffer;
}

}  // namespace attsnn
