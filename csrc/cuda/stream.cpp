// Torch's current stream is asked of the library of torch that the process has loaded. It is not linked, for
// a CPU-only torch has no such library, and one binary serves both. A weak symbol would stay null: what
// Python loads is not in the scope where the symbols of a later library are looked up.
#include "cuda/stream.h"

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

namespace attsnn {
namespace {

using Ask = AOTITorchError (*)(int32_t device, void** stream);

Ask found() {
  static const Ask ask = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* symbol = library == nullptr ? nullptr : dlsym(library, "aoti_torch_get_current_cuda_stream");
    return reinterpret_cast<Ask>(symbol);
  }();
  return ask;
}

}  // namespace

bool finds_streams() { return found() != nullptr; }

void* current_stream(int32_t device) {
  STD_TORCH_CHECK(finds_streams(), "this process has no CUDA build of torch loaded");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(found()(device, &stream));
  return stream;
}

}  // namespace attsnn
