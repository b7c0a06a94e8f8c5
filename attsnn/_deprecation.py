"""How a public name goes: it works on for one minor release, with a DeprecationWarning that names what stands
in its place, and the release without it. What tests/public_api.txt lists goes in no other way.
"""

import warnings
from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from typing import Any


def deprecated(old: str, new: str, gone: str, *, stacklevel: int = 2) -> None:
    """Warns the caller's caller that `old` (a name, a parameter, a value) is `new` now, and not in `gone`."""
    warnings.warn(
        f"{old} is deprecated, and will not be in attsnn {gone}: use {new}",
        DeprecationWarning,
        stacklevel=stacklevel + 1,
    )


def moved(module: str, names: Mapping[str, str], gone: str) -> Callable[[str], Any]:
    """`__getattr__` of a module that names have left: {name: "attsnn.where.it.is"}."""

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        deprecated(f"{module}.{name}", names[name], gone)
        return resolve_name(names[name])

    return find
