"""The functional API: the differentiable ops behind the modules.

Each op has one public signature, a shape rule and a gradient. `lif`, `seam`, `pfa`, `average_pool` and
`update_running` choose what runs them by `backend`:

- "fused": the C++ or CUDA kernels. It raises where there is none.
- "reference": the same computation in plain PyTorch (`attsnn.reference`).
- "auto": the kernels where they serve the device, else the reference, with one warning that says why.
"""

from attsnn._extension import use_fused
from attsnn.reference import (
    Gates,
    Norm,
    PFAOutput,
    PFAScores,
    Scores,
    SeamOutput,
    channel_gate,  # no kernels of their own: a seam fuses them
    spatial_gate,
    temporal_gate,
)

from .neuron import lif
from .pfa import pfa
from .pool import average_pool
from .running import update_running
from .seam import seam
from .tally import Counts, counting

__all__ = [
    "Counts",
    "Gates",
    "Norm",
    "PFAOutput",
    "PFAScores",
    "Scores",
    "SeamOutput",
    "average_pool",
    "channel_gate",
    "counting",
    "lif",
    "pfa",
    "seam",
    "spatial_gate",
    "temporal_gate",
    "update_running",
    "use_fused",
]
