#include "cuda/launch.cuh"
#include "cuda/neuron_driver.cuh"

template void attsnn::instantiate<torch::headeronly::BFloat16, float>();
