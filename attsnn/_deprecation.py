"""How a public name is removed.

For one minor release it still works, with a DeprecationWarning that names its replacement and the release
that drops it. The names in tests/public_api.txt are removed in no other way.
"""

import warnings
from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from typing import Any


def deprecated(old: str, new: str, *, gone: str, stacklevel: int = 2) -> None:
    """Warns the caller's caller that `new` replaces `old`, which release `gone` drops.

    `old` is a name, a parameter or a value.
    """
    warnings.warn(
        f"{old} is deprecated, and will not be in attsnn {gone}: use {new}",
        DeprecationWarning,
        stacklevel=stacklevel + 1,
    )


def moved(module: str, names: Mapping[str, str], *, gone: str) -> Callable[[str], Any]:
    """Makes the `__getattr__` of a module that names have left: {name: "attsnn.where.it.is"}."""

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        deprecated(f"{module}.{name}", names[name], gone=gone)
        return resolve_name(names[name])

    return find
