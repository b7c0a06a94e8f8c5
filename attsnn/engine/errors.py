"""The errors that end a run, with their exit codes: 1 error, 2 usage, 4 not finite, 5
checkpoint; 3 is data.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

from attsnn._files import print_any_name


class RunError(RuntimeError):
    """An error that one sentence explains; `code` is the exit code of the process, 1 here."""

    code = 1


class UsageError(RunError):
    """The command line asks for something impossible. Exit code 2."""

    code = 2


class NonFiniteError(RunError):
    """A number is not finite: the loss or the gradient norm, with the weights as before the step, or a number
    that a checkpoint would hold. Exit code 4.
    """

    code = 4


class CheckpointError(RunError):
    """A checkpoint cannot be written, read or trusted. Exit code 5."""

    code = 5


class StoppedError(RunError):
    """SIGINT or SIGTERM stopped the run; inside `fit` the step was finished and saved.

    The exit code is 128 + `number`.

    Args:
        number: the number of the signal.
        sentence: the message; default: names the signal.
    """

    def __init__(self, number: int, sentence: str = "") -> None:
        super().__init__(sentence or f"Stopped by {signal.Signals(number).name}.")
        self.number = number
        self.code = 128 + number

    def __reduce__(self) -> tuple[type["StoppedError"], tuple[int, str]]:
        return type(self), (self.number, str(self))  # the first process passes it to the others


def ending(error: BaseException) -> tuple[int, str]:
    """The exit code that an error means, and what it says."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, "Stopped by SIGINT."
    code = getattr(error, "code", 1)
    return code if isinstance(code, int) else 1, str(error) or type(error).__name__


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """Turns a plain ValueError into a UsageError. For the set-up only, where such an error is about what the
    user asked for.
    """
    try:
        yield
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        raise UsageError(str(error)) from error


def command(main: Callable[[], None], codes: Mapping[type[Exception], int] | None = None) -> int:
    """Runs `main` and returns the exit code. An error that explains itself prints one sentence.

    Any other exception is a defect of the program and keeps its traceback. SIGTERM raises StoppedError where
    no loop handles it.

    Args:
        main: what the command does.
        codes: exceptions of the task (a data-format error, for example) and their exit codes.
    """
    known: dict[type[Exception], int] = {RunError: 1, OSError: 1, **(codes or {})}
    with heard_or_not(), _sigterm_raises():
        print_any_name()
        try:
            main()
        except KeyboardInterrupt as error:
            code, said = ending(error)
            print(said, file=sys.stderr)
            return code
        except Exception as error:
            ignore_sigterm()
            meant = next((known[kind] for kind in type(error).__mro__ if kind in known), None)
            if meant is None:
                raise
            print(_sentence(error), file=sys.stderr)
            return getattr(error, "code", meant)
    return 0


class _Said:
    """A stream whose reader may be gone; output that nobody reads is no reason to stop."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except (OSError, ValueError):
            # What is left in its buffer would fail again, at the end of the interpreter.
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def heard_or_not() -> Iterator[None]:
    """Inside, printing never fails: not on a full disk, a pipe whose reader has ended, or a closed stream."""
    with contextlib.ExitStack() as stack:
        before = sys.stdout, sys.stderr
        nothing = stack.enter_context(open(os.devnull, "w"))
        sys.stdout, sys.stderr = (_Said(stream or nothing) for stream in before)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = before


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM wait. Used around the few writes that record how a run ended."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_sigterm() -> None:
    """For a process that ends anyway. `torchrun` sends SIGTERM to the others as soon as one process has
    failed, and they still have a sentence to print.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    def stop(number: int, _: FrameType | None) -> None:
        raise StoppedError(number)

    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread alone
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _sentence(error: Exception) -> str:
    """The message; for an error from a data-loading worker, the last line of its traceback."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return text
