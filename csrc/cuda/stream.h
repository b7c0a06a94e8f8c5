// Torch's current stream of a device.
#pragma once
#include <cstdint>

namespace attsnn {

bool finds_streams();  // whether this process has a torch with CUDA, which alone has streams

void* current_stream(int32_t device);

}  // namespace attsnn
