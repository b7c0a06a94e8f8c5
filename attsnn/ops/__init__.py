"""The functions behind the modules: one public signature each, shape rule, gradient, choice of backend."""

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
