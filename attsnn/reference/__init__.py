"""The reference: the definitions in plain PyTorch, against which every fused kernel is tested.

It imports nothing else of attsnn and needs no build.
"""

from .gates import channel_gate, spatial_gate, temporal_gate
from .neuron import CONSTANTS, EMITS, lif, neurons, state_dtype
from .pfa import FUSIONS, SCALES, PFAOutput, PFAScores, pfa
from .seam import (
    Gates,
    Norm,
    Scores,
    SeamOutput,
    average_pool,
    seam,
    seam_apply,
    seam_gradient,
    update_running,
)
from .surrogate import (
    SURROGATES,
    Surrogate,
    arctan,
    custom,
    erf,
    fast_sigmoid,
    piecewise_exp,
    rectangular,
    sigmoid,
    triangle,
)

__all__ = [
    "CONSTANTS",
    "EMITS",
    "FUSIONS",
    "Gates",
    "Norm",
    "PFAOutput",
    "PFAScores",
    "SCALES",
    "SURROGATES",
    "Scores",
    "SeamOutput",
    "Surrogate",
    "arctan",
    "average_pool",
    "channel_gate",
    "custom",
    "erf",
    "fast_sigmoid",
    "lif",
    "neurons",
    "pfa",
    "piecewise_exp",
    "rectangular",
    "seam",
    "seam_apply",
    "seam_gradient",
    "sigmoid",
    "spatial_gate",
    "state_dtype",
    "temporal_gate",
    "triangle",
    "update_running",
]
