"""Other people's networks: those of SpikingJelly and snnTorch on our kernels (`accelerate`), and files of NIR
(`nir`). Imports no peer.
"""

from . import nir
from .accelerating import Line, Report, accelerate
from .verifying import MismatchError

__all__ = ["Line", "MismatchError", "Report", "accelerate", "nir"]
