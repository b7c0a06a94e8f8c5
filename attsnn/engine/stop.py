"""SIGINT and SIGTERM as a request that the loop answers between two steps."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

import torch

from .errors import StoppedError
from .processes import Processes

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While entered, SIGINT and SIGTERM only set `number`; a second SIGINT interrupts at once.

    Of several processes all stop at the same step, whichever got the signal: `flags` are summed over them
    with what a step sums anyway, and `settle` takes the sum. Python delivers signals to the main thread
    alone: entered elsewhere, it changes nothing.
    """

    def __init__(self, processes: Processes) -> None:
        self.number: int | None = None
        self._processes = processes
        self._at_once = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def flags(self) -> list[float]:
        """Which of SIGNALS arrived here."""
        return [float(self.number == number) for number in SIGNALS]

    def settle(self, sums: Sequence[float]) -> None:
        """Takes the flags of all processes, summed."""
        for number, count in zip(SIGNALS, sums, strict=True):
            if count > 0:
                self.number = number

    def poll(self) -> None:
        """Raises StoppedError in every process once one got a signal; each must call it as often."""
        if self._processes.world > 1:
            sums = torch.tensor(self.flags(), device=self._processes.device)
            self.settle(self._processes.sum(sums).tolist())
        if self.number is not None:
            raise StoppedError(self.number)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises StoppedError where it arrives: for code that changes nothing. Of several
        processes none may leave alone: there, only `poll` raises it.
        """
        self._at_once = self._processes.world == 1
        try:
            if self._at_once and self.number is not None:
                raise StoppedError(self.number)
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == self.number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
        if self._at_once:
            raise StoppedError(number)
