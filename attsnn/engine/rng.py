"""The states of all random generators that a run may draw from, as JSON."""

import base64
import contextlib
import random
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch


def seed_all(seed: int, rank: int = 0) -> None:
    """Seeds Python, NumPy and PyTorch (every device). Each process `rank` of several gets another seed."""
    if rank:
        seed = int(np.random.SeedSequence([seed, rank]).generate_state(1, np.uint64)[0] >> 1)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture() -> dict[str, Any]:
    """The states of Python, NumPy, PyTorch and every CUDA device, as JSON values."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = cast(
        tuple[str, np.ndarray, int, int, float], np.random.get_state()
    )
    seen = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if seen else []
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, keys.tolist(), position, has_gauss, cached],
        "torch": _encode(torch.get_rng_state()),
        "cuda": [_encode(state) for state in cuda],
    }


def restore(state: dict[str, Any]) -> None:
    """Sets the states that `capture` took. CUDA states are set for the devices that exist here."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(_decode(state["torch"]))
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device, text in enumerate(state["cuda"][:present]):
        torch.cuda.set_rng_state(_decode(text), device)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Draws inside leave the generators as they were, so that an evaluation cannot change the training."""
    state = capture()
    try:
        yield
    finally:
        restore(state)


def _encode(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _decode(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
