"""Other people's networks, of SpikingJelly and snnTorch, on our kernels: `accelerate`. Imports no peer."""

from .accelerating import Line, Report, accelerate
from .verifying import MismatchError

__all__ = ["Line", "MismatchError", "Report", "accelerate"]
