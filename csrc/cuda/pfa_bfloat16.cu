#include "cuda/launch.cuh"
#include "cuda/pfa_driver.cuh"

template void attsnn::instantiate_pfa<torch::headeronly::BFloat16, float>();
