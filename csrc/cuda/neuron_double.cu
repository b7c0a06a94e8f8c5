#include "cuda/launch.cuh"
#include "cuda/neuron_driver.cuh"

template void attsnn::instantiate<double, double>();
