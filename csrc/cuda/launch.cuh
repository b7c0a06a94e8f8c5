// Launching on torch's current stream, and sentences for what goes wrong there.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "cuda/grid.cuh"
#include "cuda/stream.h"

namespace attsnn {

using Stream = cudaStream_t;

inline void check(cudaError_t error) {
  STD_TORCH_CHECK(error != cudaErrorNoKernelImageForDevice,
                  "the kernels were not compiled for this GPU: rebuild on this machine with `python setup.py "
                  "build_ext`, or name its architecture in TORCH_CUDA_ARCH_LIST");
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA: ", cudaGetErrorString(error));
}

inline Limits limits() { return {}; }

template <class... Parameters, class... Arguments>
void launch(Stream stream, void (*kernel)(Parameters...), const Grid& blocks, dim3 threads, size_t shared,
            const Arguments&... arguments) {
  const std::string refused = refusal(blocks, threads, shared, limits());
  STD_TORCH_CHECK(refused.empty(), refused);
  if (shared > 0)  // what a kernel does not ask for is 48 KiB, of which its static arrays are a part
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)));
  kernel<<<blocks.cut(), threads, shared, stream>>>(arguments...);
  check(cudaGetLastError());
}

// f(stream) on the tensor's device, on its current stream.
template <class F>
void on_device_of(const torch::stable::Tensor& tensor, const F& f) {
  const auto device = tensor.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  f(static_cast<Stream>(current_stream(device)));
}

}  // namespace attsnn
