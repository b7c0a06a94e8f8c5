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
      "seam_statistics(Tensor z, Tensor? gamma, int pool, bool extrema) -> (Tensor pooled, Tensor moments, "
      "Tensor extremum, Tensor place)");
  m.def("seam_squeeze(Tensor p, Tensor affine) -> (Tensor descriptors, Tensor place)");
  m.def("seam_project(Tensor p, Tensor weight, Tensor? centre) -> Tensor");
  m.def(
      "seam_gradient(Tensor up, Tensor z, Tensor? p, Tensor affine, Tensor? spatial, Tensor? spatial_place, "
      "Tensor? planes, Tensor? place, Tensor? channels, int pool, bool relu) -> Tensor");
  m.def("seam_totals(Tensor moments, int pixels) -> Tensor");
  m.def(
      "seam_affine(Tensor z, Tensor? totals, Tensor? mean, Tensor? var, Tensor? weight, Tensor? bias, "
      "float eps, int repeats) -> (Tensor affine, Tensor norm, Tensor centre, Tensor unbiased)");
  m.def(
      "seam_norm_sums(Tensor sums, Tensor norm, Tensor affine) -> (Tensor sums, Tensor beta, Tensor gamma)");
  m.def("seam_batch_gradient(Tensor sums, Tensor totals, Tensor norm, Tensor affine) -> Tensor");
  m.def(
      "seam_space(Tensor descriptors, Tensor kernel, int height, int width) -> (Tensor space, Tensor "
      "padded)");
  m.def(
      "seam_space_backward(Tensor grad, Tensor space, Tensor padded, Tensor kernel, int averaged) -> "
      "(Tensor spatial, Tensor total, Tensor by_kernel)");
  m.def(
      "seam_space_sums(Tensor sums, Tensor by_level, Tensor spatial, Tensor total, Tensor place, Tensor p, "
      "Tensor norm) -> Tensor");
  m.def(
      "seam_gates(Tensor moments, Tensor peak, Tensor affine, Tensor[] time, Tensor[] channel) -> "
      "(Tensor gated, Tensor time, Tensor time_inputs, Tensor time_place, Tensor time_hidden, "
      "Tensor channel, Tensor channel_inputs, Tensor channel_place, Tensor channel_hidden)");
  m.def(
      "seam_gates_backward(Tensor sums, Tensor norm, Tensor moments, Tensor peak, Tensor[] time, "
      "Tensor[] channel, int pixels) -> (Tensor planes, Tensor by_norm, Tensor time_reduce, "
      "Tensor time_expand, Tensor channel_reduce, Tensor channel_expand)");
  Neurons::for_each([&](auto type) {
    const std::string name = decltype(type)::type::kName;
    m.def((name + "_forward(Tensor x, Tensor? v0, Tensor? learned, float[] numbers, int[] rules, int learns, "
                  "str keep, "
                  "bool final_state, int steps=0) -> (Tensor out, Tensor v, Tensor kept)")
              .c_str());
    m.def((name +
           "_backward(Tensor grad_out, Tensor? grad_v, Tensor? x, Tensor? v0, Tensor? learned, Tensor kept, "
           "float[] numbers, int[] rules, int learns, str keep, bool wants_v0, bool shared=False) -> "
           "(Tensor grad_x, Tensor grad_v0, Tensor grad_learned)")
              .c_str());
    m.def((name +
           "_seam_forward(Tensor p, Tensor affine, Tensor? spatial, Tensor? shortcut, Tensor? learned, "
           "float[] numbers, int[] rules, str keep) -> (Tensor out, Tensor membrane, Tensor kept)")
              .c_str());
    m.def((name +
           "_seam_backward(Tensor grad_out, Tensor? grad_membrane, Tensor p, Tensor? membrane, Tensor "
           "affine, Tensor? spatial, Tensor? centre, Tensor kept, Tensor? learned, float[] numbers, "
           "int[] rules, str keep) -> (Tensor up, Tensor sums, Tensor grad_spatial, Tensor grad_learned)")
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
#else
  m.attr("cuda_runtime") = 0;
  m.def("cuda_driver_version", [] { return 0; });
#endif
  bind_events(m);
}
