"""The errors and warnings of the readers, for data that is absent, broken, hostile or left out."""

import os
import sys
import warnings

from attsnn._files import plain


class DataError(ValueError):
    """Data cannot be used. The message is one sentence; a command line prints it and exits with `code`, 3."""

    code = 3


class DataMissingError(DataError):
    """The data is not there. The message says where to get it and how to prepare it."""


class DataFormatError(DataError):
    """A file does not hold what its format promises.

    The message becomes "path:line: sentence" or "path: byte offset: sentence". The arguments `path`, `offset`
    and `line` are also attributes; those that do not apply are None.

    Args:
        message: the sentence.
        path: the file.
        offset: the byte at which the reader stopped.
        line: the line of a text file, counted from 1.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | os.PathLike[str] | None = None,
        offset: int | None = None,
        line: int | None = None,
    ):
        if path is not None:
            at = f"{line}:" if line is not None else f" byte {offset}:" if offset is not None else ""
            message = f"{plain(path)}:{at} {message}"
        super().__init__(message)  # one argument, so that a data loader's worker can hand the error on
        self.path, self.offset, self.line = path, offset, line


def warn(sentence: str) -> None:
    """Issues a UserWarning at the line outside of this package that led to it."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("attsnn."):
        frame, level = frame.f_back, level + 1
    warnings.warn(sentence, stacklevel=level)
