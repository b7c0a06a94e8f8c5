"""Reads tar files in place, never extracted; every size is checked against the bytes that are there."""

import os
import tarfile
from collections.abc import Iterable, Iterator
from typing import IO, Protocol, cast

from attsnn.data.errors import DataFormatError

HEADER_BYTES = 1 << 20


class Stream(Protocol):
    """What reading a tar file needs of a file, or of a part of one."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes."""

    def seek(self, at: int, /) -> object:
        """Goes to a byte."""

    def tell(self) -> int:
        """The byte that is next."""


class Bounded:
    """A file that refuses large reads: tarfile reads extra headers at the size that they claim."""

    last = b""  # what was read last

    def __init__(self, file: Stream):
        self._file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= HEADER_BYTES:
            raise tarfile.ReadError(f"a header asks for {size} bytes")
        self.last = self._file.read(size)
        return self.last


def expect_zeros(blocks: Iterable[bytes], at: int, path: str | os.PathLike[str]) -> None:
    """Raises DataFormatError unless only zeros, or nothing, follow the last member, from byte `at` on.

    tarfile takes a damaged header for the end of the archive. It also stops at one block of zeros, and
    another archive may follow that.
    """
    for block in blocks:
        if any(block):
            raise DataFormatError(
                "found a damaged header, or more behind the end mark; wanted a member, or zeros to the end",
                path=path,
                offset=at + len(block) - len(block.lstrip(b"\0")),
            )
        at += len(block)


def members(file: Stream, size: int, path: str | os.PathLike[str]) -> Iterator[tarfile.TarInfo]:
    """Yields the members of a tar file of `size` bytes. Each lies within it; only zeros
    or nothing may follow.

    DataFormatError names `path`. `file` may be read between two members.
    """
    try:
        with tarfile.open(fileobj=cast(IO[bytes], Bounded(file)), mode="r:") as tar:
            while member := tar.next():
                if not 0 <= member.size <= size - member.offset_data:
                    raise DataFormatError(
                        f"found {member.name[:80]!r} of {member.size} bytes, more than the file has left; "
                        "it is cut short or damaged",
                        path=path,
                        offset=member.offset,
                    )
                yield member
                tar.members.clear()  # type: ignore[attr-defined]  # typeshed does not know them
            end = tar.offset
    except DataFormatError:
        raise
    except (tarfile.TarError, OSError, ValueError, KeyError, EOFError, RecursionError) as error:
        raise DataFormatError(f"not a sound .tar file ({error})", path=path) from None
    file.seek(end)
    expect_zeros(
        (file.read(min(HEADER_BYTES, size - at)) for at in range(end, size, HEADER_BYTES)), end, path
    )
