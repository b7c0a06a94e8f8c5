"""Figures of trainings, spikes, gates and energy, and the report page of runs (`python -m attsnn report`).

Every function takes the file to write first; its name decides between PNG and SVG. It returns the path in a
list. The list is empty if there is nothing to draw, or no matplotlib (the extra `plot`).
"""

from .gates import gates
from .images import grid
from .spikes import raster, rates, recording
from .training import Point, compared, confusion, curves, energy, over_time

__all__ = [
    "Point",
    "compared",
    "confusion",
    "curves",
    "energy",
    "gates",
    "grid",
    "over_time",
    "raster",
    "rates",
    "recording",
]
