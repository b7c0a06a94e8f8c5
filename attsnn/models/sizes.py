"""Checks and scaling of sizes that the families of models share."""

import math
from collections.abc import Iterable, Sequence


def check_widths(channels: Sequence[int], count: int, name: str = "channels") -> None:
    """Raises unless `channels`, called `name` in the message, are `count` widths of at least 1."""
    widths = isinstance(channels, Sequence) and len(channels) == count
    if not widths or any(isinstance(c, bool) or not isinstance(c, int) or c < 1 for c in channels):
        raise ValueError(f"{name} must be {count} widths of at least 1, got {channels!r}")


def sides(size: int | Sequence[int], multiple: int) -> tuple[int, int]:
    """(H, W) of a size, which is one side or both. Raises unless `multiple` divides them."""
    pair = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(pair) != 2 or any(type(n) is not int or n < multiple or n % multiple for n in pair):
        raise ValueError(
            f"size must be a multiple of {multiple}, which the layers pool by, or (H, W) of multiples; "
            f"got {size!r}"
        )
    return pair


def check_halved(size: int, times: int) -> None:
    """Raises for a side that cannot be halved `times` times."""
    if size % 2**times:
        raise ValueError(f"size must be a multiple of {2**times}, to halve it so often; got {size}")


def check_attention(name: str | None, known: Iterable[str]) -> None:
    """Raises for an attention that a network does not have."""
    if name is not None and name not in known:
        raise ValueError(f"attention must be None or one of {', '.join(known)}, got {name!r}")


def scaled(channels: Iterable[int], width: float, ratio: int) -> tuple[int, ...]:
    """The channels times `width`, rounded to multiples of `ratio`, the reduction of the channel attention.

    A width of 1 leaves them as they are.
    """
    if not 0 < width < math.inf:
        raise ValueError(f"width must be positive, got {width}: 0.5 halves every layer's channels")
    if width == 1.0:
        return tuple(channels)
    return tuple(max(ratio, round(c * width / ratio) * ratio) for c in channels)
