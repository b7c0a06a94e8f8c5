#include "cuda/launch.cuh"
#include "cuda/neuron_driver.cuh"

template void attsnn::instantiate<torch::headeronly::Half, float>();
