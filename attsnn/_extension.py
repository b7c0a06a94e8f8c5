"""The one file that imports `attsnn._C`, and the answer to "is there a fused kernel for this device?"."""

import warnings
from pathlib import Path
from typing import Any, Literal

import torch  # noqa: F401  (its libraries must be loaded before _C, which links against them)

Backend = Literal["auto", "fused", "reference"]
BACKENDS = ("auto", "fused", "reference")
BUILD_COMMAND = "python setup.py build_ext"

_C: Any = None  # a compiled module, which has no types
_why_not = f"the kernels are not built: run `{BUILD_COMMAND}` in the folder of attsnn"
try:
    from attsnn import _C  # type: ignore[attr-defined,no-redef]  # compiled, without a stub
except ImportError as error:
    if any(Path(__file__).parent.glob("_C.*")):  # built, yet it does not load: say what the loader said
        _why_not = f"the built kernels do not load ({error}): run `{BUILD_COMMAND}` again"

_said: set[str] = set()


def compiled() -> Any:
    """`attsnn._C`, or None if it was not built or does not load."""
    return _C


def _cuda_obstacle() -> str | None:
    if not _C.cuda_runtime:
        return f"this build is CPU-only: run `ATTSNN_CUDA=1 {BUILD_COMMAND}` where nvcc is installed"
    driver, runtime = _C.cuda_driver_version(), _C.cuda_runtime
    if driver // 1000 < runtime // 1000:  # minor versions are compatible with each other, major ones are not
        have = f"{driver // 1000}.{driver % 1000 // 10}" if driver else "none"
        return (
            f"the kernels need a driver for CUDA {runtime // 1000}, this machine's serves {have}: update the "
            f"driver, or rebuild with an older nvcc"
        )
    return None


_obstacles: dict[str, str | None] = {}


def obstacle(device_type: str) -> str | None:
    """None if fused kernels serve this device, else a sentence that says why not and what to do."""
    if device_type not in _obstacles:
        if _C is None:
            why: str | None = _why_not
        elif device_type == "cuda":
            why = _cuda_obstacle()
        elif device_type in ("cpu", "meta"):
            why = None
        else:
            why = f"there are no fused kernels for device {device_type!r}, only for cpu and cuda"
        _obstacles[device_type] = why
    return _obstacles[device_type]


def use_fused(backend: Backend, device_type: str) -> bool:
    """Whether a call with this backend runs the fused kernels.

    Args:
        backend: "fused", "reference" or "auto". Without kernels "auto" falls back to the reference and warns
            once.
        device_type: such as "cpu" or "cuda".

    Raises:
        ValueError: for an unknown backend.
        RuntimeError: for "fused" without kernels; the message says why there are none.
    """
    if backend == "reference":
        return False
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    why = obstacle(device_type)
    if why is not None and backend == "fused":
        raise RuntimeError(f"backend='fused': {why}")
    if why is not None:
        say_reference(why)
    return why is None


def say_reference(why: str) -> None:
    """Warns once that the reference runs instead of the kernels, and why."""
    if why not in _said:
        _said.add(why)
        warnings.warn(f"attsnn runs the PyTorch reference: {why}", RuntimeWarning, stacklevel=4)
