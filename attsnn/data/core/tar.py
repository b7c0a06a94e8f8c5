"""Tar files, read in place and never extracted; every size is checked against the bytes that are there."""

import os
import tarfile
from collections.abc import Iterable, Iterator
from typing import IO, Protocol, cast

from attsnn.data.errors import DataFormatError

HEADER_BYTES = 1 << 20


class Stream(Protocol):
    """A file, or a part of one, as far as reading a tar file takes one."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes."""

    def seek(self, at: int, /) -> object:
        """Goes to a byte."""

    def tell(self) -> int:
        """The byte that is next."""


class Bounded:
    """A file that refuses to read much at once: tarfile reads extra headers at the size they claim."""

    last = b""  # what was read last

    def __init__(self, file: Stream):
        self._file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= HEADER_BYTES:
            raise tarfile.ReadError(f"a header asks for {size} bytes")
        self.last = self._file.read(size)
        return self.last


def expect_zeros(blocks: Iterable[bytes], at: int, path: str | os.PathLike[str]) -> None:
    """DataFormatError, unless zeros or nothing follow the last member, from byte `at` on.

    tarfile takes a damaged header for the end, and one block of zeros, behind which another archive may lie.
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
    """The members of a tar file of `size` bytes; each lies within, and zeros or nothing follow the last.

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
