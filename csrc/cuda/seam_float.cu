#include "cuda/launch.cuh"
#include "cuda/seam_driver.cuh"

template void attsnn::instantiate_seam<float, float>();
