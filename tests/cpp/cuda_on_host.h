// Runs __global__ functions on the host from their unchanged source: a CUDA thread of a block is an OS
// thread, blocks run one after another, __syncthreads is a barrier, shuffles go through slots that a warp
// shares. Under the sanitizers this finds what a GPU would not say: a missing barrier is a data race, an
// index past the end a report.
#pragma once
#include <algorithm>
#include <barrier>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define ATTSNN_DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(on_host::dynamic_shared.get())

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline thread_local dim3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace on_host {

inline constexpr int kWarp = 32;
inline constexpr size_t kSlot = 512;  // bytes that a lane can hand over at once
inline std::unique_ptr<std::barrier<>> block_barrier;
inline std::unique_ptr<std::max_align_t[]> dynamic_shared;

struct Warp {
  std::barrier<> barrier;
  alignas(16) unsigned char slots[kWarp][kSlot] = {};
  explicit Warp(int lanes) : barrier(lanes) {}
};
inline std::vector<std::unique_ptr<Warp>> warps;

inline int rank() { return int(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)); }

template <class T>
T exchange(T value, int source) {
  static_assert(sizeof(T) <= kSlot);
  Warp& warp = *warps[rank() / kWarp];
  std::memcpy(warp.slots[rank() % kWarp], &value, sizeof(T));
  warp.barrier.arrive_and_wait();
  T result;
  std::memcpy(&result, warp.slots[source], sizeof(T));
  warp.barrier.arrive_and_wait();
  return result;
}

// What a block has of its own.
inline void begin_block(int count, size_t shared) {
  block_barrier = std::make_unique<std::barrier<>>(count);
  // Exactly as long as asked for, so that an access past it is reported.
  dynamic_shared = std::make_unique<std::max_align_t[]>((shared + sizeof(std::max_align_t) - 1) /
                                                        sizeof(std::max_align_t));
  warps.clear();
  for (int first = 0; first < count; first += kWarp)
    warps.push_back(std::make_unique<Warp>(std::min(kWarp, count - first)));
}

// The OS threads are those of every block: under a sanitizer it takes longer to start one than what it does.
template <class Kernel>
void run_blocks(dim3 blocks, dim3 block, size_t shared, const Kernel& kernel) {
  const unsigned count = block.x * block.y * block.z, number = blocks.x * blocks.y * blocks.z;
  const auto begin = [=]() noexcept { begin_block(int(count), shared); };
  std::barrier<decltype(begin)> between(count, begin);
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < count; ++i)
    threads.emplace_back([=, &between, &kernel] {
      threadIdx = dim3(i % block.x, i / block.x % block.y, i / (block.x * block.y));
      for (unsigned k = 0; k < number; ++k) {
        between.arrive_and_wait();
        blockIdx = dim3(k % blocks.x, k / blocks.x % blocks.y, k / (blocks.x * blocks.y));
        kernel();
        warps[i / kWarp]->barrier.arrive_and_drop();  // a thread that returned holds nobody up
        block_barrier->arrive_and_drop();
      }
    });
  for (auto& thread : threads) thread.join();
}

}  // namespace on_host

inline void __syncthreads() { on_host::block_barrier->arrive_and_wait(); }

template <class T>
T __shfl_down_sync(unsigned, T value, int delta) {
  const int lane = on_host::rank() % on_host::kWarp;
  return on_host::exchange(value, lane + delta < on_host::kWarp ? lane + delta : lane);
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return on_host::exchange(value, on_host::rank() % on_host::kWarp ^ mask);
}

namespace attsnn {

struct Stream {};

template <class... Parameters, class... Arguments>
void launch(Stream, void (*kernel)(Parameters...), dim3 blocks, dim3 threads, size_t shared,
            const Arguments&... arguments) {
  gridDim = blocks;
  blockDim = threads;
  on_host::run_blocks(blocks, threads, shared, [&] { kernel(arguments...); });
}

}  // namespace attsnn
