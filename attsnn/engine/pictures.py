"""The pictures of a run, under the names that trainers use; `attsnn.plot` draws them."""

from attsnn.plot import confusion, curves, gates, grid, over_time, recording
from attsnn.plot.figures import _matplotlib
from attsnn.plot.training import _curves

__all__ = ["_curves", "_matplotlib", "confusion", "curves", "gates", "grid", "over_time", "recording"]
