"""One run in several processes, as `torchrun` starts them: which one this is, and what they settle together.

Each process trains on its share of every batch. Gradients, statistics and counts are summed over all
processes, and only the first process writes. Without `torchrun` there is one process, and nothing here
communicates.

`torchrun` behaves as follows:

- It ends with exit code 1, whatever the exit code of a process; exit.json has that code.
- It gives the other processes 30 seconds between SIGTERM and SIGKILL.
- It restarts all of them only with --max-restarts, and then they need --resume auto. On one machine it often
  fails to connect them again without TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1. A new `torchrun` from outside is
  the safer restart.
"""

import contextlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, NoReturn, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .environment import launched
from .errors import RunError, UsageError, ignore_sigterm
from .memory import keep_memory
from .setup import device as device_of

T = TypeVar("T")


class Faults(Protocol):
    """Counts the samples of a run that could not be read, each once, whichever process met it."""

    def take(self, batch: Any) -> Any:
        """The batch as the task wants it; unreadable samples in it are noted."""

    @property
    def noted(self) -> Mapping[str, str]:
        """The samples that are noted and not yet counted, as {name: sentence}."""

    def count(self, noted: Mapping[str, str]) -> None:
        """Counts the noted samples; raises if there are too many."""


@dataclass(frozen=True)
class Processes:
    """This process, among the processes of the run.

    Args:
        rank: its number, from 0.
        world: how many there are.
        device: the device that it trains on.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Inside, the network's error after another process is gone becomes a RunError."""
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or isinstance(error, RunError) or not _LOST.search(str(error)):
                raise
            ignore_sigterm()
            raise RunError(
                f"Process {self.rank} of {self.world} lost another one ({str(error).splitlines()[0]}). What "
                "ended that one stands above or in its exit-rank<r>.json; go on with --resume auto."
            ) from error

    def share(self, model: nn.Module) -> nn.Module:
        """`model`, wrapped so that its gradients are the mean over the processes."""
        if self.world == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        # The buffers of norms over all processes are the same everywhere: none need to be sent.
        named = inspect.signature(DistributedDataParallel).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in named else "broadcast_buffers"
        how: dict[str, Any] = {buffers: False, "gradient_as_bucket_view": True}
        return DistributedDataParallel(model, device_ids=devices, **how)

    def align(self, model: nn.Module) -> None:
        """Gives each process the buffers of the first. Norms that are not synchronised differ in them."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes, in each of them; `values` is overwritten."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """The values of all processes, ordered by rank, in each of them."""
        values: list[Any] = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def count(self, faults: Faults) -> None:
        """Counts, in each process, what any process has noted."""
        faults.count(
            {name: text for noted in self.gather(dict(faults.noted)) for name, text in noted.items()}
        )

    def from_first(self, action: Callable[[], T]) -> T:
        """Runs `action` in the first process; returns its result, or raises its error, in every process."""
        if self.world == 1:
            return action()
        result: list[Any] = [None, None]
        if self.first:
            try:
                result[0] = action()
            except Exception as error:
                result[1] = error
        dist.broadcast_object_list(result)
        if result[1] is not None:
            raise result[1]
        returned: T = result[0]
        return returned


@contextlib.contextmanager
def processes(
    device: Literal["auto", "cpu", "cuda"], threads: int = 0, timeout: float = 600
) -> Iterator[Processes]:
    """Joins the processes that `torchrun` started, or is the only one: a context that yields `Processes`.

    Args:
        device: "cuda" gives each process its own device and uses NCCL. "cpu" uses gloo and keeps freed memory
            (`memory.keep_memory`). "auto" is a GPU if there is one.
        threads: CPU threads for each process; 0 leaves PyTorch's choice.
        timeout: seconds after which a process that does not answer ends the run.

    Raises:
        UsageError: there are fewer CUDA devices than processes on this machine.
    """
    world, rank, local = launched()
    chosen = device_of(device, threads)
    if chosen.type == "cpu":
        keep_memory()
    if world == 1:
        yield Processes(device=chosen)
        return
    if chosen.type == "cuda":
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"torchrun starts more processes here than the {torch.cuda.device_count()} CUDA devices; "
                "give it --nproc-per-node of at most so many."
            )
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    dist.init_process_group(
        "nccl" if chosen.type == "cuda" else "gloo",
        timeout=timedelta(seconds=timeout),
        rank=rank,
        world_size=world,
    )
    joined = Processes(rank, world, chosen)
    try:
        with joined.explained():
            yield joined
    finally:
        dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """Ends this process with an exit code.

    One of several processes skips the interpreter's own shutdown: threads of gloo may outlive their group
    (torch 2.13), and a late one aborts an interpreter that is shutting down.
    """
    if launched().world > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


_LOST = re.compile(r"gloo|NCCL|[Cc]onnection (closed|reset)|[Tt]imed out|timeout|process group")
