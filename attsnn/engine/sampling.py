"""The order of the samples, and a seed for each, as pure functions of (seed, epoch, index).

Nothing here has a state: how many workers load, how far they look ahead and where a run was interrupted
cannot change what is loaded.
"""

import math
import os
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

_ORDER, _SAMPLE, _SPLIT = 1, 2, 3  # streams: no two uses of a seed share their numbers


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014): a bijection of uint64 that scatters its input."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _scatter(stream: int, seed: int, epoch: int, count: int) -> np.ndarray:
    """uint64 [count]: the numbers of one stream, one for each index."""
    word = np.zeros(1, np.uint64)
    for part in (stream, seed, epoch):
        word = _mix(word + np.uint64(0x9E3779B97F4A7C15) + np.array([part % 2**64], np.uint64))
    return _mix(word + np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def order(count: int, seed: int, epoch: int) -> np.ndarray:
    """int64 [count]: the permutation of an epoch."""
    return np.argsort(_scatter(_ORDER, seed, epoch, count), kind="stable")


def sample_seeds(count: int, seed: int, epoch: int) -> np.ndarray:
    """int64 [count], each in [0, 2^63): what sample i draws its window and augmentation from."""
    return (_scatter(_SAMPLE, seed, epoch, count) >> np.uint64(1)).astype(np.int64)


def split(count: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sorted index arrays that share the samples; the second holds about `fraction` of them.

    Raises ValueError if a fraction above zero leaves one of the two empty.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"The validation fraction is {fraction}; it must be at least 0 and below 1.")
    held = round(count * fraction)
    if fraction > 0 and not 0 < held < count:
        raise ValueError(
            f"A validation fraction of {fraction} of {count} samples leaves one of the two sets empty."
        )
    shuffled = np.argsort(_scatter(_SPLIT, seed, 0, count), kind="stable")
    return np.sort(shuffled[held:]), np.sort(shuffled[:held])


class Batches:
    """The training batches of every epoch, loaded by workers and startable at any position.

    `key(index, seed)` makes what `dataset[...]` is asked for; `indices` are those to train on (default: all).
    The last batch of an epoch may be smaller.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch: int,
        seed: int,
        *,
        key: Callable[[int, int], Hashable],
        indices: np.ndarray | None = None,
        workers: int = 0,
        pin: bool = False,
    ) -> None:
        self._indices = np.arange(len(dataset)) if indices is None else np.asarray(indices)
        self.size, self.batch, self.seed, self.key = len(self._indices), batch, seed, key
        if batch < 1 or self.size == 0:
            raise ValueError(f"Batches of {batch} of {self.size} samples: both must be at least 1.")
        self._plan: list[list[Hashable]] = []  # what the loader's workers are asked for, in order
        self._loader = _loader(dataset, workers, pin, batch_sampler=self._plan)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return math.ceil(self.size / self.batch)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[list[int], Any]]:
        """Yields (sample indices, loaded batch) of `epoch`, from batch `start` on."""
        seeds = sample_seeds(int(self._indices.max()) + 1, self.seed, epoch)
        shuffled = self._indices[order(self.size, self.seed, epoch)]
        slices = [shuffled[i : i + self.batch].tolist() for i in range(0, self.size, self.batch)][start:]
        self._plan[:] = [[self.key(i, int(seeds[i])) for i in indices] for indices in slices]
        if slices:
            yield from zip(slices, self._loader, strict=True)


def in_order(dataset: Dataset, batch: int, workers: int = 0, pin: bool = False) -> DataLoader:
    """A loader for evaluation: every sample once, in the order of the data set."""
    return _loader(dataset, workers, pin, batch_size=batch)


def _loader(dataset: Dataset, workers: int, pin: bool, **how: Any) -> DataLoader:
    # The generator of its own keeps DataLoader from drawing from the global one at each start of an epoch,
    # which would shift the dropout of a run that is resumed within an epoch.
    return DataLoader(
        dataset,
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=workers > 0,
        worker_init_fn=_leave_the_group,
        generator=torch.Generator(),
        **how,
    )


def _leave_the_group(_: int) -> None:
    """Ctrl-C, `timeout` and schedulers signal a process group; the parent alone decides when to stop."""
    os.setpgid(0, 0)
