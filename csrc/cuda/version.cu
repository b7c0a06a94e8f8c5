// What the module _C says of CUDA.
#include <cuda_runtime.h>

namespace attsnn {

int cuda_runtime_version() { return CUDART_VERSION; }

int cuda_driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

}  // namespace attsnn
