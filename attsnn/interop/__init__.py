"""Other packages' networks: those of SpikingJelly and snnTorch run on attsnn's kernels (`accelerate`), and
files of NIR are read and written (`nir`). Imports none of these packages.
"""

from . import nir
from .accelerating import Line, Report, accelerate
from .comparing import MismatchError

__all__ = ["Line", "MismatchError", "Report", "accelerate", "nir"]
