"""The order of the samples, and a seed for each, as pure functions of (seed, epoch, index).

Nothing here has a state. The number of workers, how far they look ahead and where a run was interrupted
cannot change what is loaded.
"""

import os
from collections.abc import Callable, Hashable, Iterator, Sized
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset

_ORDER, _SAMPLE, _SPLIT = 1, 2, 3  # streams: no two uses of a seed share their numbers


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014): a bijection of uint64 that scatters its input."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


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
    """int64 [count], each in [0, 2^63): the seeds from which samples draw their window and augmentation."""
    return (_scatter(_SAMPLE, seed, epoch, count) >> np.uint64(1)).astype(np.int64)


def split(count: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divides the samples into two sorted index arrays; the second holds about `fraction` of them.

    Raises ValueError if a fraction above zero leaves one of the two empty.
    """
    _check_fraction(fraction)
    held = round(count * fraction)
    if fraction > 0 and not 0 < held < count:
        raise ValueError(
            f"A validation fraction of {fraction} of {count} samples leaves one of the two sets empty."
        )
    shuffled = np.argsort(_scatter(_SPLIT, seed, 0, count), kind="stable")
    return np.sort(shuffled[held:]), np.sort(shuffled[:held])


def _check_fraction(fraction: float) -> None:
    if not 0 <= fraction < 1:
        raise ValueError(f"The validation fraction is {fraction}; it must be at least 0 and below 1.")


def held_out(
    labels: np.ndarray, fraction: float, seed: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """As `split`, for a validation set: holds out that share of every class, or of the `groups` as wholes.

    Args:
        labels: the class of each sample, `[N]`.
        fraction: the share to hold out, from 0 to below 1.
        seed: the seed of the draw.
        groups: the group of each sample, `[N]`, if samples of one group are alike (those of one person, for
            example).

    Raises ValueError if a fraction above zero leaves one of the two empty.
    """
    _check_fraction(fraction)
    if fraction == 0:
        return np.arange(len(labels)), np.arange(0)
    if groups is not None:
        names = np.unique(groups)
        _, chosen = split(len(names), max(fraction, 1 / len(names)), seed)
        inside = np.isin(groups, names[chosen])
        return np.flatnonzero(~inside), np.flatnonzero(inside)
    kept, held = [], []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            kept.append(members)
            continue
        share = min(max(round(fraction * len(members)), 1), len(members) - 1)
        stays, leaves = split(len(members), share / len(members), seed + int(label))
        kept.append(members[stays])
        held.append(members[leaves])
    if not held:
        raise ValueError(f"A validation fraction of {fraction} needs a class of two samples or more.")
    return np.sort(np.concatenate(kept)), np.sort(np.concatenate(held))


class Share(NamedTuple):
    """One process's part of a batch: its samples, and how many the whole batch has."""

    indices: list[int]
    total: int


class Batches:
    """The training batches of every epoch, loaded by workers. Loading can start at any batch.

    Args:
        dataset: the data set.
        batch: samples of a batch, over all processes; process `rank` of `world` loads every world-th sample.
        seed: the seed of the order and of the samples' draws.
        key: (index, seed) -> the key that `dataset[...]` is asked for, such as `attsnn.data.Draw`.
        indices: the samples to train on; default: all.
        workers: the number of loading processes.
        pin: whether to pin the memory of the batches.
        rank: the number of this process.
        world: the number of processes.
        frozen_order: every epoch has the order, and the draws, of the first one.
        drop_last: leave out the last batch of an epoch if it is smaller; otherwise it is used.
        limit: the most batches in an epoch.
        collate: makes a batch of samples; default: PyTorch's.

    Raises ValueError if the samples make no batch, or leave a process without samples.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch: int,
        seed: int,
        *,
        key: Callable[[int, int], Hashable],
        indices: np.ndarray | None = None,
        workers: int = 0,
        pin: bool = False,
        rank: int = 0,
        world: int = 1,
        frozen_order: bool = False,
        drop_last: bool = False,
        limit: int | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        self._indices = np.arange(len(cast(Sized, dataset))) if indices is None else np.asarray(indices)
        count, self.batch, self.seed, self.key = len(self._indices), batch, seed, key
        self._rank, self._world, self._frozen = rank, world, frozen_order
        if batch < 1 or count == 0 or (limit is not None and limit < 1):
            most = "" if limit is None else f", at most {limit} an epoch"
            raise ValueError(f"Batches of {batch} of {count} samples{most}: all must be at least 1.")
        whole, rest = divmod(count, batch)
        if (rest if rest and not drop_last else batch) < world:
            raise ValueError(
                f"Batches of {batch} of {count} samples leave one of {world} processes without any."
            )
        if whole == 0 and drop_last:
            raise ValueError(f"{count} samples make no whole batch of {batch}; take a smaller one.")
        batches = whole + (rest > 0 and not drop_last)
        self._count = batches if limit is None else min(batches, limit)
        self.size = min(self._count * batch, count)  # samples of an epoch
        self._plan: list[list[Hashable]] = []  # what the loader's workers are asked for, in order
        self._loader = _loader(dataset, workers, pin, batch_sampler=self._plan, collate_fn=collate)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return self._count

    def epoch(self, epoch: int, start: int = 0, stop: int | None = None) -> Iterator[tuple[Share, Any]]:
        """Yields (share, loaded batch) of `epoch`, from batch `start` up to but not including batch `stop`. A
        share has the `indices` of this process's samples and the `total` of all processes.
        """
        epoch = 0 if self._frozen else epoch
        seeds = sample_seeds(int(self._indices.max()) + 1, self.seed, epoch)
        shuffled = self._indices[order(len(self._indices), self.seed, epoch)]
        count = self._count if stop is None else min(self._count, stop)
        slices = [shuffled[b * self.batch : (b + 1) * self.batch] for b in range(start, count)]
        shares = [Share(whole[self._rank :: self._world].tolist(), len(whole)) for whole in slices]
        self._plan[:] = [[self.key(i, int(seeds[i])) for i in share.indices] for share in shares]
        if shares:
            yield from zip(shares, self._loader, strict=True)


def in_order(
    dataset: Dataset[Any],
    batch: int,
    workers: int = 0,
    pin: bool = False,
    *,
    rank: int = 0,
    world: int = 1,
    collate: Callable[[list[Any]], Any] | None = None,
) -> DataLoader[Any]:
    """A loader for evaluation: every sample once over all processes, in the order of the data set.

    Args:
        dataset: the data set.
        batch: samples of a batch, in each process.
        workers, pin, rank, world, collate: see `Batches`.
    """
    if world > 1:
        dataset = Subset(dataset, range(rank, len(cast(Sized, dataset)), world))
    return _loader(dataset, workers, pin, batch_size=batch, collate_fn=collate)


def _loader(dataset: Dataset[Any], workers: int, pin: bool, **how: Any) -> DataLoader[Any]:
    # With its own generator, DataLoader does not draw from the global one at each start of an epoch,
    # which would change the dropout of a run that is resumed within an epoch.
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
    """Leaves the process group, which Ctrl-C, `timeout` and schedulers signal as a whole: only the parent
    decides when to stop.
    """
    os.setpgid(0, 0)
