"""Models by name: `create(name, **kwargs)`, `names()`. One file a family."""

from .registry import create, names

__all__ = ["create", "names"]
