"""SIGINT and SIGTERM as a request that the loop answers between two steps."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from .errors import StoppedError


class StopRequest:
    """While entered, SIGINT and SIGTERM only set `number`; a second SIGINT interrupts at once.

    Python delivers signals to the main thread alone: entered elsewhere, it changes nothing.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._at_once = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises StoppedError where it arrives: for code that changes nothing."""
        self._at_once = True
        try:
            if self.number is not None:
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
