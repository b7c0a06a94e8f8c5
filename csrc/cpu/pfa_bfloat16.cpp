#include <torch/headeronly/util/BFloat16.h>

#include "cpu/pfa_driver.h"

template void attsnn::pfa_forward_on_cpu(const PfaForward<torch::headeronly::BFloat16, float>&);
template void attsnn::pfa_backward_on_cpu(const PfaBackward<torch::headeronly::BFloat16, float>&);
