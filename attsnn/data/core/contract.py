"""What a data set states about itself, in one place that the command line, downloads,
docs and tests follow.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Keyword-only arguments of `prepare` that a command line has no flag for.
PYTHON_ONLY = ("progress", "about", "backend")
# The help of a flag that all sets of event recordings have.
STRICT = {"strict": "refuse any time that decreases; default: one event in 10,000 is sorted into place"}


@dataclass(frozen=True)
class File:
    """A published file. `urls` are mirrors, tried in turn; it is empty if no program may or can fetch it."""

    name: str
    size: int | None = None  # bytes
    md5: str | None = None
    sha256: str | None = None
    urls: tuple[str, ...] = ()

    def __str__(self) -> str:
        size = f"{self.size:,} bytes, " if self.size is not None else ""
        hashed = f"md5 {self.md5}" if self.md5 else f"sha256 {self.sha256}"
        return f"{self.name} ({size}{hashed})"


@dataclass(frozen=True)
class DataSet:
    """The facts of a data set and what can be done with it; `datasets/__init__.py` has the table of all sets.

    `prepare(raw, out, **flags)` turns the published files into what `open(path, split, ...)` reads; it is
    None if there is nothing to prepare. `describe(path)` returns one sentence about what `prepare` wrote.
    `verify(path, **flags)` prints what is there, and raises DataError unless it is sound and complete. The
    keyword-only arguments of `prepare` and `verify` become flags of `python -m attsnn.data`, except those in
    `PYTHON_ONLY`; `flags` has the help of each.
    """

    name: str
    title: str  # one line: whose, what, how much
    where: str  # where to get it and what to do then
    licence: str
    splits: tuple[str, ...]
    open: Callable[..., Any]
    prepare: Callable[..., Any] | None
    verify: Callable[..., None]
    describe: Callable[[Path], str] | None
    classes: tuple[str, ...] | None = None  # their names in order; None: found in the files
    files: tuple[File, ...] = ()
    raw: str = "the files as published, or the folder above"  # help of `prepare`'s first argument
    out: str = "the store to write: a new folder, or an empty one"  # help of its second
    path: str | None = "the prepared store"  # help of `verify`'s argument; None: it has none
    flags: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The name of the class that `open` makes."""
        return getattr(self.open, "__self__", self.open).__name__

    @property
    def downloadable(self) -> tuple[File, ...]:
        """The files that `python -m attsnn.data download` fetches."""
        return tuple(file for file in self.files if file.urls)

    def flags_of(self, command: Callable[..., Any]) -> list[tuple[inspect.Parameter, str]]:
        """(parameter, help) of each flag of `prepare` or `verify`."""
        parameters = inspect.signature(command).parameters.values()
        flags = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in PYTHON_ONLY]
        return [(flag, self.flags[flag.name]) for flag in flags]
