// Runs __global__ functions on the host from their unchanged source: a CUDA thread of a block is an OS
// thread, blocks run one after another, __syncthreads is a barrier, shuffles go through slots that a warp
// shares. Under the sanitizers this finds what a GPU would not say: a missing barrier is a data race, an
// index past the end a report. What a GPU would refuse ends the program; how many threads and how much memory
// a kernel asks for is printed for a test that knows what ptxas made of it.
#pragma once
#include <dlfcn.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <barrier>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
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

#include "cuda/grid.cuh"  // needs dim3

// The types of a run. Under the thread sanitizer all are float, which a third of the time compiles: the type
// changes nothing about what waits for what.
#ifdef ATTSNN_FLOAT_ONLY
using BFloat16 = float;
using Half = float;
using Double = float;
#else
using BFloat16 = torch::headeronly::BFloat16;
using Half = torch::headeronly::Half;
using Double = double;
#endif

namespace on_host {

inline attsnn::Limits limits;  // a test sets small ones, to see that work is split

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
void run_blocks(const attsnn::Grid& blocks, dim3 block, size_t shared, const Kernel& kernel) {
  const unsigned count = block.x * block.y * block.z;
  const int64_t number = blocks.x * blocks.y * blocks.z;
  const auto begin = [=]() noexcept { begin_block(int(count), shared); };
  std::barrier<decltype(begin)> between(count, begin);
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < count; ++i)
    threads.emplace_back([=, &between, &kernel] {
      threadIdx = dim3(i % block.x, i / block.x % block.y, i / (block.x * block.y));
      for (int64_t k = 0; k < number; ++k) {
        between.arrive_and_wait();
        blockIdx = attsnn::Grid(k % blocks.x, k / blocks.x % blocks.y, k / (blocks.x * blocks.y)).cut();
        kernel();
        warps[i / kWarp]->barrier.arrive_and_drop();  // a thread that returned holds nobody up
        block_barrier->arrive_and_drop();
      }
    });
  for (auto& thread : threads) thread.join();
}

// What a kernel asked for at most.
struct Asked {
  int64_t threads = 0, shared = 0;
};
inline std::map<const void*, Asked>* noted = nullptr;  // where set, launches are noted and not run

inline void note(const void* kernel, dim3 threads, size_t shared) {
  Asked& asked = (*noted)[kernel];
  asked.threads = std::max(asked.threads, int64_t(threads.x) * threads.y * threads.z);
  asked.shared = std::max(asked.shared, int64_t(shared));
}

// Where the program was asked for "launches": prints a line for every kernel that `launch_all` launches, its
// mangled name, threads and bytes of dynamic shared memory, as on_host.py reads them. Nothing is run: the
// calls need no memory, the tensors of their numbers may have any size.
template <class F>
bool lists_launches(int count, char** arguments, const F& launch_all) {
  if (count < 2 || std::strcmp(arguments[1], "launches") != 0) return false;
  std::map<const void*, Asked> found;
  noted = &found;
  launch_all();
  for (const auto& [kernel, asked] : found) {
    Dl_info info;
    if (dladdr(kernel, &info) == 0 || info.dli_sname == nullptr) std::abort();  // linked without -rdynamic
    std::printf("%s %ld %ld\n", info.dli_sname, long(asked.threads), long(asked.shared));
  }
  return true;
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

inline Limits limits() { return on_host::limits; }

template <class... Parameters, class... Arguments>
void launch(Stream, void (*kernel)(Parameters...), const Grid& blocks, dim3 threads, size_t shared,
            const Arguments&... arguments) {
  if (const std::string refused = refusal(blocks, threads, shared, limits()); !refused.empty()) {
    std::fprintf(stderr, "%s\n", refused.c_str());
    std::exit(3);
  }
  if (on_host::noted != nullptr) return on_host::note(reinterpret_cast<void*>(kernel), threads, shared);
  gridDim = blocks.cut();
  blockDim = threads;
  on_host::run_blocks(blocks, threads, shared, [&] { kernel(arguments...); });
}

}  // namespace attsnn
