// The list of neurons. The only list: schemas, kernels, Python registrations and tests iterate over it.
#pragma once
#include "lif.h"
#include "list.h"

namespace attsnn {

using Neurons = List<Lif>;

}  // namespace attsnn
