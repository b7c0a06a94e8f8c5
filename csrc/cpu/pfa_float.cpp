#include "cpu/pfa_driver.h"

template void attsnn::pfa_forward_on_cpu(const PfaForward<float, float>&);
template void attsnn::pfa_backward_on_cpu(const PfaBackward<float, float>&);
