"""Models by name: `create(name, **kwargs)`, `names()`. `watch` sees what their neurons emit."""

from attsnn.layers import watch

from .registry import create, names

__all__ = ["create", "names", "watch"]
