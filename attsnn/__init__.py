"""attsnn: attention spiking neural networks on fused C++ and CUDA kernels."""

from . import attention, interop, layers, models, neurons, ops, profile, reference
from .interop import accelerate

__version__ = "0.1.0"
__all__ = ["accelerate", "attention", "interop", "layers", "models", "neurons", "ops", "profile", "reference"]
