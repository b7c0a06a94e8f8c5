"""Layers over [T, N, ...]: what lies between two convolutions as one op, read-out, folding for inference,
states from chunk to chunk of a sequence.
"""

from attsnn._deprecation import moved

from .folding import FOLDABLE, fold
from .normed import NORMS, AveragePool, NormedLayer, Rate, over_time
from .settling import settle
from .spiking import SpikingLayer, synchronise
from .streaming import State, Stream, plainly, streamed
from .watching import watch

__all__ = [
    "FOLDABLE",
    "NORMS",
    "AveragePool",
    "NormedLayer",
    "Rate",
    "SpikingLayer",
    "State",
    "Stream",
    "fold",
    "over_time",
    "plainly",
    "settle",
    "streamed",
    "synchronise",
    "watch",
]

__getattr__ = moved(__name__, {"ops": "attsnn.ops"}, gone="0.2")
