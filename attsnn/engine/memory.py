"""What becomes of memory that tensors on the CPU give back. Knows nothing of PyTorch or attsnn."""

import ctypes
import os


def keep_memory() -> bool:
    """Asks glibc to keep freed memory for the next tensor; returns whether it does so, elsewhere it does not.

    By itself it hands tensors of more than 32 MiB back to the system, and each 4 KiB of the next ones comes
    as a page fault, which is a tenth of a training step and more. Kept are at most 2 GiB behind the last
    tensor in use. What the environment says of these thresholds (MALLOC_TRIM_THRESHOLD_, ...) stands.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name in os.environ for name in _VARIABLES):
        return False
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, 256 << 20)
    if not mallopt(_MMAP_THRESHOLD, 1 << 30):  # what lies above goes back when it is freed
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # the most that an older glibc takes
    return True


_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2  # of malloc.h
