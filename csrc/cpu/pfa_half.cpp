#include <torch/headeronly/util/Half.h>

#include "cpu/pfa_driver.h"

template void attsnn::pfa_forward_on_cpu(const PfaForward<torch::headeronly::Half, float>&);
template void attsnn::pfa_backward_on_cpu(const PfaBackward<torch::headeronly::Half, float>&);
