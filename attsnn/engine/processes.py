"""One run in several processes, as `torchrun` starts them: who this one is, and what they settle together.

Each process trains on its share of every batch; gradients, statistics and counts are summed over all, and the
first alone writes. Without `torchrun` there is one, and nothing here communicates.

What `torchrun` does with it: it ends with 1 whatever the exit code of a process (exit.json has that), gives
the others 30 seconds between SIGTERM and SIGKILL, and restarts all only with --max-restarts, where they need
--resume auto; on one machine it then often fails to meet them again without
TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1. A new `torchrun` from outside is the safer restart.
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
        """The batch as the task wants it; what it says of unreadable samples is noted."""

    @property
    def noted(self) -> Mapping[str, str]:
        """{name: sentence} of the samples noted and not yet counted."""

    def count(self, noted: Mapping[str, str]) -> None:
        """Counts them; raises where there are too many."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Inside, what the network says when another process is gone becomes a RunError."""
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
        """`model` as what sums its gradients over the processes, times 1 / world: the mean."""
        if self.world == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        # Of norms over all processes the buffers are the same everywhere: none need be sent.
        named = inspect.signature(DistributedDataParallel).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in named else "broadcast_buffers"
        how: dict[str, Any] = {buffers: False, "gradient_as_bucket_view": True}
        return DistributedDataParallel(model, device_ids=devices, **how)

    def align(self, model: nn.Module) -> None:
        """Gives each process the buffers of the first: norms that are not synchronised have their own."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes, in each of them; `values` is overwritten."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank, in each of them."""
        values: list[Any] = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def count(self, faults: Faults) -> None:
        """Counts what any process has noted, in each of them."""
        faults.count(
            {name: text for noted in self.gather(dict(faults.noted)) for name, text in noted.items()}
        )

    def from_first(self, action: Callable[[], T]) -> T:
        """What `action` returns in the first process, in each of them; what it raises is raised in each."""
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
    """Joins the processes that `torchrun` started, or is the only one.

    Args:
        device: a CUDA device a process, with NCCL; or the CPU, with gloo, which keeps freed memory
            (`memory.keep_memory`).
        threads: of the CPU, for each process; 0 leaves PyTorch's choice.
        timeout: seconds after which a process that does not answer ends the run.

    Raises UsageError if there are fewer CUDA devices than processes on this machine.
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
    """Ends this process. One of several does without the interpreter's own end: threads of gloo may outlive
    their group (torch 2.13), and a late one aborts an interpreter that is ending.
    """
    if launched().world > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


_LOST = re.compile(r"gloo|NCCL|[Cc]onnection (closed|reset)|[Tt]imed out|timeout|process group")
