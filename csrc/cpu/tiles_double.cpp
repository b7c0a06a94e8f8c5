#include "cpu/loop.h"

template void attsnn::instantiate_tiles<double>();
