// The list of neurons: schemas, kernels, shapes and gradients iterate over it. Python's list,
// `reference.neurons`, is compared with it by a test.
#pragma once
#include "lif.h"
#include "list.h"

namespace attsnn {

using Neurons = List<Lif>;

}  // namespace attsnn
