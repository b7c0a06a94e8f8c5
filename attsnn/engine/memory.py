"""What happens to memory that CPU tensors free. Knows nothing of PyTorch or attsnn."""

import ctypes
import os


def keep_memory() -> bool:
    """Asks glibc to keep freed memory for the next tensor. Returns whether it does; other C libraries do not.

    By default glibc returns tensors of more than 32 MiB to the system. Each 4 KiB of the next tensor then
    costs a page fault, which adds up to a tenth of a training step and more. At most 2 GiB are kept after the
    last tensor in use. If the environment sets these thresholds (MALLOC_TRIM_THRESHOLD_, ...), nothing is
    changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name in os.environ for name in _VARIABLES):
        return False
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, 256 << 20)
    if not mallopt(_MMAP_THRESHOLD, 1 << 30):  # larger tensors are returned when they are freed
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # the most that an older glibc takes
    return True


_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2  # of malloc.h
