"""The functions behind the modules: one public signature each, shape rule, gradient, choice of backend."""

from attsnn.reference import channel_gate, spatial_gate, temporal_gate  # no kernel of their own yet

from .neuron import lif

__all__ = ["channel_gate", "lif", "spatial_gate", "temporal_gate"]
