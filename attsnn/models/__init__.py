"""Models by name: `create(name, **kwargs)`, `names()`. `watch` sees what their neurons emit."""

from attsnn.layers import watch

from . import (  # noqa: F401  (they register their models)
    att_vgg,
    ma_snn,
    ms_resnet,
    pfa_fmnist,
    pfa_ms_resnet,
    pfa_vgg,
)
from .registry import create, names

__all__ = ["create", "names", "watch"]
