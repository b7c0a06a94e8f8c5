"""What the families of models check and scale alike."""

import math
from collections.abc import Iterable, Sequence


def check_widths(channels: Sequence[int], count: int, name: str = "channels") -> None:
    """A sentence for channels, or what `name` says, that are not `count` widths."""
    widths = isinstance(channels, Sequence) and len(channels) == count
    if not widths or any(isinstance(c, bool) or not isinstance(c, int) or c < 1 for c in channels):
        raise ValueError(f"{name} must be {count} widths of at least 1, got {channels!r}")


def sides(size: int | Sequence[int], multiple: int) -> tuple[int, int]:
    """(H, W) of a size, which is one side or both; a sentence where `multiple` does not divide them."""
    pair = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(pair) != 2 or any(type(n) is not int or n < multiple or n % multiple for n in pair):
        raise ValueError(
            f"size must be a multiple of {multiple}, which the layers pool by, or (H, W) of multiples; "
            f"got {size!r}"
        )
    return pair


def check_halved(size: int, times: int) -> None:
    """A sentence for a side that so many layers cannot halve."""
    if size % 2**times:
        raise ValueError(f"size must be a multiple of {2**times}, to halve it so often; got {size}")


def check_attention(name: str | None, known: Iterable[str]) -> None:
    """A sentence for an attention that a network does not have."""
    if name is not None and name not in known:
        raise ValueError(f"attention must be None or one of {', '.join(known)}, got {name!r}")


def scaled(channels: Iterable[int], width: float, ratio: int) -> tuple[int, ...]:
    """The channels times `width`, as multiples of the channel attention's reduction; for a width of 1 as they
    are.
    """
    if not 0 < width < math.inf:
        raise ValueError(f"width must be positive, got {width}: 0.5 halves every layer's channels")
    if width == 1.0:
        return tuple(channels)
    return tuple(max(ratio, round(c * width / ratio) * ratio) for c in channels)
