"""Models by name: `create(name, **kwargs)`, `names()`. `watch` sees what their neurons emit."""

from attsnn.layers import watch

from . import ma_snn, ms_resnet  # noqa: F401  (they register their models)
from .registry import create, names

__all__ = ["create", "names", "watch"]
