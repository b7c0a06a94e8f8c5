"""attsnn: attention spiking neural networks on fused C++ and CUDA kernels."""

from . import attention, layers, models, neurons, ops, profile, reference

__version__ = "0.1.0"
__all__ = ["attention", "layers", "models", "neurons", "ops", "profile", "reference"]
