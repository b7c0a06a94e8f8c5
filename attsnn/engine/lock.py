"""One process at a time writes to a run directory.

The operating system locks the file `.lock` in it, and releases the lock when the process dies. If a file
system has no locks, a file `.lock-<machine>-<process>-...` takes their place (a token); every process looks
for such files.
"""

import errno
import json
import os
import platform
import secrets
import shlex
import stat
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from attsnn._files import lock, read_file

from .errors import CheckpointError, UsageError
from .sealed import parse

_FILE = ".lock"
LOST = "This process lost it, stops and writes nothing."


class InUseError(UsageError):
    """Another process has the run directory."""


class Lock:
    """A run directory that belongs to this process until `release`. `take` makes one."""

    def __init__(self, path: Path) -> None:
        self.path, self._count, self._process = path, 1, os.getpid()
        self._descriptor: int | None = None
        self._token: Path | None = None
        self._made = [p for p in (path, *path.parents) if not p.exists()]
        try:
            self._enter()
        except BaseException:
            self._unmake()
            raise

    def check(self) -> bool:
        """Whether the lock was ours all the time. False: the file had been deleted, and the
        lock is ours again.

        Raises InUseError if another process has it.
        """
        if not self.path.is_dir():
            return True  # the next write reports it
        try:
            if self._has_file() if self._token is None else self._token.exists():
                return True
            self._leave()
            self._enter()
            return False
        except InUseError as error:
            raise InUseError(f"{error} {LOST}") from error

    def release(self) -> None:
        """Gives the lock up, and removes folders that were made for it and are empty."""
        self._count -= 1
        if self._count or os.getpid() != self._process:  # a forked process has nothing to give up
            return
        _held.pop(os.path.realpath(self.path), None)
        self._leave()
        self._unmake()

    def forget(self) -> None:
        """Drops the lock in a forked process, which would otherwise keep it after this process died."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = self._token = None

    def _unmake(self) -> None:
        with suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    def _enter(self) -> None:
        try:
            self._lock()
        except OSError as error:
            if isinstance(error, FileExistsError | NotADirectoryError):
                raise UsageError(
                    f"{self.path} is not a folder: choose another --name or --runs-dir."
                ) from error
            raise CheckpointError(
                f"Cannot write into {self.path} ({_FILE}: {error.strerror or error}): make room or make it "
                "writable."
            ) from error

    def _lock(self) -> None:
        for _ in range(1000):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(self.path / _FILE, os.O_RDWR | os.O_CREAT | _UNFOLLOWED, 0o666)
            except FileNotFoundError:
                continue  # its holder has just removed the folder
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise OSError(errno.EINVAL, f"its {_FILE} is not a regular file: remove it")
            locked = lock(descriptor, wait=False)
            if locked is False:
                os.close(descriptor)
                raise InUseError(self._said(self._holder()))
            if locked is None:
                os.close(descriptor)
                self._put_token()
                return
            if not self._is_ours(descriptor):
                os.close(descriptor)
                continue  # its holder has just removed it
            self._descriptor = descriptor
            if (other := self._other()) is not None:
                self._leave()
                raise InUseError(self._of_token(other))
            with suppress(OSError):  # the disk may be full; the lock is what counts
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(_this_process()).encode(), 0)
            return
        raise InUseError(self._said({}))

    def _put_token(self) -> None:
        """Puts a token into the directory.

        If a second process comes at the same instant, both see the other's token. Both take theirs back and
        try again at different times, so that one of them stays.
        """
        with suppress(OSError):
            (self.path / _FILE).unlink()
        name = f"{_FILE}-{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}"
        for _ in range(20):
            token = self.path / name
            with open(token, "x") as file:
                json.dump(_this_process(), file)
            other = self._other(token)
            if other is None:
                self._token = token
                print(
                    f"The file system of {self.path} has no locks: while {name} lies there, no other process "
                    "goes on with this run.",
                    flush=True,
                )
                return
            token.unlink(missing_ok=True)
            time.sleep(0.02 + secrets.randbelow(80) / 1000)  # seeded generators would draw the same in both
        assert other is not None  # otherwise this process would have it
        raise InUseError(self._of_token(other))

    def _of_token(self, token: Path) -> str:
        return f"{self._said(_told(token))} If that process is gone, remove {token}."

    def _other(self, own: Path | None = None) -> Path | None:
        """The token of another process that may be alive. Tokens of dead processes are removed."""
        for token in sorted(self.path.glob(f"{_FILE}-*")):
            if token == own:
                continue
            if _is_dead(_told(token)):
                token.unlink(missing_ok=True)
            elif token.exists():
                return token
        return None

    def _has_file(self) -> bool:
        """Whether this process has the lock of the file that is there now."""
        own = self._descriptor
        return own is not None and self._is_ours(own) and bool(lock(own, wait=False))

    def _is_ours(self, descriptor: int) -> bool:
        """Whether the file of that descriptor is still in its place."""
        with suppress(OSError):
            return os.path.samestat(os.fstat(descriptor), os.lstat(self.path / _FILE))
        return False

    def _holder(self) -> Mapping[str, Any]:
        """The process that has the lock, as it states a moment after it took it."""
        for _ in range(25):
            found = _told(self.path / _FILE)
            if found and not _is_dead(found):
                return found
            time.sleep(0.02)
        return {}

    def _said(self, who: Mapping[str, Any]) -> str:
        told = "another process"
        if who:
            told = f"process {who['process']} on {who['machine']}, since {who['since']}: `{who['command']}`"
        return f"{self.path} is in use by {told}. Wait for its end or stop it, or choose another --name."

    def _leave(self) -> None:
        with suppress(OSError):
            if self._token is not None:
                self._token.unlink()
            elif self._descriptor is not None and self._is_ours(self._descriptor):
                (self.path / _FILE).unlink()
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = self._token = None


_UNFOLLOWED = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_held: dict[str, Lock] = {}  # by the folder's real path: a process may open its own run again


def _forget_all() -> None:
    for held in _held.values():
        held.forget()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def take(path: Path) -> Lock:
    """Locks a run directory, which is made if there is none.

    Raises InUseError, a UsageError that names the other process, if another process has it. Raises
    CheckpointError if nothing can be written there.
    """
    key = os.path.realpath(path)
    if key in _held:
        _held[key]._count += 1
    else:
        _held[key] = Lock(path)
    return _held[key]


def _this_process() -> dict[str, Any]:
    return {
        "process": os.getpid(),
        "machine": platform.node(),
        "born": _born(os.getpid()),
        "among": _among(),
        "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
    }


def _told(path: Path) -> dict[str, Any]:
    """What a lock says about the process that has it; empty if it does not say it."""
    with suppress(OSError, ValueError):
        found = parse(read_file(path))
        if isinstance(found, dict) and {"process", "machine", "since", "command"} <= found.keys():
            return found
    return {}


def _is_dead(who: Mapping[str, Any]) -> bool:
    """Whether that process, of this machine and this container, is gone."""
    number, here = who.get("process"), (platform.node(), _among())
    if (who.get("machine"), who.get("among")) != here or not isinstance(number, int) or number <= 0:
        return False
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return who.get("born") != _born(number)  # another process got its number


def _among() -> str | None:
    """Where a process number is valid: in one boot of the machine, and in one container."""
    with suppress(OSError):
        start = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{start} {os.readlink('/proc/self/ns/pid')}"
    return None


def _born(process: int) -> str | None:
    """When a process started, in the machine's own words; None if that is not known."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    return None
