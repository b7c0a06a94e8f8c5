"""Layers for inputs [T, N, ...], time first.

A seam is what lies between two convolutions: norm, pool, gates, shortcut and neuron. `SpikingLayer` is a
layer and the seam after it, which runs as one op. The other names are layers without neurons, read-out,
folding for inference, and states that go from chunk to chunk of a sequence.
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
