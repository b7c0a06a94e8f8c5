#include "cuda/launch.cuh"
#include "cuda/pfa_driver.cuh"

template void attsnn::instantiate_pfa<double, double>();
