"""SIGINT and SIGTERM as requests that the loop answers between two steps."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import torch

from .errors import StoppedError
from .processes import Processes

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While entered, SIGINT and SIGTERM are requests. A second SIGINT interrupts at once. A second SIGTERM
    does not, because `timeout` sends it both to a process and to its group.

    `number` is the signal for which all processes have agreed to stop at the same step, whichever process
    received it. `flags` are summed over the processes together with what a step sums anyway, and `settle`
    takes the sum. A signal that only this process has received shows nowhere else: a process that acted on it
    alone would leave the others waiting. Python delivers signals only to the main thread; entered in another
    thread, this changes nothing.
    """

    def __init__(self, processes: Processes) -> None:
        self.number: int | None = None
        self._arrived: int | None = None  # the latest signal
        self._interrupted = False
        self._processes = processes
        self._at_once = False
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, error: object, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if error is None and self.number is None and self._arrived is not None:
            signal.raise_signal(self._arrived)  # it came too late to be answered, and must not be lost

    def flags(self) -> list[float]:
        """For each of SIGNALS, whether it arrived here."""
        return [float(self._arrived == number) for number in SIGNALS]

    def settle(self, sums: Sequence[float]) -> None:
        """Takes the flags, summed over all processes."""
        for number, count in zip(SIGNALS, sums, strict=True):
            if count > 0:
                self.number = number

    def agree(self) -> None:
        """Settles what has arrived, with a sum of its own. Each process must call it equally often."""
        sums = self.flags()
        if self._processes.world > 1:
            sums = self._processes.sum(torch.tensor(sums, device=self._processes.device)).tolist()
        self.settle(sums)

    def poll(self) -> None:
        """Raises StoppedError in all processes once one has received a signal. Each must
        call it equally often.
        """
        self.agree()
        if self.number is not None:
            raise StoppedError(self.number)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises StoppedError where it arrives; for code that changes nothing.

        None of several processes may leave alone; there, only `poll` raises it.
        """
        self._at_once = self._processes.world == 1
        try:
            if self._at_once:
                self.poll()
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:  # even if another signal came in between
                raise KeyboardInterrupt
            self._interrupted = True
            if self._processes.first:
                said = b"\nStopping after this step, to save. Once more stops at once and saves nothing.\n"
                with contextlib.suppress(OSError):  # the reader may be gone: `| tee` dies of the same Ctrl-C
                    os.write(2, said)
        self._arrived = number
        if self._at_once:
            self.number = number
            raise StoppedError(number)
