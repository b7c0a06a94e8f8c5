// Every op's schema, and the module _C: what was compiled, and what is no tensor op.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "core/call.h"
#include "core/neurons.h"
#include "core/surrogate.h"
#include "cpu/isa.h"
#include "cuda/stream.h"

namespace py = pybind11;

void bind_events(py::module_& m);  // cpu/events_python.cpp

#ifdef ATTSNN_WITH_CUDA
namespace attsnn {
int cuda_runtime_version();  // cuda/version.cu
int cuda_driver_version();
}  // namespace attsnn
#endif

STABLE_TORCH_LIBRARY(attsnn, m) {
  using namespace attsnn;
  m.def("average_pool(Tensor x, int pool) -> Tensor");
  m.def("average_pool_backward(Tensor grad, int pool, int height, int width, bool channels_last) -> Tensor");
  m.def(
      "pfa_forward(Tensor x, Tensor spatial, Tensor spatial_bias, Tensor temporal, Tensor temporal_bias, "
      "Tensor channel, Tensor channel_bias, float scale, int fusion, bool keep) -> (Tensor y, Tensor S, "
      "Tensor T, Tensor C, Tensor kept)");
  m.def(
      "pfa_backward(Tensor grad_y, Tensor? x, Tensor spatial, Tensor temporal, Tensor channel, Tensor S, "
      "Tensor T, Tensor C, Tensor kept, float scale, int fusion, bool wants_x) -> Tensor[]");
  m.def(
      "seam_statistics(Tensor z, Tensor? gamma, int pool, bool extrema, bool totals) -> (Tensor[] pooled, "
      "Tensor[] planes, Tensor[] totals)");
  m.def(
      "seam_gradient(Tensor up, Tensor z, Tensor? p, Tensor affine, Tensor[] by_planes, Tensor[] by_pixels, "
      "Tensor[] batch, int pool, bool relu) -> Tensor");
  m.def(
      "seam_gradient_(Tensor(a!) up, Tensor z, Tensor affine, Tensor[] by_planes, Tensor[] by_pixels, "
      "Tensor[] batch, bool relu) -> ()");
  m.def(
      "update_running(Tensor(a!) mean, Tensor(b!) var, Tensor(c!) batches, Tensor batch_mean, "
      "Tensor batch_var, float momentum) -> ()");
  Neurons::for_each([&](auto type) {
    const std::string name = decltype(type)::type::kName;
    const std::string given = "(Tensor x, Tensor? v0, Tensor? learned, float[] numbers, int[] rules, ";
    const std::string how = "int learns, str keep, bool final_state, int steps=0) -> ";
    m.def((name + "_forward" + given + how + "(Tensor out, Tensor v, Tensor kept)").c_str());
    m.def((name + "_counted" + given + how + "(Tensor out, Tensor v, Tensor kept, Tensor counts)").c_str());
    m.def((name +
           "_backward(Tensor grad_out, Tensor? grad_v, Tensor? x, Tensor? v0, Tensor? learned, Tensor kept, "
           "float[] numbers, int[] rules, int learns, str keep, bool wants_v0, bool shared=False) -> "
           "(Tensor grad_x, Tensor grad_v0, Tensor grad_learned)")
              .c_str());
    m.def((name +
           "_seam_forward(Tensor p, Tensor? shortcut, Tensor? v0, Tensor[] planes, Tensor[] statistics, "
           "Tensor? weight, Tensor? bias, Tensor[] weights, Tensor? learned, float[] numbers, int[] rules, "
           "str keep) -> (Tensor out, Tensor[] membrane, Tensor[] state, Tensor[] small)")
              .c_str());
    m.def((name +
           "_seam_backward(Tensor grad_out, Tensor? grad_membrane, Tensor p, Tensor? membrane, Tensor[] "
           "planes, Tensor[] weights, Tensor[] small, Tensor[] states, Tensor? learned, float[] numbers, "
           "int[] rules, str keep) -> (Tensor[] up, Tensor[] by_norm, Tensor[] by_weights, "
           "Tensor[] by_planes, Tensor[] by_pixels, Tensor[] by_state, Tensor[] by_learned)")
              .c_str());
  });
}

PYBIND11_MODULE(_C, m) {
  using namespace attsnn;
  if (const char* asked = std::getenv("ATTSNN_ISA"); asked != nullptr && !isa_named(asked))
    throw py::import_error(std::string("ATTSNN_ISA must be baseline, avx2 or avx512, got '") + asked + "'");
  m.doc() = "What attsnn compiled, and the decoding of events.";
  std::vector<std::string> neurons, surrogates;
  Neurons::for_each([&](auto type) { neurons.emplace_back(decltype(type)::type::kName); });
  Surrogates<float>::for_each([&](auto type) { surrogates.emplace_back(decltype(type)::type::kName); });
  m.attr("neurons") = neurons;
  m.attr("surrogates") = surrogates;
  m.attr("emits") = std::vector<std::string>(std::begin(kEmits), std::end(kEmits));
  m.attr("checkpoint_above") = kCheckpointAbove;
  m.attr("checkpoint_every") = kCheckpointEvery;
  m.attr("compiler") = ATTSNN_COMPILER;
  m.attr("cuda_architectures") = ATTSNN_CUDA_ARCHITECTURES;
  m.def("isa", [] { return name(isa()); }, "The instruction set that the CPU kernels use in this process.");
#ifdef ATTSNN_WITH_CUDA
  m.attr("cuda_runtime") = cuda_runtime_version();
  m.def("cuda_driver_version", &cuda_driver_version, "1000 major + 10 minor; 0 where there is no driver.");
  m.def("finds_cuda_streams", &finds_streams, "Whether this process has a torch with CUDA.");
#else
  m.attr("cuda_runtime") = 0;
  m.def("cuda_driver_version", [] { return 0; });
#endif
  bind_events(m);
}
